"""Outputs of a device against the host's: equal where they should be, bounded with a reason elsewhere."""

import numpy as np
import pytest

from edgekit.benchmarks.host_match import match_host, why_not_exact
from edgekit.benchmarks.values import DeviceInfo, Plan, Run, RunStatus, RuntimeFacts
from edgekit.report.model import Verdict

RNG = np.random.default_rng(0)
REFERENCE = RNG.standard_normal((50, 10)).astype(np.float32)
HOST = (REFERENCE + RNG.normal(0, 0.01, REFERENCE.shape)).astype(np.float32)
HERE = DeviceInfo(spec="local", kind="local", serial="s", abi="x86_64", cpu_features=("avx2", "avx512_vnni"))


def run_of(**changes: object) -> Run:
    facts = {"name": "litert", "version": "2.3.0", "threads": 1, "delegate": "XNNPACK"} | changes
    return Run(
        job_key="k", attempt=1, status=RunStatus.OK, artifact_sha256="a", device_fingerprint="f", plan=Plan(),
        runner_sha256="r", inputs_sha256="i", runtime=RuntimeFacts.model_validate(facts),
    )  # fmt: skip


def test_one_bit_off_fails_where_nothing_excuses_it() -> None:
    """Same runtime, same processor: one value's last bit is enough, and equal passes."""
    off = HOST.copy()
    off[3, 4] = np.nextafter(off[3, 4], np.float32(9))
    assert match_host((HOST,), (HOST.copy(),), reference=REFERENCE, excuse=None).verdict is Verdict.PASS
    told = match_host((HOST,), (off,), reference=REFERENCE, excuse=None)
    assert (told.verdict, told.is_equal) == (Verdict.FAIL, False)
    assert "although" in told.reason


def test_another_processor_is_held_to_the_bound() -> None:
    """As far from PyTorch as the host in any direction passes; farther than that by half fails; both say why."""
    opposite = (2 * REFERENCE - HOST).astype(np.float32)  # mirrored about the reference: exactly twice as far apart
    excuse = "architecture: x86_64 here and aarch64 there"
    near = REFERENCE + (opposite - REFERENCE) * np.float32(0.99)  # float32 rounds the mirror: not on the edge itself
    assert match_host((HOST,), (near,), reference=REFERENCE, excuse=excuse).verdict is Verdict.PASS
    far = REFERENCE + (opposite - REFERENCE) * np.float32(1.5)
    told = match_host((HOST,), (far,), reference=REFERENCE, excuse=excuse)
    assert told.verdict is Verdict.FAIL
    assert "aarch64" in told.reason


def test_a_host_without_error_still_allows_rounding() -> None:
    """Where the host is PyTorch to the bit, float32 roundings are no fault of another processor."""
    other = np.nextafter(REFERENCE, np.float32(9))
    assert match_host((REFERENCE,), (other,), reference=REFERENCE, excuse="x").verdict is Verdict.PASS


@pytest.mark.parametrize("reference", [None, REFERENCE[:, :3]])
def test_nothing_to_bound_by_is_not_a_pass(reference: np.ndarray | None) -> None:
    """No PyTorch outputs of that shape: said, and not judged."""
    assert match_host((HOST,), (HOST + 1,), reference=reference, excuse="x").verdict is Verdict.NOT_GATED


def test_nan_is_equal_to_nan_only_in_its_place() -> None:
    """The same NaN on both is equal; on one alone it is a difference without a size."""
    broken = HOST.copy()
    broken[0, 0] = np.nan
    assert match_host((broken,), (broken.copy(),), reference=REFERENCE, excuse=None).is_equal
    told = match_host((HOST,), (broken,), reference=REFERENCE, excuse=None)
    assert (told.verdict, told.max_abs_difference) == (Verdict.FAIL, None)


@pytest.mark.parametrize(
    ("changes", "info", "named"),
    [
        ({"version": "2.4"}, {}, "runtime version: 2.3.0 here and 2.4 there"),
        ({"delegate": None}, {}, "delegate"),
        ({"threads": 2}, {}, "threads: 1 here and 2 there"),
        ({}, {"abi": "aarch64"}, "architecture"),
        ({}, {"cpu_features": ("avx2",)}, "processor features"),
        ({}, {"kernel": "6.1", "os": "Debian"}, None),
    ],
)
def test_what_excuses_a_difference_is_named(
    changes: dict[str, object], info: dict[str, object], named: str | None
) -> None:
    """Runtime, version, delegate, threads and instructions; not the kernel or the distribution."""
    told = why_not_exact(run_of(), run_of(**changes), HERE, HERE.model_copy(update=info))
    assert told == named or (named is not None and named in (told or ""))
