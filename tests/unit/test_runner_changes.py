"""What the runner says of a device that changed while it measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import doubles

from edgekit.benchmarks.values import Plan as HostPlan
from edgekit.runtimes.runner.changes import changes
from edgekit.runtimes.runner.gates import waited_seconds_of
from edgekit.runtimes.runner.job import Job, Plan

SECOND = 10**9


def plan(**wanted: Any) -> Plan:
    return Plan(**(HostPlan().model_dump(mode="json") | wanted))


def moment(second: float, **told: Any) -> dict[str, Any]:
    """The conditions `second` seconds after the start, the wall clock in step."""
    at = round(second * SECOND)
    quiet = {"temperature_milli_c": {}, "cpu_khz": {}, "cpu_limit_khz": {}}
    return {"monotonic_ns": at, "wall_ns": 1_700_000_000 * SECOND + at, **quiet, **told}


def told(before: dict[str, Any], *rest: dict[str, Any], **wanted: Any) -> list[str]:
    *sampled, after = rest
    return changes(before, sampled, after, plan(**wanted))


def test_a_steady_device_gives_no_flag() -> None:
    """Clocks that move by less than 5 %, a time server that slews by 0.4 s: nothing to say."""
    clocks = [{"cpu0": khz} for khz in (2_000_000, 1_950_000, 2_010_000)]
    slewed = moment(9) | {"wall_ns": moment(9)["wall_ns"] + 400_000_000}
    assert told(moment(0), *(moment(i + 1, cpu_khz=c) for i, c in enumerate(clocks)), slewed) == []


def test_a_lowered_limit_is_throttling() -> None:
    """The kernel lowers the limit of a hot cluster: flagged with both clocks, by the word that makes a run invalid."""
    high, low = {"cpu0": 2_400_000, "cpu4": 1_800_000}, {"cpu0": 1_500_000, "cpu4": 1_800_000}
    flags = told(moment(0, cpu_limit_khz=high), moment(1, cpu_limit_khz=low), moment(2, cpu_limit_khz=high))
    assert flags == ["throttled while it measured: the limit of cpu0 fell from 2400 MHz to 1500 MHz"]


def test_clocks_are_those_of_the_cores_that_work() -> None:
    """Cores that rest, and clocks before and after the samples, are no change; the pinned core's are."""
    blocks = [moment(1, cpu_khz={"cpu0": 400_000, "cpu4": 2_000_000}), moment(2, cpu_khz={"cpu0": 2_000_000})]
    blocks[1]["cpu_khz"]["cpu4"] = 2_000_000
    idle = {"cpu0": 400_000, "cpu4": 400_000}
    ends = moment(0, cpu_khz=idle), moment(3, cpu_khz=idle)
    assert told(ends[0], *blocks, ends[1]) == []
    assert told(ends[0], *blocks, ends[1], cores=[4]) == []
    assert told(ends[0], *blocks, ends[1], cores=[0]) == ["clocks between 400 MHz and 2000 MHz while it was sampled"]


def test_heat_over_the_plans_bound_is_told() -> None:
    """Only where the plan has a bound; the zone and both temperatures are named."""
    hot = moment(1, temperature_milli_c={"cpu": 71_500, "skin": 40_000})
    assert told(moment(0), hot, moment(2)) == []
    assert told(moment(0), hot, moment(2), max_temperature_c=60.0) == [
        "cpu reached 71.5 °C while it measured, over 60 °C"
    ]


@pytest.mark.parametrize("seconds", [-3600.0, -0.6, 0.6, 1e8])
def test_a_wall_clock_that_jumps_is_told(seconds: float) -> None:
    """Set forwards or back by more than half a second between any two moments."""
    after = moment(2) | {"wall_ns": moment(2)["wall_ns"] + round(seconds * SECOND)}
    (flag,) = told(moment(0), moment(1), after)
    assert f"moved by {seconds:+.1f} s" in flag


def test_the_gates_share_their_time(tmp_path: Path) -> None:
    """What the cold starts waited is no longer there for the samples; a folder of any name is read."""
    folder = tmp_path / "a [1]*"
    folder.mkdir()
    for number, seconds in enumerate((1.5, 0, 4)):
        (folder / f"phase-cold-{number}.json").write_text(json.dumps({"waited_ns": round(seconds * SECOND)}))
    job = Job(
        directory=str(folder),
        job="k.1",
        runtime="double",
        backend_file=None,
        model="m",
        inputs=(),
        outputs=(),
        batch=1,
        plan=plan(),
    )
    assert waited_seconds_of(job) == pytest.approx(5.5)


def test_the_plans_of_host_and_runner_agree() -> None:
    """A field of one that the other lacks would be a job no runner reads."""
    assert set(doubles.QUICK.model_dump()) == set(Plan._fields)
