"""Two artifacts timed side by side: by turns on one device, so that what changes there meets both."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
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
    from edgekit.benchmarks.session import Session

__all__ = ["Pair", "Round", "Timed", "measure_pair", "take_turns"]

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
class Round:
    """One block of each of two artifacts, one after the other."""

    first: Run
    second: Run
    turned: bool
    """Whether the second was measured before the first."""


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
    from edgekit.benchmarks.session import measuring_on

    runs: list[Round] = []
    with measuring_on(device, store, wait_seconds=60) as session:
        info = session.info
        turns = take_turns(session, (before, after), plan, work_dir=work_dir, seed=0, on_block=on_progress)
        for turn in itertools.islice(turns, rounds):
            for (artifact, _), run in zip((before, after), (turn.first, turn.second), strict=True):
                if run.status is not RunStatus.OK or not run.latency_ns:
                    raise MeasurementError(
                        f"{artifact.passport.name}: {run.status}: {run.error or 'no samples'}", device=info.spec
                    )
            runs.append(turn)
    first, second = _timed([turn.first for turn in runs]), _timed([turn.second for turn in runs])
    return Pair(before=first, after=second, device=info.spec, emulated=info.emulated)


def take_turns(
    session: Session,
    pair: tuple[tuple[Artifact, InputSet], tuple[Artifact, InputSet]],
    plan: Plan,
    *,
    work_dir: Path,
    seed: int,
    on_block: Callable[[str], None] | None = None,
) -> Iterator[Round]:
    """Rounds without end, each measured when it is asked for; every run is stored, whatever its status.

    Which of the two is first is drawn (`seed`) for each odd round and turned about in the next: A B, B A.
    Raises what `measure` raises.
    """
    from edgekit.benchmarks.harness import measure

    place, info, store = session.device, session.info, session.store
    draw = random.Random(seed)  # noqa: S311  an order, no secret
    turned = False
    for number in itertools.count(1):
        turned = bool(draw.getrandbits(1)) if number % 2 else not turned
        runs: dict[int, Run] = {}
        for which in (1, 0) if turned else (0, 1):
            artifact, inputs = pair[which]
            if on_block is not None:
                on_block(f"{artifact.passport.name} on {info.spec}, turn {number}")
            for _ in range(2):
                begun = time.monotonic_ns()
                run = measure(place, info, artifact, inputs, plan, store=store, work_dir=work_dir, fresh=True)
                if sum(run.phase_ns.values()) <= time.monotonic_ns() - begun:
                    break  # else it was begun by a call that was interrupted: measured then, not beside the other
            runs[which] = run
        yield Round(first=runs[0], second=runs[1], turned=turned)


def _timed(runs: list[Run]) -> Timed:
    samples = [sample for run in runs for sample in run.latency_ns]
    held = [
        run.memory.peak_rss_bytes - run.memory.baseline_rss_bytes
        for run in runs
        if run.memory and run.memory.peak_rss_bytes is not None and run.memory.baseline_rss_bytes is not None
    ]
    return Timed(min_ns=min(samples), p50_ns=round(median(samples)), memory_bytes=min(held, default=None))
