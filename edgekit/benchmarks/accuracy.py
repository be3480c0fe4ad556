"""How right an artifact is: its outputs from the device against labels, the teacher, and its own PyTorch model.

All arrays are `[N, …]` over the same evaluation inputs in the same order. Outputs that are not finite are
counted, are wrong wherever a class is asked for, and leave KL and SQNR unmeasured; nothing replaces them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgekit.errors import WorkloadError
from edgekit.report.model import Difference, Proportion

__all__ = ["Accuracy", "evaluate", "kl_per_input", "paired_drop", "sqnr_db", "wilson"]

_Z = 1.959963984540054
"""97.5 % quantile of the standard normal."""
_WORST = 8
_TOP = 5
_TOP5_CLASSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """What the evaluation set says of one artifact; None where there was nothing to compare with."""

    accuracy: Proportion | None
    top5: Proportion | None
    """The label among the five largest outputs; None below ten classes, where that says little."""
    accuracy_drop: Difference | None
    agreement: Proportion | None
    kl_to_teacher: float | None
    """Mean over the inputs of KL(teacher ‖ artifact), nats."""
    sqnr_db: float | None
    sqnr_exact: bool
    non_finite: int
    worst: tuple[tuple[int, float], ...]
    """(input, KL) of the inputs on which it departs most from the teacher, worst first."""


def evaluate(
    outputs: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    teacher: np.ndarray | None = None,
    reference: np.ndarray | None = None,
) -> Accuracy:
    """What `outputs` `[N, C]` are worth: against `labels` `[N]`, `teacher` logits `[N, C]`, and `reference`.

    `reference` is what the same model gave in PyTorch, in full precision.
    With one column or more than two axes only SQNR and the count of non-finite values are told. Raises
    WorkloadError where lengths differ.
    """
    for name, other in (("labels", labels), ("teacher", teacher), ("reference", reference)):
        if other is not None and len(other) != len(outputs):
            raise WorkloadError(f"{len(outputs)} outputs and {len(other)} of {name}")
    is_classes = outputs.ndim == 2 and outputs.shape[1] > 1
    non_finite = int(np.size(outputs) - np.isfinite(outputs).sum())
    chosen = _top1(outputs) if is_classes else None
    taught = _top1(teacher) if is_classes and teacher is not None else None
    kl = None
    if is_classes and teacher is not None and teacher.shape == outputs.shape and not non_finite:
        kl = kl_per_input(teacher, outputs)
    measured, exact = (None, False)
    if reference is not None:
        measured, exact = sqnr_db(reference, outputs)
    return Accuracy(
        accuracy=_share(chosen, labels),
        top5=_top5(outputs, labels) if is_classes else None,
        accuracy_drop=_drop(chosen, taught, labels),
        agreement=_share(chosen, taught),
        kl_to_teacher=float(kl.mean()) if kl is not None else None,
        sqnr_db=measured,
        sqnr_exact=exact,
        non_finite=non_finite,
        worst=_worst(kl),
    )


def wilson(hits: int, total: int) -> Proportion:
    """`hits` of `total` with the 95 % score interval (Wilson 1927)."""
    if total < 1 or not 0 <= hits <= total:
        raise ValueError(f"{hits} of {total} is no proportion")
    p = hits / total
    centre = (p + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z / (1 + _Z**2 / total) * math.sqrt(p * (1 - p) / total + _Z**2 / (4 * total**2))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == total else min(1.0, centre + half)
    return Proportion(hits=hits, total=total, value=p, low=low, high=high)


def paired_drop(teacher_right: np.ndarray, artifact_right: np.ndarray) -> Difference:
    """Accuracy of the teacher less that of the artifact on the same inputs, with a 95 % interval.

    Only inputs on which the two differ tell anything: b where the teacher alone is right, c where the artifact
    alone is. (b - c) / n with Agresti and Min's adjustment (2005: half a pair added to each of the four cells),
    which keeps its width when b + c is small or zero.
    """
    n = len(teacher_right)
    b = int(np.sum(teacher_right & ~artifact_right))
    c = int(np.sum(artifact_right & ~teacher_right))
    b1, c1, n1 = b + 0.5, c + 0.5, n + 2.0
    centre = (b1 - c1) / n1
    half = _Z * math.sqrt((b1 + c1) - (b1 - c1) ** 2 / n1) / n1
    return Difference(value=(b - c) / n, low=max(-1.0, centre - half), high=min(1.0, centre + half))


def kl_per_input(teacher: np.ndarray, artifact: np.ndarray) -> np.ndarray:
    """KL(softmax(teacher) ‖ softmax(artifact)) of each row, in nats and float64. `[N, C]` logits -> `[N]`."""
    p, q = _log_softmax(teacher), _log_softmax(artifact)
    divergence: np.ndarray = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)  # below zero by rounding only
    return divergence


def sqnr_db(reference: np.ndarray, outputs: np.ndarray) -> tuple[float | None, bool]:
    """(10·log10(Σ ref² / Σ (ref − out)²) over everything, whether the two are equal to the bit).

    None where they are equal, where either is not finite, or where the reference is all zero.
    """
    if reference.shape != outputs.shape:
        raise WorkloadError(f"outputs {outputs.shape} and reference {reference.shape} differ in shape")
    if not (np.isfinite(reference).all() and np.isfinite(outputs).all()):
        return None, False
    if np.array_equal(reference, outputs):
        return None, True
    ref = reference.astype(np.float64)
    signal, noise = float(np.square(ref).sum()), float(np.square(ref - outputs).sum())
    if signal == 0.0 or noise == 0.0:
        return None, False
    return 10 * math.log10(signal / noise), False


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _top1(logits: np.ndarray) -> np.ndarray:
    """The class of each row, -1 where a value is not finite (which equals no label)."""
    chosen: np.ndarray = np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)
    return chosen


def _top5(logits: np.ndarray, labels: np.ndarray | None) -> Proportion | None:
    """By rank: fewer than five outputs above the label's. Equal outputs count for the label, NaN never does."""
    if labels is None or logits.shape[1] < _TOP5_CLASSES:
        return None
    known = (labels >= 0) & (labels < logits.shape[1]) & np.isfinite(logits).all(axis=1)
    own = logits[np.arange(len(logits)), np.where(known, labels, 0).astype(np.int64)]
    above = (logits > own[:, None]).sum(axis=1)
    return wilson(int(np.sum(known & (above < _TOP))), len(logits))


def _share(chosen: np.ndarray | None, wanted: np.ndarray | None) -> Proportion | None:
    if chosen is None or wanted is None:
        return None
    return wilson(int(np.sum((chosen == wanted) & (chosen >= 0))), len(chosen))


def _drop(chosen: np.ndarray | None, taught: np.ndarray | None, labels: np.ndarray | None) -> Difference | None:
    if chosen is None or taught is None or labels is None:
        return None
    return paired_drop(taught == labels, chosen == labels)


def _worst(kl: np.ndarray | None) -> tuple[tuple[int, float], ...]:
    if kl is None:
        return ()
    order = np.argsort(-kl, kind="stable")[:_WORST]
    return tuple((int(i), float(kl[i])) for i in order)
