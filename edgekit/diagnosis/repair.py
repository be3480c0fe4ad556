"""What would repair a layer that breaks: rules tried by converting with them, cheapest first.

Another range costs nothing at inference; 16-bit activations cost some; float costs most. A layer's output is read by
others in 8 bits whatever the layer itself computes in, so that the last two are also tried together with its readers.
The choice is made on calibration inputs; what it gives is told on evaluation inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from edgekit.artifact import Artifact, NodeRule, RuleAction
from edgekit.diagnosis.breaking import floor_of
from edgekit.diagnosis.examination import Examination, examine
from edgekit.diagnosis.reconversion import fidelity_of, with_rules
from edgekit.diagnosis.subject import Subject, lowest_sqnr
from edgekit.diagnosis.values import Attempt, LayerError, Repair
from edgekit.errors import ConversionError, UnsupportedError, UserError

__all__ = ["Repaired", "repair"]

EXACT_DB = 200.0
LEAST_GAIN_DB = 1.0
"""Less is noise of the choice of samples."""
NEAR_DB = 3.0
"""A candidate repairs when it comes this near to the model without the layer's error, and over the floor."""
ROUNDS = 3
_RANGES = (RuleAction.MINMAX, RuleAction.MSE, RuleAction.PERCENTILE)
_SAME_RANGE = "not tried: the range fits the values, little is clipped"
COMPARED = 64
"""Calibration inputs every attempt is judged on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """The record of a repair and the artifact made with its rules; None where nothing repaired."""

    record: Repair
    artifact: Artifact | None


@dataclass(slots=True)
class _Course:
    """A repair on its way."""

    subject: Subject
    deadline: float
    tell: Callable[[str], None]
    current: Artifact
    score: float
    rules: tuple[NodeRule, ...] = ()
    layers: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline


def repair(
    subject: Subject,
    examination: Examination,
    float_file: Artifact,
    *,
    budget_seconds: float,
    tell: Callable[[str], None] = lambda _: None,
) -> Repaired:
    """Rules for the layers of an artifact that break, tried until nothing breaks or the time is up."""
    artifact = examination.artifact
    calibration = subject.calibration_of(artifact)[:COMPARED]
    before = lowest_sqnr(fidelity_of(subject, artifact, calibration, "calibration"))
    course = _Course(subject, time.monotonic() + budget_seconds, tell, artifact, _db(before))
    target: float | None = None
    for _ in range(ROUNDS):
        culprit = _culprit(examination)
        if culprit is None or culprit in course.layers or course.is_late:
            break
        course.layers.append(culprit)
        simulated = _gain(examination, culprit)
        target = course.score + simulated if target is None else target
        if not _improve(course, examination, culprit, simulated):
            break
        tell(f"examining {artifact.passport.name} with {len(course.rules)} rules")
        examination = examine(subject, course.current, float_file)
    return _repaired(course, artifact, before, target)


def _db(value: float | None) -> float:
    return EXACT_DB if value is None else value


def _culprit(examination: Examination) -> str | None:
    """The first layer that breaks; of a file that is poor without one, the layer whose error costs most."""
    diagnosis = examination.diagnosis
    if diagnosis.first_break is not None:
        return diagnosis.first_break
    if _db(lowest_sqnr(diagnosis.outputs)) >= floor_of(diagnosis.scheme) or not examination.effects:
        return None
    worst = max(examination.effects, key=lambda name: examination.effects[name][1])
    return worst if _gain(examination, worst) >= LEAST_GAIN_DB else None


def _gain(examination: Examination, layer: str) -> float:
    """What the outputs would win without this layer's error, simulated, dB."""
    now = _db(lowest_sqnr(examination.diagnosis.outputs))
    return max(0.0, examination.effects[layer][1] - now) if layer in examination.effects else 0.0


def _improve(course: _Course, examination: Examination, culprit: str, simulated: float) -> bool:
    """Try candidates for one layer and keep the cheapest that repairs it; whether there was one."""
    enough = max(LEAST_GAIN_DB, simulated - NEAR_DB, floor_of(examination.diagnosis.scheme) - course.score)
    tried: list[tuple[float, Artifact, tuple[NodeRule, ...]]] = []
    layer = next(layer for layer in examination.diagnosis.layers if layer.node == culprit)
    for what, rules in _candidates(examination, culprit):
        if course.is_late:
            break
        if rules[0].action in _RANGES and not _may_have_another_range(layer):
            course.attempts.append(Attempt(what=what, rules=rules, error=_SAME_RANGE))
            continue
        course.tell(f"{culprit}: trying {what}")
        gained = _attempt(course, what, rules, tried)
        if gained is not None and gained >= enough:
            break
    best = max((score for score, _, _ in tried), default=course.score)
    if best - course.score < LEAST_GAIN_DB:
        return False
    # the first in order, which is the cheapest, of those nearly as good as the best
    least = max(best - NEAR_DB, course.score + LEAST_GAIN_DB)
    course.score, course.current, rules = next(item for item in tried if item[0] >= least)
    course.rules = tuple({rule.node: rule for rule in (*course.rules, *rules)}.values())
    return True


def _may_have_another_range(layer: LayerError) -> bool:
    """Whether the file's range clips, or is twice as wide as what is seen: no other rule would differ much else."""
    if layer.file_range is None:
        return True
    (low, high), (seen_low, seen_high) = layer.file_range, layer.seen_range
    is_clipped = max(layer.clipped or 0.0, layer.saturated or 0.0) > 1e-3
    return is_clipped or high - low > 2 * (max(seen_high, 0.0) - min(seen_low, 0.0))


def _attempt(
    course: _Course,
    what: str,
    rules: tuple[NodeRule, ...],
    tried: list[tuple[float, Artifact, tuple[NodeRule, ...]]],
) -> float | None:
    """Convert with the rules on top of those already chosen; the gain in dB, or None where the converter refused."""
    try:
        made = with_rules(course.subject, course.current, rules)
    except (UnsupportedError, ConversionError, UserError) as e:
        course.attempts.append(Attempt(what=what, rules=rules, error=e.message.splitlines()[0][:300]))
        return None
    calibration = course.subject.calibration_of(made)[:COMPARED]
    score = _db(lowest_sqnr(fidelity_of(course.subject, made, calibration, "calibration")))
    size = made.passport.size_bytes
    course.attempts.append(Attempt(what=what, rules=rules, search_sqnr_db=score, size_bytes=size))
    tried.append((score, made, rules))
    return score - course.score


def _candidates(examination: Examination, culprit: str) -> Iterator[tuple[str, tuple[NodeRule, ...]]]:
    """(what, rules) in order of cost."""
    near = [culprit, *examination.pieces.readers(culprit)]
    own, around = examination.nodes_of([culprit]), examination.nodes_of(near)
    # one op of a piece is enough to name its result; some backends refuse the others, which are part of it
    main, mains = (tuple(examination.pieces[one].main for one in layers) for layers in ([culprit], near))
    if own:
        for action in _RANGES:
            yield f"range of {culprit} by {action.value}", (NodeRule(node=own[-1], action=action),)
        yield f"16-bit activations at {culprit}", _rules(main, RuleAction.INT16)
    readable = tuple(name for name in mains if name in around)
    yield f"16-bit activations at {culprit} and what reads it", _rules(readable, RuleAction.INT16)
    if own:
        yield f"{culprit} in float", _rules(own, RuleAction.FLOAT)
    yield f"{culprit} and what reads it in float", _rules(around, RuleAction.FLOAT)


def _rules(nodes: Sequence[str], action: RuleAction) -> tuple[NodeRule, ...]:
    return tuple(NodeRule(node=node, action=action) for node in nodes)


def _repaired(course: _Course, artifact: Artifact, before: float | None, target: float | None) -> Repaired:
    subject = course.subject
    record = Repair(
        artifact=artifact.passport.name,
        layers=tuple(course.layers),
        before_sqnr_db=before,
        target_sqnr_db=target,
        attempts=tuple(course.attempts),
        rules=course.rules,
        verdict=_verdict(course, before),
    )
    if not course.rules:
        return Repaired(record=record, artifact=None)
    held_out = {
        "held_out_before": fidelity_of(subject, artifact, subject.samples, "held-out"),
        "held_out_after": fidelity_of(subject, course.current, subject.samples, "held-out"),
    }
    return Repaired(record=record.model_copy(update=held_out), artifact=course.current)


def _verdict(course: _Course, before: float | None) -> str:
    if not course.layers:
        return "nothing to repair: no layer breaks, and the outputs are not poor"
    late = "; the time was up before everything was tried" if course.is_late else ""
    if not course.rules:
        return f"nothing that was tried repairs {', '.join(course.layers)}{late}"
    return f"{round(_db(before), 1) + 0.0:.1f} dB became {course.score:.1f} dB on calibration inputs{late}"
