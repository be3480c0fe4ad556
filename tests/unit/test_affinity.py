"""Cores by name and by number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.benchmarks.affinity import parse_cores, with_cores_of
from edgekit.benchmarks.values import Cluster, DeviceInfo, Plan
from edgekit.errors import UserError

PHONE = DeviceInfo(
    spec="adb:x",
    kind="adb",
    serial="x",
    cores=8,
    clusters=(
        Cluster(cores=(0, 1, 2, 3), max_khz=1_800_000, name="little"),
        Cluster(cores=(4, 5, 6), max_khz=2_400_000, name="mid"),
        Cluster(cores=(7,), max_khz=2_900_000, name="big"),
    ),
)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("big", "big"), ("all", "all"), ("0-3", (0, 1, 2, 3)), ("4,0,2", (0, 2, 4)), ("1-2, 2,7", (1, 2, 7))],
)
def test_cores_are_read_as_written(text: str, cores: object) -> None:
    """Names stay names, numbers and ranges become sorted numbers."""
    assert parse_cores(text) == cores


@pytest.mark.parametrize("text", ["", "huge", "3-1", "-1", "0-9999", "1,,2", "1;2", "1.5"])
def test_what_is_no_core_is_refused_with_what_to_write(text: str) -> None:
    """The hint gives the forms."""
    with pytest.raises(UserError) as caught:
        parse_cores(text)
    assert "big, little, all" in (caught.value.hint or "")


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but a UserError comes of a wrong text, and no number outside 0 to 1023."""
    try:
        cores = parse_cores(text)
    except UserError:
        return
    assert isinstance(cores, str) or (cores == tuple(sorted(set(cores))) and 0 <= cores[0] <= cores[-1] <= 1023)


def test_clusters_are_the_devices_own() -> None:
    """big is the fastest cluster, little the slowest, all every core; numbers are left as they are."""
    for name, cores in (("big", (7,)), ("little", (0, 1, 2, 3)), ("all", tuple(range(8)))):
        assert with_cores_of(PHONE, Plan(cores=name)).cores == cores  # type: ignore[arg-type]
    assert with_cores_of(PHONE, Plan(cores=(2,))).cores == (2,)
    assert with_cores_of(PHONE, Plan()).cores is None


def test_a_device_of_equal_cores_has_no_big_ones() -> None:
    """The clusters that there are, are named; nothing is pinned quietly to something else."""
    alike = PHONE.model_copy(update={"clusters": (Cluster(cores=tuple(range(8)), max_khz=1_800_000),)})
    with pytest.raises(UserError, match="no big cores"):
        with_cores_of(alike, Plan(cores="big"))
