"""The measuring loop: warm up until stable, then sample in blocks."""

import gc
import time
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any, Callable, Optional

from . import MAX_SAMPLES

_NS = 1_000_000_000
_LEAST = 20
"""Warm-ups that are judged at the least: two halves of ten, the smallest number for which quartiles say something."""
_SHIFT = 0.05
_WHISKER = 1.5
_QUICK_NS = 100_000
"""Below this a sample times several calls: the clock itself costs 50 ns and more, and jumps by as much."""
_BLOCKS = 5

Call = Callable[[], object]


def quartiles(values: list[int]) -> tuple[float, float, float]:
    """First quartile, median, third quartile, linearly interpolated (type 7 of Hyndman and Fan 1996)."""
    ordered = sorted(values)

    def at(fraction: float) -> float:
        position = fraction * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    return at(0.25), at(0.5), at(0.75)


def is_settled(samples: list[int]) -> bool:
    """Whether the later half of `samples` (20 at the least) shows no warm-up any more.

    As pyperf calibrates its warm-ups (`WorkerTask.test_calibrate_warmups`): the first value is no outlier above the
    others (Tukey's fence, Q3 + 1.5 IQR), and the first and third quartiles of its two halves differ by at most 5 %.
    """
    window = samples[min(len(samples) // 2, len(samples) - _LEAST) :] if len(samples) >= _LEAST else []
    if not window:
        return False
    low, _, high = quartiles(window[1:])
    if window[0] > high + _WHISKER * (high - low):
        return False
    half = len(window) // 2
    (low0, _, high0), (low1, _, high1) = quartiles(window[:half]), quartiles(window[half:])
    return abs(low0 - low1) <= _SHIFT * low1 and abs(high0 - high1) <= _SHIFT * high1


def warm_up(calls: list[Call], min_runs: int, max_seconds: float) -> tuple[list[int], bool]:
    """(durations in ns, whether they settled); at least `min_runs`, then until settled or out of time.

    `calls` are inferences on the prepared inputs, taken in turn.
    """
    now = time.perf_counter_ns
    samples: list[int] = []
    end = now() + int(max_seconds * _NS)
    look_at = _LEAST
    for call in islice(cycle(calls), MAX_SAMPLES):
        begun = now()
        call()
        ended = now()
        samples.append(ended - begun)
        if len(samples) < min_runs:
            continue
        if len(samples) >= look_at:
            if is_settled(samples):
                return samples, True
            look_at = max(look_at + 10, len(samples) * 5 // 4)
        if ended >= end:
            break
    return samples, is_settled(samples)


def calls_per_sample(expected_ns: Optional[float]) -> int:
    """How many calls one sample times: 1 from 100 µs on, else as many as take that long."""
    return 1 if not expected_ns or expected_ns >= _QUICK_NS else min(1000, -(-_QUICK_NS // max(1, int(expected_ns))))


class _Kept:
    """The samples of each block; thinned evenly, all blocks alike, when they become too many."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.blocks: list[list[int]] = []
        self.count = 0

    def add(self, sample: int) -> None:
        if self.count == MAX_SAMPLES:
            self.blocks = [block[::2] for block in self.blocks]
            self.every *= 2
            self.count = sum(map(len, self.blocks))
        self.blocks[-1].append(sample)
        self.count += 1


def sample(
    calls: list[Call],
    expected_ns: Optional[float],
    min_samples: int,
    min_seconds: float,
    max_seconds: float,
    before_block: Callable[[], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """`latency_ns`, `calls_per_sample`, `sampled_every`, `stopped_by`, `blocks`: until both minima are reached.

    Stops at `max_seconds` all the same. A latency is a sample's time divided by its calls. Where `min_seconds` would
    give more than MAX_SAMPLES, every k-th sample is kept, so that they still span the whole time. `before_block` is
    called at the start of each of at least five blocks, outside all timing; what it gives is kept with the block.
    Garbage collection is off meanwhile.
    """
    times = calls_per_sample(expected_ns)
    per_sample = max(1.0, (expected_ns or 0) * times)
    kept = _Kept(max(1, -(-int(min_seconds * _NS / per_sample) // MAX_SAMPLES)) if expected_ns else 1)
    turn = cycle(calls)
    states: list[dict[str, Any]] = []
    spent = 0
    runs = 0
    stopped: Optional[str] = None
    gc.collect()
    gc.disable()
    try:
        while stopped is None:
            states.append(before_block())
            kept.blocks.append([])
            done = len(states)
            block_end = min_seconds * _NS * min(1.0, done / _BLOCKS) if done <= _BLOCKS else float("inf")
            block_count = min_samples * done // _BLOCKS
            begun_block = time.perf_counter_ns()
            while True:
                elapsed = _timed(turn, times)
                if runs % kept.every == 0:
                    kept.add(round(elapsed / times))
                runs += 1
                total = spent + time.perf_counter_ns() - begun_block
                if total >= max_seconds * _NS:
                    stopped = "max_seconds"
                    break
                if kept.count >= min_samples and total >= min_seconds * _NS:
                    stopped = "minimum reached"
                    break
                if total >= block_end and kept.count >= block_count:
                    break
            spent += time.perf_counter_ns() - begun_block
    finally:
        gc.enable()
    return {
        "latency_ns": [s for block in kept.blocks for s in block],
        "calls_per_sample": times,
        "sampled_every": kept.every,
        "stopped_by": stopped,
        "blocks": [dict(state, samples=len(block)) for state, block in zip(states, kept.blocks)],
    }


def _timed(turn: Iterator[Call], times: int) -> int:
    """Nanoseconds of the next `times` calls."""
    now = time.perf_counter_ns
    if times == 1:
        call = next(turn)
        begun = now()
        call()
        return now() - begun
    begun = now()
    for call in islice(turn, times):
        call()
    return now() - begun
