"""Whether a run may be believed: is it valid at all, and is its latency steady enough to be stated.

Each reason comes with what to do about it. Nothing here changes a number; a run that is not valid is never pooled
with others, and a NOISY one is never called a speed-up.
"""

from __future__ import annotations

import itertools
import math
import re

import numpy as np

from edgekit.benchmarks.values import Conditions, Run, RunStatus
from edgekit.report.model import Doubt, Stability, Verdict

__all__ = ["invalid_reasons", "judge_stability"]

MAX_VARIATION = 0.10
"""Standard deviation over mean. `pyperf check` calls a benchmark unstable from here, and ExecuTorch's device farm
gives a run with this coefficient of variation no stability score."""
MAX_DRIFT = 0.05
"""Of the latency over the whole run; the spread of repeated runs from which they count as not repeatable."""
MAX_LOAD_GAP = 0.10
"""Of the median over the fast tenth. What is slowed from outside is slowed in its median, not in its fastest
samples: on a loaded machine one median moved 60 % while the minimum moved 2 %."""
FEW_SAMPLES = 50
"""Below it the 10 % and 90 % points rest on fewer than five samples each."""
SHORT_NS = 100_000_000
"""25 ticks of a 250 Hz scheduler: less than that may lie between two interruptions, or wholly within one."""
DRIFT_BLOCKS = 20
ASHMAN_D = 4.0
"""Two modes are apart from D > 2 (Ashman, Bird and Zepf 1994) where the two are known; a single normal mode cut
in two has D = 2.65 and a uniform one 3.46, so only what exceeds both by far counts."""
CLOCK_CHANGE = 0.05
"""Of a core's clock under the governor `performance`, which lowers it only where the hardware makes it."""

_Z_ONE_PERCENT = 2.5758293035489004
_SPOILT = re.compile(
    r"\b(thermal|throttl\w*|overheat\w*|too hot|reboot\w*|restarted|frequency changed|measured all the same)\b",
    re.IGNORECASE,
)
"""Flags that say the device was not itself while it measured."""


def judge_stability(run: Run) -> Stability:
    """PASS, or NOISY with each reason: too few or too short samples, spread, drift, two modes, load.

    Slow outliers (under 1 % of the samples) that alone make the spread are told and do not make a run NOISY: they
    move mean and p99, not the median. A run without latencies is NOISY.
    """
    if not run.latency_ns:
        return Stability(
            verdict=Verdict.NOISY,
            doubts=(_doubt("few", "there are no samples", "see the run's error: nothing was timed"),),
        )
    samples = np.asarray(run.latency_ns, dtype=np.float64)
    doubts = [d for d in _of_amount(run) if d]
    if len(samples) >= FEW_SAMPLES:
        doubts += [d for d in (_spread(samples), _drift(samples), _modes(samples), _load(samples)) if d]
    noisy = any(d.decides for d in doubts)
    return Stability(verdict=Verdict.NOISY if noisy else Verdict.PASS, doubts=tuple(doubts))


def invalid_reasons(run: Run) -> tuple[str, ...]:
    """Why `run` must not be averaged with others or compared; empty where it is valid.

    It did not end well, has fewer samples than its plan asked for, or the device changed under it: heat, a restart,
    the governor, or clocks lowered in spite of the governor `performance`.
    """
    found = []
    if run.status is not RunStatus.OK:
        why = (run.error or "no reason given").splitlines()[0]
        found.append(f"the run is {run.status.value}: {why}")
    elif not run.latency_ns:
        found.append("the run has no samples")
    elif run.stopped_by == "max_seconds" and len(run.latency_ns) < min(run.plan.min_samples, FEW_SAMPLES):
        found.append(f"{len(run.latency_ns)} of {run.plan.min_samples} samples in {run.plan.max_seconds:g} s")
    if run.latency_ns and min(run.latency_ns) < 1:
        found.append("a sample of 0 ns: the device's clock is too coarse for this model, or stands still")
    found += [flag for flag in run.flags if _SPOILT.search(flag)]
    moments = [m for m in (run.before, *(b.state for b in run.blocks), run.after) if m is not None]
    for earlier, later in itertools.pairwise(moments):
        found += [change for change in _changes(earlier, later) if change not in found]
    return tuple(found)


def _changes(before: Conditions, after: Conditions) -> list[str]:
    found = []
    if after.monotonic_ns < before.monotonic_ns:
        found.append("the device was restarted while it measured: its clock ran backwards")
    if before.governor != after.governor:
        found.append(f"the governor changed from {before.governor} to {after.governor}")
    if before.governor == after.governor == "performance":
        for cpu, khz in sorted(before.cpu_khz.items()):
            now = after.cpu_khz.get(cpu, khz)
            if khz and now < khz * (1 - CLOCK_CHANGE):
                found.append(f"{cpu} was slowed from {khz / 1000:.0f} to {now / 1000:.0f} MHz (heat or power)")
    return found


def _doubt(kind: str, told: str, remedy: str, *, decides: bool = True) -> Doubt:
    return Doubt(kind=kind, told=told, remedy=remedy, decides=decides)


def _of_amount(run: Run) -> list[Doubt | None]:
    count, seconds = len(run.latency_ns), run.plan.max_seconds
    total = sum(run.latency_ns) * run.sampled_every * run.calls_per_sample
    cut = few = short = None
    if run.stopped_by == "max_seconds":
        told = f"sampling stopped at {seconds:g} s with {count} samples"
        cut = _doubt("cut", told, "raise plan.max_seconds, or ask for fewer samples", decides=False)
    if count < FEW_SAMPLES:
        few = _doubt("few", f"only {count} samples", f"raise plan.min_samples to {FEW_SAMPLES} or more")
    if total < SHORT_NS:
        told = f"timed for only {total / 1e6:.3g} ms in all"
        short = _doubt("short", told, "raise plan.min_seconds to 0.5 or more")
    return [cut, few, short]


def _spread(samples: np.ndarray) -> Doubt | None:
    variation = float(samples.std(ddof=1) / samples.mean())
    if variation < MAX_VARIATION:
        return None
    kept = np.sort(samples)[: max(2, math.ceil(len(samples) * 0.99))]
    if float(kept.std(ddof=1) / kept.mean()) < MAX_VARIATION:
        slow = float(samples.max() / np.median(samples))
        told = f"outliers: the slowest 1 % reach {slow:.3g} times the median; mean and p99 say little"
        remedy = "judge by median and p90; pin to cores (plan.cores) and end other programs"
        return _doubt("outliers", told, remedy, decides=False)
    told = f"noisy: the samples vary by {variation:.0%} (standard deviation over mean)"
    return _doubt("spread", told, "end other programs, set the governor `performance`, pin to cores (plan.cores)")


def _drift(samples: np.ndarray) -> Doubt | None:
    """A trend over the run: the Mann-Kendall test on block medians (1 % level) and Theil-Sen's slope (Sen 1968).

    Medians of 20 blocks, because neighbouring samples are alike and the test wants independent ones; both are of
    ranks and medians, so that a few outliers make no trend.
    """
    blocks = np.array([float(np.median(b)) for b in np.array_split(samples, DRIFT_BLOCKS)])
    n = len(blocks)
    first, second = np.triu_indices(n, k=1)
    gaps = blocks[second] - blocks[first]
    score = float(np.sign(gaps).sum())
    _, ties = np.unique(blocks, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0 or (abs(score) - 1) / math.sqrt(variance) <= _Z_ONE_PERCENT:
        return None
    slope = float(np.median(gaps / (second - first)))
    change = slope * (n - 1) / float(np.median(blocks))
    if abs(change) <= MAX_DRIFT:
        return None
    told = f"drifting: {change:+.0%} over the run"
    slower = "let it cool before it measures (plan.max_temperature_c), or fan it; a rising time is mostly heat"
    quicker = "raise plan.warmup_max_seconds and min_samples; a falling time is mostly warm-up or load that ended"
    return _doubt("drift", told, slower if change > 0 else quicker)


def _load(samples: np.ndarray) -> Doubt | None:
    low, p10, p50 = float(samples.min()), *(float(x) for x in np.percentile(samples, [10, 50]))
    if p50 / p10 - 1 <= MAX_LOAD_GAP:
        return None
    told = f"loaded: the median is {p50 / p10 - 1:.0%} over the fast tenth (and {p50 / low - 1:.0%} over the minimum)"
    return _doubt("load", told, "other work slows it: measure on an idle device, or believe the minimum only")


def _modes(samples: np.ndarray) -> Doubt | None:
    modes = _two_modes(samples)
    if modes is None:
        return None
    told = f"two modes: {modes[0] / 1e3:.4g} µs and {modes[1] / 1e3:.4g} µs"
    return _doubt("modes", told, "two clocks or two kinds of core: fix the governor, pin to one cluster (plan.cores)")


def _two_modes(samples: np.ndarray) -> tuple[float, float] | None:
    """Centres of two well separated groups of at least a tenth each, or None.

    The middle 90 % of the logarithms are cut where the variance between the parts is largest (Otsu 1979); the
    parts count as modes when Ashman's D between them is over 4 and their centres are more than 5 % apart.
    """
    values = np.log(np.sort(samples))
    values = values[len(values) // 20 : len(values) - len(values) // 20]
    n = len(values)
    left = np.arange(1, n)
    sums = np.cumsum(values)[:-1]
    mean_left, mean_right = sums / left, (values.sum() - sums) / (n - left)
    cut = int(np.argmax(left * (n - left) * (mean_left - mean_right) ** 2)) + 1
    low, high = values[:cut], values[cut:]
    if min(len(low), len(high)) < n / 10 or high.mean() - low.mean() < math.log(1.05):
        return None
    spread = math.sqrt((float(low.var()) + float(high.var())) / 2)
    if high.mean() - low.mean() <= ASHMAN_D * spread:
        return None
    return float(np.exp(np.median(low))), float(np.exp(np.median(high)))
