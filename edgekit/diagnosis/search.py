"""The fewest layers in float that hold an accuracy bound, found on training data and verified on evaluation data.

Layers are ordered by what their own error costs the outputs (`sensitivity`). The search halves the number of layers
in float until the smallest that holds the bound is found, each judged by a real conversion in its real runtime; then
those that cost most in MACs are put back to integers one by one where the bound still holds.

A bound that holds where it was searched need not hold elsewhere: NNCF's accuracy control was asked for a drop of at
most 0.03 and gave a model of 18 % for one of 56 %. The verdict is therefore of other data, with its interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgekit.artifact import Artifact, NodeRule, RuleAction
from edgekit.diagnosis.examination import Examination
from edgekit.diagnosis.judging import Judge, evaluation_judge, search_judge
from edgekit.diagnosis.reconversion import with_rules
from edgekit.diagnosis.sensitivity import quantized_layers, rank
from edgekit.diagnosis.subject import Subject
from edgekit.diagnosis.values import Bound, SearchResult
from edgekit.errors import ConversionError, UnsupportedError, UserError

__all__ = ["Found", "search"]

SEARCHED = 512
VERIFIED = 2000
PUT_BACK = 6
"""Layers that are tried in integers again after the smallest number was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The record of a search, and the artifact it ends with: the given one where that holds the bound."""

    record: SearchResult
    artifact: Artifact


@dataclass(slots=True)
class _Search:
    """A search on its way; `best` is the best so far that holds the bound on the search data."""

    subject: Subject
    examination: Examination
    judge: Judge
    limit: float
    deadline: float
    tell: Callable[[str], None]
    trials: list[tuple[int, float | None]] = field(default_factory=list)
    best: tuple[tuple[str, ...], Artifact, Bound] | None = None
    nearest: tuple[tuple[str, ...], Artifact, Bound] | None = None
    stopped: str | None = None

    def holds(self, layers: Sequence[str]) -> bool:
        """Whether the bound holds with these layers in float, by converting and running it; the best is kept."""
        self.tell(f"{len(layers)} layers in float")
        try:
            made = self._made(layers)
        except (UnsupportedError, ConversionError, UserError):
            self.trials.append((len(layers), None))
            return False
        bound = self.judge.bound(made)
        self.trials.append((len(layers), bound.drop.value * 100))
        candidate = (tuple(layers), made, bound)
        if self.nearest is None or bound.drop.value < self.nearest[2].drop.value:
            self.nearest = candidate
        if bound.drop.value > self.limit:
            return False
        if self.best is None or self._cost(layers) < self._cost(self.best[0]):
            self.best = candidate
        return True

    def _made(self, layers: Sequence[str]) -> Artifact:
        if not layers:
            return self.examination.artifact
        return with_rules(self.subject, self.examination.artifact, self.rules(layers))

    def rules(self, layers: Sequence[str]) -> tuple[NodeRule, ...]:
        nodes = self.examination.nodes_of(layers)
        return tuple(NodeRule(node=name, action=RuleAction.FLOAT) for name in nodes)

    def _cost(self, layers: Sequence[str]) -> tuple[int, int, int]:
        pieces = [self.examination.pieces[layer] for layer in layers]
        return sum(piece.macs for piece in pieces), sum(piece.weight_values for piece in pieces), len(pieces)

    @property
    def is_late(self) -> bool:
        if time.monotonic() > self.deadline:
            self.stopped = "the time for the search was up"
        return self.stopped is not None


def search(
    subject: Subject,
    examination: Examination,
    *,
    max_drop_points: float,
    budget_seconds: float,
    searched: int = SEARCHED,
    verified: int = VERIFIED,
    tell: Callable[[str], None] = lambda _: None,
) -> Found:
    """The search on one artifact. Ctrl-C ends it with the best so far, which is verified all the same.

    Raises WorkloadError without data to search on, UserError where the model gives no classes.
    """
    facts = examination.artifact.passport.calibration
    course = _Search(
        subject=subject,
        examination=examination,
        judge=search_judge(subject, searched, facts.samples if facts is not None else 0),
        limit=max_drop_points / 100,
        deadline=time.monotonic() + budget_seconds,
        tell=tell,
    )
    try:
        _halve(course)
        _put_back(course)
    except KeyboardInterrupt:
        course.stopped = "stopped by Ctrl-C"
    tell("verifying on evaluation data")
    return _judged(course, evaluation_judge(subject, verified), max_drop_points)


def _halve(course: _Search) -> None:
    order = [item.node for item in rank(course.examination)]
    if course.holds(()) or not order:
        return
    low, high = 0, len(order)
    step = 1  # few layers are enough most often: 1, 2, 4, … before halving
    while step < high and not course.is_late:
        if course.holds(order[:step]):
            high = step
            break
        low, step = step, step * 2
    if high == len(order) and not course.is_late and not course.holds(order):
        return
    while high - low > 1 and not course.is_late:
        middle = (low + high) // 2
        if course.holds(order[:middle]):
            high = middle
        else:
            low = middle


def _put_back(course: _Search) -> None:
    """Layers of the best found so far back to integers, the costliest first, where the bound still holds."""
    if course.best is None or len(course.best[0]) < 2:
        return
    pieces = course.examination.pieces
    for layer in sorted(course.best[0], key=lambda name: -pieces[name].macs)[:PUT_BACK]:
        if course.is_late:
            return
        kept = course.best[0]
        if len(kept) > 1 and layer in kept:
            course.holds([name for name in kept if name != layer])


def _judged(course: _Search, judge: Judge, max_drop_points: float) -> Found:
    chosen = course.best or course.nearest
    examination = course.examination
    layers, artifact, on_search = chosen if chosen is not None else ((), examination.artifact, None)
    on_evaluation = judge.bound(artifact)
    verdict, reason = _verdict(course, on_evaluation, max_drop_points)
    total = sum(examination.pieces[layer.node].macs for layer in quantized_layers(examination))
    kept = sum(examination.pieces[name].macs for name in layers)
    record = SearchResult(
        artifact=examination.artifact.passport.name,
        max_drop_points=max_drop_points,
        rules=course.rules(layers),
        float_layers=layers,
        layers=len(quantized_layers(examination)),
        trials=tuple(course.trials),
        float_macs_share=kept / total if total else 0.0,
        on_search=on_search,
        on_evaluation=on_evaluation,
        verdict=verdict,
        reason=reason,
        size_bytes=artifact.passport.size_bytes,
        stopped=course.stopped,
    )
    return Found(record=record, artifact=artifact)


def _verdict(course: _Search, bound: Bound, max_drop_points: float) -> tuple[Literal["PASS", "FAIL", "NOISY"], str]:
    """As gates are judged: the interval decides."""
    drop = bound.drop
    told = (
        f"{bound.metric} drops by {drop.value * 100:.2f} points on {bound.data} "
        f"(95 % interval {drop.low * 100:.2f} to {drop.high * 100:.2f}); allowed are {max_drop_points:g}"
    )
    if course.best is None:
        told = f"no choice of layers holds the bound on {course.judge.data}; the nearest: {told}"
    if drop.high * 100 <= max_drop_points:
        return ("PASS" if course.best is not None else "NOISY"), told
    if drop.low * 100 > max_drop_points:
        return "FAIL", told
    if drop.value * 100 > max_drop_points:
        return "FAIL", told
    return "NOISY", f"{told}: within the bound as measured, too few inputs to be sure"
