"""Two artifacts timed side by side: by turns on one device, so that what changes there meets both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from edgekit.benchmarks.values import Plan, Run, RunStatus
from edgekit.errors import MeasurementError

if TYPE_CHECKING:
    from edgekit.artifact import Artifact
    from edgekit.benchmarks.inputs import InputSet
    from edgekit.benchmarks.journal import Store

__all__ = ["Pair", "Timed", "measure_pair"]

_PLAN = Plan(
    cold_starts=0,
    warmup_max_seconds=1.0,
    min_samples=50,
    min_seconds=0.5,
    max_seconds=10.0,
    memory=True,
    accuracy=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One artifact over all its turns."""

    min_ns: int
    p50_ns: int
    """Of all samples together."""
    memory_bytes: int | None
    """The smallest peak, less what the runtime takes by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Before and after, on one device."""

    before: Timed
    after: Timed
    device: str
    emulated: bool

    @property
    def by_min(self) -> float:
        return self.before.min_ns / self.after.min_ns

    @property
    def by_p50(self) -> float:
        return self.before.p50_ns / self.after.p50_ns


def measure_pair(
    before: tuple[Artifact, InputSet],
    after: tuple[Artifact, InputSet],
    device: str,
    *,
    store: Store,
    work_dir: Path,
    rounds: int = 3,
    plan: Plan = _PLAN,
    on_progress: Callable[[str], None] | None = None,
) -> Pair:
    """Both artifacts, each with its inputs, measured `rounds` times in turn.

    Raises DeviceError and its kin, MeasurementError where a run does not end well.
    """
    from edgekit.benchmarks.devices.base import Deadline
    from edgekit.benchmarks.devices.lease import hold_device
    from edgekit.benchmarks.devices.registry import open_device
    from edgekit.benchmarks.harness import measure

    runs: tuple[list[Run], list[Run]] = ([], [])
    with open_device(device) as place:
        info = place.probe(Deadline.after(60))
        with hold_device(info, Deadline.after(60), store) as held:
            for turn in range(rounds):
                for (artifact, inputs), done in zip((before, after), runs, strict=True):
                    if on_progress is not None:
                        on_progress(f"{artifact.passport.name} on {info.spec}, turn {turn + 1} of {rounds}")
                    run = measure(place, info, artifact, inputs, plan, store=held, work_dir=work_dir, fresh=True)
                    if run.status is not RunStatus.OK or not run.latency_ns:
                        raise MeasurementError(
                            f"{artifact.passport.name}: {run.status}: {run.error or 'no samples'}", device=info.spec
                        )
                    done.append(run)
    first, second = (_timed(done) for done in runs)
    return Pair(before=first, after=second, device=info.spec, emulated=info.emulated)


def _timed(runs: list[Run]) -> Timed:
    samples = [sample for run in runs for sample in run.latency_ns]
    held = [
        run.memory.peak_rss_bytes - run.memory.baseline_rss_bytes
        for run in runs
        if run.memory and run.memory.peak_rss_bytes is not None and run.memory.baseline_rss_bytes is not None
    ]
    return Timed(min_ns=min(samples), p50_ns=round(median(samples)), memory_bytes=min(held, default=None))
