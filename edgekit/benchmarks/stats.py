"""Statistics of one run, derived from its raw samples on reading."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from edgekit.benchmarks.values import Run
from edgekit.report.model import LatencySummary

__all__ = [
    "cold_load_ns",
    "cold_process_ns",
    "inferring_ns",
    "median_interval_ranks",
    "stated_ratio",
    "summarize",
    "t_quantile",
]

_DISAGREEMENT = 0.10
"""Of the ratio by medians, by which the one by minima may differ before neither is believed."""


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


def inferring_ns(run: Run) -> int:
    """Wall time of the warm phase's inferences, warm-up included; the samples that were not kept by estimate."""
    return sum(run.latency_ns) * run.calls_per_sample * run.sampled_every + sum(run.warmup_ns)


def cold_load_ns(run: Run) -> int | None:
    """Median over the fresh processes of import + load + first inference; None without cold starts."""
    return _median([c.import_ns + c.load_ns + c.first_inference_ns for c in run.cold_starts])


def cold_process_ns(run: Run) -> int | None:
    """Median wall time of a fresh process, interpreter start included; None without cold starts."""
    return _median([c.process_ns for c in run.cold_starts])


def _median(values: list[int]) -> int | None:
    return round(float(np.median(values))) if values else None


@functools.lru_cache(maxsize=256)
def t_quantile(p: float, df: int) -> float:
    """The `p` quantile of Student's t with `df` degrees of freedom (a whole number), 0.5 <= p < 1."""
    if not 0.5 <= p < 1 or df < 1:
        raise ValueError(f"no quantile for p = {p}, {df} degrees of freedom")
    low, high = 0.0, 1.0
    while _t_central(high, df) < 2 * p - 1:
        low, high = high, high * 2
    for _ in range(80):
        middle = (low + high) / 2
        if _t_central(middle, df) < 2 * p - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _t_central(t: float, df: int) -> float:
    """P(|T| <= t): the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(df))
    cosine, sine = math.cos(angle), math.sin(angle)
    if df == 1:
        return 2 * angle / math.pi
    term, total = (1.0, 1.0) if df % 2 == 0 else (cosine, cosine)
    first = 1 if df % 2 == 0 else 2
    for k in range(first, df - 2, 2):
        term *= cosine * cosine * k / (k + 1)
        total += term
    return sine * total if df % 2 == 0 else 2 / math.pi * (angle + sine * total)
