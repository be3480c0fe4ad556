"""Statistics of one run, derived from its raw samples on reading."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekit.benchmarks.values import Run
from edgekit.report.model import LatencySummary

__all__ = ["cold_load_ns", "cold_process_ns", "doubts", "median_interval_ranks", "stated_ratio", "summarize"]

_CV_LIMIT = 0.10
"""ExecuTorch's device farm gives a run with this coefficient of variation no stability score."""
_DRIFT_LIMIT = 0.05
_DISAGREEMENT = 0.10
"""Of the ratio by medians, by which the one by minima may differ before neither is believed."""
_FEW = 50
_ASHMAN_D = 4.0
"""Two modes are apart from D > 2 (Ashman, Bird and Zepf 1994) where the two are known; a single normal mode cut
in two has D = 2.65 and a uniform one 3.46, so only what exceeds both by far counts."""


def summarize(samples: Sequence[int]) -> LatencySummary:
    """Minimum, percentiles, mean, spread, and the 95 % interval of the median; nanoseconds. Needs one sample."""
    values = np.sort(np.asarray(samples, dtype=np.int64))
    p10, p50, p90, p99 = np.percentile(values, [10, 50, 90, 99])
    low, high = median_interval_ranks(len(values))
    return LatencySummary(
        samples=len(values),
        min_ns=int(values[0]),
        p10_ns=round(float(p10)),
        p50_ns=round(float(p50)),
        p90_ns=round(float(p90)),
        p99_ns=round(float(p99)),
        mean_ns=round(float(values.mean())),
        stdev_ns=round(float(values.std(ddof=1))) if len(values) > 1 else 0,
        p50_low_ns=int(values[low]),
        p50_high_ns=int(values[high]),
    )


def stated_ratio(by_min: float, by_p50: float) -> float | None:
    """The ratio of two latencies that may be stated, by medians; None where minima and medians tell different ones.

    They may differ by a tenth: what is slowed from outside is slowed in its median, not in its minimum.
    """
    return by_p50 if abs(by_min / by_p50 - 1) <= _DISAGREEMENT else None


def median_interval_ranks(n: int) -> tuple[int, int]:
    """Positions (from 0) of the order statistics that hold the median with at least 95 %.

    The narrowest symmetric pair with P(Binomial(n, 1/2) < r) <= 2.5 % on each side (David and Nagaraja, Order
    Statistics, 7.1). Below six samples no pair reaches 95 % and the whole range is given.
    """
    if n > 1000:  # the normal limit; at n = 1000 it agrees with the exact rank
        r = math.floor((n - 1.959964 * math.sqrt(n)) / 2)
        return r - 1, n - r
    total, cumulative, r = 2**n, 0, 0
    while r < n // 2:
        cumulative += math.comb(n, r)
        if cumulative * 40 > total:
            break
        r += 1
    return max(0, r - 1), n - max(1, r)


def cold_load_ns(run: Run) -> int | None:
    """Median over the fresh processes of import + load + first inference; None without cold starts."""
    return _median([c.import_ns + c.load_ns + c.first_inference_ns for c in run.cold_starts])


def cold_process_ns(run: Run) -> int | None:
    """Median wall time of a fresh process, interpreter start included; None without cold starts."""
    return _median([c.process_ns for c in run.cold_starts])


def _median(values: list[int]) -> int | None:
    return round(float(np.median(values))) if values else None


def doubts(run: Run) -> tuple[str, ...]:
    """What makes the latency of `run` doubtful: its own flags, then too few, too noisy, drifting, two modes."""
    found = list(run.flags)
    if run.stopped_by == "max_seconds":
        found.append(f"sampling stopped at {run.plan.max_seconds:g} s with {len(run.latency_ns)} samples")
    if not run.latency_ns:
        return tuple(found)
    samples = np.asarray(run.latency_ns, dtype=np.float64)
    if len(samples) < _FEW:
        found.append(f"only {len(samples)} samples")
        return tuple(found)
    variation = float(samples.std(ddof=1) / samples.mean())
    if variation >= _CV_LIMIT:
        found.append(f"noisy: the samples vary by {variation:.0%} (standard deviation over mean)")
    third = len(samples) // 3
    drift = float(np.median(samples[-third:]) / np.median(samples[:third]) - 1)
    if abs(drift) > _DRIFT_LIMIT:
        found.append(f"drifting: the last third is {drift:+.0%} against the first")
    modes = _two_modes(samples)
    if modes is not None:
        found.append(f"two modes: {modes[0] / 1e3:.4g} µs and {modes[1] / 1e3:.4g} µs")
    return tuple(found)


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
    if high.mean() - low.mean() <= _ASHMAN_D * spread:
        return None
    return float(np.exp(np.median(low))), float(np.exp(np.median(high)))
