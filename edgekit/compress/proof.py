"""Whether a compression step paid, judged by what was measured before and after it.

A compression is judged together with the training that follows it: what pruning costs in accuracy is not known before
the student has recovered, and what recovery training wins is not its own. Consecutive compressions before one training
are judged as one, too. `qat` is judged by itself, as an int8 file against that of the same weights quantized after
training.

    verdict, reason = judge(before, after, speedups=(2.1, 2.0), max_drop_points=1.0)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.artifact import Effect, StepVerdict
from edgekit.benchmarks.stats import stated_ratio

if TYPE_CHECKING:
    from edgekit.recipe import Step

__all__ = ["FASTER", "SMALLER", "TRAINING", "groups_of", "judge"]

TRAINING = frozenset({"distill", "weight_distill", "born_again", "self_distill", "finetune"})
"""Methods that only train: they belong to the compression before them."""
FASTER = 1.05
"""The least stated ratio that counts as faster: side by side on a busy host, equal files differ by up to 3 %."""
SMALLER = 0.98


def groups_of(steps: Sequence[Step]) -> tuple[tuple[int, ...], ...]:
    """The indices of steps that are judged together: `prune, distill, share, finetune` is `(0, 1), (2, 3)`."""
    groups: list[list[int]] = []
    for index, step in enumerate(steps):
        before = steps[index - 1].kind if index else None
        joins = step.kind in TRAINING or (before not in (None, "qat") and before not in TRAINING)
        if groups and joins and step.kind != "qat":
            groups[-1].append(index)
        else:
            groups.append([index])
    return tuple(tuple(group) for group in groups)


def judge(
    before: Effect, after: Effect, *, speedups: tuple[float, float], max_drop_points: float, device: str = "the device"
) -> tuple[StepVerdict, str]:
    """The verdict and why, from what was measured; `speedups` are before over after by minima and by medians."""
    lost = _points_lost(before, after)
    if lost is not None and lost > max_drop_points:
        return (
            StepVerdict.NOT_PAID,
            f"it cost {lost:.2f} points of accuracy ({max_drop_points:g} are allowed) after all training that follows",
        )
    stated = stated_ratio(*speedups)
    if stated is not None and stated >= FASTER:
        return StepVerdict.PAID, f"{stated:.2f}x faster on {device}"
    slowness = _slowness(before, after, stated, speedups, device)
    smaller = _smaller(before, after)
    if smaller:
        return StepVerdict.SIZE_ONLY, f"{smaller}; {slowness}"
    if _is_the_same_shape(before, after):
        return _trained(before, after, lost)
    return StepVerdict.NOT_PAID, f"nothing is smaller; {slowness}"


def _points_lost(before: Effect, after: Effect) -> float | None:
    if before.accuracy is None or after.accuracy is None:
        return None
    return round(100 * (before.accuracy - after.accuracy), 6)


def _is_the_same_shape(before: Effect, after: Effect) -> bool:
    return (before.parameters, before.macs) == (after.parameters, after.macs)


def _trained(before: Effect, after: Effect, lost: float | None) -> tuple[StepVerdict, str]:
    """A step that left the shape alone: paid where it won more accuracy than chance would."""
    if lost is None or after.accuracy is None:
        return StepVerdict.NOT_PAID, "neither smaller nor faster, and its accuracy was not measured"
    error = 100 * _standard_error(after)
    told = f"accuracy {-lost:+.2f} points (standard error {error:.2f}, {after.samples or 'unknown'} inputs)"
    if -lost > error:
        return StepVerdict.PAID, told
    return StepVerdict.NOT_PAID, f"{told}: neither smaller, nor faster, nor more accurate than chance would have it"


def _standard_error(effect: Effect) -> float:
    if not effect.samples or effect.accuracy is None:
        return 0.0
    return math.sqrt(max(effect.accuracy * (1 - effect.accuracy), 1 / effect.samples) / effect.samples)


def _smaller(before: Effect, after: Effect) -> str:
    """`file 3.90x smaller, packed 4.10x`, of what shrank; empty where nothing did."""
    named = (
        ("file", before.file_bytes, after.file_bytes),
        ("packed", before.packed_bytes, after.packed_bytes),
        ("memory", before.memory_bytes, after.memory_bytes),
    )
    shrunk = [f"{name} {a / b:.2f}x smaller" for name, a, b in named[:2] if a and b and b <= SMALLER * a]
    name, a, b = named[2]
    if shrunk and a and b and b <= SMALLER * a:  # by itself it is mostly noise
        shrunk.append(f"{name} {a / b:.2f}x smaller")
    return ", ".join(shrunk)


def _slowness(before: Effect, after: Effect, stated: float | None, speedups: tuple[float, float], device: str) -> str:
    if stated is None:
        by_min, by_p50 = speedups
        return (
            f"no speed-up can be stated: {by_min:.2f}x by the minima, {by_p50:.2f}x by the medians on {device}, "
            "which differ by more than a tenth"
        )
    told = f"no faster on {device} ({stated:.2f}x)"
    if _is_the_same_shape(before, after) and (after.nonzero_parameters or 0) < (before.nonzero_parameters or 0):
        return f"{told}: kernels there multiply by zeros as by any other weight"
    if _is_the_same_shape(before, after):
        return f"{told}: the computation is the same"
    if before.macs and after.macs and after.macs < before.macs:
        return f"{told} with {before.macs / after.macs:.2f}x fewer MACs: time is not where they were"
    return told
