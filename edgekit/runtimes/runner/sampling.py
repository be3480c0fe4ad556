"""The measuring loop: warm up until stable, then sample."""

import gc
import time
from typing import Callable, Optional

from . import MAX_SAMPLES

_NS = 1_000_000_000
_WINDOW = 10
"""Runs whose quartiles are compared; the smallest number for which quartiles say something."""


def quartiles(values: list[int]) -> tuple[float, float, float]:
    """First quartile, median, third quartile, linearly interpolated (type 7 of Hyndman and Fan 1996)."""
    ordered = sorted(values)

    def at(fraction: float) -> float:
        position = fraction * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    return at(0.25), at(0.5), at(0.75)


def is_stable(samples: list[int], window: int = _WINDOW) -> bool:
    """Whether the last two windows tell the same: each one's median lies between the other's quartiles."""
    if len(samples) < 2 * window:
        return False
    low0, median0, high0 = quartiles(samples[-2 * window : -window])
    low1, median1, high1 = quartiles(samples[-window:])
    return low0 <= median1 <= high0 and low1 <= median0 <= high1


def warm_up(infer: Callable[[int], object], min_runs: int, max_seconds: float) -> tuple[list[int], bool]:
    """(durations in ns, whether they became stable); at least `min_runs`, then until stable or out of time.

    `infer(i)` is one inference on the i-th prepared input.
    """
    now = time.perf_counter_ns
    samples: list[int] = []
    end = now() + int(max_seconds * _NS)
    while len(samples) < MAX_SAMPLES:
        begun = now()
        infer(len(samples))
        ended = now()
        samples.append(ended - begun)
        if len(samples) < min_runs:
            continue
        if len(samples) % _WINDOW == 0 and is_stable(samples):
            return samples, True
        if ended >= end:
            break
    return samples, is_stable(samples)


def sample(
    infer: Callable[[int], object],
    expected_ns: Optional[float],
    min_samples: int,
    min_seconds: float,
    max_seconds: float,
) -> dict[str, object]:
    """`latency_ns`, `sampled_every`, `stopped_by`: until both minima are reached, or `max_seconds`.

    Where `min_seconds` would give more than MAX_SAMPLES at `expected_ns` each, every k-th inference is kept,
    so that the samples still span the whole time. Collection of garbage is off meanwhile.
    """
    every = 1
    if expected_ns:
        every = max(1, -(-int(min_seconds * _NS / expected_ns) // MAX_SAMPLES))
    kept: list[int] = []
    runs = 0
    now = time.perf_counter_ns
    gc.collect()
    gc.disable()
    try:
        start = now()
        while True:
            begun = now()
            infer(runs)
            ended = now()
            if runs % every == 0:
                if len(kept) == MAX_SAMPLES:  # faster than the warm-up promised: keep every other from here on
                    kept = kept[::2]
                    every *= 2
                kept.append(ended - begun)
            runs += 1
            if len(kept) >= min_samples and ended - start >= min_seconds * _NS:
                stopped = "minimum reached"
                break
            if ended - start >= max_seconds * _NS:
                stopped = "max_seconds"
                break
    finally:
        gc.enable()
    return {"latency_ns": kept, "sampled_every": every, "stopped_by": stopped}
