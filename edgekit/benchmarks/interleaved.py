"""Is B slower than A? Measured by turns on one device until the interval of the ratio decides.

A round is one block of each, in fresh processes, so that what differs between processes (where memory lies, which
core) is in the spread and not in the answer (Kalibera and Jones, Rigorous Benchmarking in Reasonable Time, ISMM
2013). The two follow each other, so that what changes on the device meets both; the order is drawn for one round
and turned about in the next (A B B A), so that a steady drift cancels. Interleaving in random order is what held
on machines whose speed varies (Abedi and Brecht, Conducting Repeatable Experiments in Highly Variable Cloud
Computing Environments, ICPE 2017).

The interval is Student's for the mean of the rounds' log ratios of medians: rounds are the units that repeat, the
samples inside a block are not independent. It is looked at after each number of rounds in `LOOKS` and nowhere else,
with the error of 5 % shared out evenly among the looks (Bonferroni), so that stopping at the first look that
decides does not raise it: whatever the true ratio, a wrong FAIL, or a wrong PASS, has a chance of at most 2.5 %.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgekit.benchmarks.comparison import differences
from edgekit.benchmarks.side_by_side import Round
from edgekit.benchmarks.stability import invalid_reasons, judge_stability
from edgekit.benchmarks.stats import stated_ratio, t_quantile
from edgekit.benchmarks.values import DeviceInfo, Run, RunStatus
from edgekit.report.model import Verdict

__all__ = ["LOOKS", "Interleaved", "Interval", "Judged", "compare_rounds", "interval_of", "judge_look"]

LOOKS = (4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of rounds after which the interval is looked at; even, so that each order was had equally often."""
ERROR = 0.05
"""Both sides and all looks together."""
_REMEDY = "raise --budget, end other programs, set the governor `performance`, or pin to cores"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """B's time over A's: by medians with its interval, and by minima; geometric means over the rounds."""

    ratio: float
    low: float
    high: float
    by_min: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One look: the interval, and the verdict if it decides."""

    interval: Interval
    verdict: Verdict | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interleaved:
    """What came of it. `interval` is None where fewer than the first look's rounds were had."""

    verdict: Verdict
    reasons: tuple[str, ...]
    interval: Interval | None
    rounds: tuple[Round, ...]
    discarded: tuple[str, ...]
    """Why a round was not counted, each naming its round; its runs are stored all the same."""
    seconds: float
    emulated: bool = False


def interval_of(rounds: Sequence[tuple[float, float]], look: int) -> Interval:
    """The interval at look `look` (from 0) of rounds given as (log ratio of medians, of minima); needs two."""
    logs, minima = (np.asarray(column, dtype=np.float64) for column in zip(*rounds, strict=True))
    n = len(logs)
    half = t_quantile(1 - ERROR / len(LOOKS) / 2, n - 1) * float(logs.std(ddof=1)) / math.sqrt(n)
    centre = float(logs.mean())
    return Interval(
        ratio=math.exp(centre),
        low=math.exp(centre - half),
        high=math.exp(centre + half),
        by_min=math.exp(float(minima.mean())),
    )


def judge_look(rounds: Sequence[tuple[float, float]], look: int, max_regress: float) -> Judged:
    """PASS where B is at most `max_regress` slower by the whole interval, FAIL where it is slower by all of it."""
    interval, limit = interval_of(rounds, look), 1 + max_regress
    told = f"x {interval.ratio:.4f} ({interval.low:.4f} to {interval.high:.4f}), allowed x {limit:.4f}"
    verdict = Verdict.PASS if interval.high <= limit else Verdict.FAIL if interval.low > limit else None
    if verdict is None:
        return Judged(interval=interval, verdict=None, reason=f"the interval holds the limit: {told}")
    if stated_ratio(interval.by_min, interval.ratio) is None:
        told += f"; by minima x {interval.by_min:.4f}"
        if (interval.by_min <= limit) != (interval.ratio <= limit):
            return Judged(
                interval=interval, verdict=None, reason=f"{told}: the two differ in load, not only in the model"
            )
        told += ": how much is not sure, since they differ by over 10 %; on which side of the limit is"
    return Judged(interval=interval, verdict=verdict, reason=told)


def compare_rounds(
    turns: Iterator[Round],
    info: DeviceInfo,
    *,
    max_regress: float,
    budget_seconds: float,
    on_round: Callable[[int, Interval | None], None] | None = None,
) -> Interleaved:
    """The verdict over `turns`, taken until a look decides, the looks are over, or no further round fits the budget.

    NOISY where nothing was decided; INCOMPARABLE, naming the difference, where the two were not measured alike or A
    itself did not run; FAIL where B did not run. A round with a run that is not valid does not count.
    """
    course = _Course(info=info, max_regress=max_regress, budget_seconds=budget_seconds)
    while course.has_time:
        verdict = course.take(turns)
        if on_round is not None and course.counted:
            on_round(len(course.counted), course.interval)
        if verdict is not None:
            return course.ended(*verdict)
    return course.ended(*course.last_look())


@dataclass(kw_only=True)
class _Course:
    """The rounds so far, and the looks at them."""

    info: DeviceInfo
    max_regress: float
    budget_seconds: float
    taken: list[Round] = field(default_factory=list)
    counted: list[tuple[float, float]] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    look: int = 0
    """How many looks there were; the next one spends the share of this number."""
    judged: Judged | None = None
    begun: float = field(default_factory=time.monotonic)
    longest: float = 0.0

    @property
    def has_time(self) -> bool:
        """Whether a further round fits the budget, by the longest so far, and there is a look left to take it to."""
        spent = time.monotonic() - self.begun
        is_open = self.look < len(LOOKS) and len(self.taken) < 2 * LOOKS[-1]
        return is_open and spent + self.longest <= self.budget_seconds

    @property
    def interval(self) -> Interval | None:
        """Of the rounds so far, as wide as the next look would have it."""
        return interval_of(self.counted, self.look) if len(self.counted) > 1 else None

    def take(self, turns: Iterator[Round]) -> tuple[Verdict, tuple[str, ...]] | None:
        """One more round; the verdict with its reasons where that ends it."""
        started = time.monotonic()
        turn = next(turns)
        self.longest = max(self.longest, time.monotonic() - started)
        self.taken.append(turn)
        for which, run, verdict in (("A", turn.first, Verdict.INCOMPARABLE), ("B", turn.second, Verdict.FAIL)):
            if run.status not in (RunStatus.OK, RunStatus.LOST):
                return verdict, (f"{which} does not run: {run.status.value}: {run.error or 'no reason given'}",)
        spoilt = [f"{w}: {r}" for w, run in (("A", turn.first), ("B", turn.second)) for r in invalid_reasons(run)]
        if spoilt:
            self.discarded.append(f"round {len(self.taken)} does not count: {'; '.join(spoilt)}")
            return None
        unlike = _unlike(self.taken, turn, self.info)
        if unlike:
            return Verdict.INCOMPARABLE, unlike
        self.counted.append((_log_ratio(turn, 50), _log_ratio(turn, 0)))
        return self._look() if len(self.counted) == LOOKS[self.look] else None

    def _look(self) -> tuple[Verdict, tuple[str, ...]] | None:
        self.judged = judge_look(self.counted, self.look, self.max_regress)
        if self.judged.verdict is not None:
            return self.judged.verdict, (self.judged.reason,)
        self.look += 1
        return None

    def last_look(self) -> tuple[Verdict, tuple[str, ...]]:
        """The verdict when the budget is over: one look more where there are rounds that none was taken at."""
        fresh = self.look < len(LOOKS) and len(self.counted) > (LOOKS[self.look - 1] if self.look else LOOKS[0] - 1)
        if fresh:
            decided = self._look()
            if decided is not None:
                return decided
        if self.judged is None:
            told = f"{len(self.counted)} rounds counted, {LOOKS[0]} are needed: raise --budget"
            return Verdict.NOISY, (told,)
        return Verdict.NOISY, (self.judged.reason, _REMEDY)

    def ended(self, verdict: Verdict, reasons: tuple[str, ...]) -> Interleaved:
        """The result, with what a reader should know besides."""
        return Interleaved(
            verdict=verdict,
            reasons=(*reasons, *_remarks(self.taken, self.discarded, self.info)),
            emulated=self.info.emulated,
            interval=self.judged.interval if self.judged else self.interval,
            rounds=tuple(self.taken),
            discarded=tuple(self.discarded),
            seconds=time.monotonic() - self.begun,
        )


def _log_ratio(turn: Round, percentile: float) -> float:
    a, b = (float(np.percentile(run.latency_ns, percentile)) for run in (turn.first, turn.second))
    return math.log(b / a)


def _unlike(taken: Sequence[Round], turn: Round, info: DeviceInfo) -> tuple[str, ...]:
    """What differs between this round's two, or from the first valid round, of the same artifact."""
    found = differences(turn.first, turn.second, info, info)
    if found:
        return found
    earlier: Run | None = next((t.first for t in taken if not invalid_reasons(t.first)), None)
    told = differences(earlier, turn.first, info, info) if earlier is not None else ()
    return tuple(f"changed while comparing: {d}" for d in told)


def _remarks(taken: Sequence[Round], discarded: Sequence[str], info: DeviceInfo) -> list[str]:
    """What a reader should know besides the verdict: emulation, unsteady blocks, rounds that were left out."""
    found = []
    if info.emulated:
        found.append(f"emulated, not a hardware latency: {info.emulation or info.spec}")
    unsteady = [run for t in taken for run in (t.first, t.second) if run.latency_ns]
    noisy = [s for s in map(judge_stability, unsteady) if s.verdict is Verdict.NOISY]
    if noisy:
        kinds = sorted({d.kind for s in noisy for d in s.doubts if d.decides})
        found.append(f"{len(noisy)} of {len(unsteady)} blocks are unsteady by themselves ({', '.join(kinds)})")
    return found + list(discarded)
