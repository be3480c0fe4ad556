"""The compression steps of a recipe: each turns a student into the next, and says what it did to it.

A method is a function of (student, its options, `StepContext`) that gives the next student and a sentence. This module
finds it (`METHODS`), measures before and after, and writes the lineage; it knows nothing of any method.
"""

from __future__ import annotations

import copy
import pkgutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Effect, LineageStep
from edgekit.compress.effects import TeacherReference, measure_effect
from edgekit.compress.student import Student

if TYPE_CHECKING:
    from torch import nn

    from edgekit.recipe import Step
    from edgekit.training.fitting import TrainProgress
    from edgekit.workload import Workload

__all__ = ["METHODS", "StepContext", "StepResult", "first_student", "run_step"]

METHODS = {
    "prune": "edgekit.compress.prune:run",
    "low_rank": "edgekit.compress.low_rank:run",
    "architecture": "edgekit.distill.architecture:run",
    "distill": "edgekit.distill.distilling:run",
    "weight_distill": "edgekit.distill.weights:run",
    "born_again": "edgekit.distill.generations:run",
    "self_distill": "edgekit.distill.exits:run",
    "finetune": "edgekit.compress.finetune:run",
    "qat": "edgekit.compress.qat:run",
    "sense": "edgekit.sensing.acquisition:run",
    "sparsify": "edgekit.compress.sparsify:run",
    "share": "edgekit.compress.share:run",
}
"""A step's key in a recipe to its function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """What a method may use besides the student and its own options."""

    teacher: TeacherReference
    workload: Workload
    seed: int
    work_dir: Path
    """Survives a kill: what an interrupted step resumes from."""
    base: Path = Path()
    """The recipe's folder: relative paths in the options start here."""
    on_progress: Callable[[TrainProgress], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a method made of the student."""

    student: Student
    summary: str
    """What was done, for the lineage: `distilled for 2 epochs at T=4`. `{removed}` becomes the share of MACs and of
    parameters that went; the change of accuracy is added."""
    judged: nn.Module | None = None
    """What is evaluated where it is not the student's module: a graph that rounds as the int8 file will."""


def first_student(teacher: nn.Module) -> Student:
    """The student before any step: a copy of the teacher."""
    return Student(module=copy.deepcopy(teacher).eval())


def run_step(
    student: Student,
    teacher: nn.Module | TeacherReference,
    step: Step,
    workload: Workload,
    *,
    seed: int,
    work_dir: Path,
    base: Path = Path(),
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> Student:
    """The next student, with one more LineageStep that says what the step did to size, cost and accuracy.

    Pass the same TeacherReference to every step and the teacher is evaluated once. `student` is left as it is.
    """
    reference = teacher if isinstance(teacher, TeacherReference) else TeacherReference(teacher, workload)
    began = time.monotonic()
    before = _known_effect(student) or measure_effect(student.module, reference)
    context = StepContext(
        teacher=reference, workload=workload, seed=seed, work_dir=work_dir, base=base, on_progress=on_progress
    )
    result: StepResult = method_of(step.kind)(student, step.options, context)
    if result.student.module is not student.module and result.student.trained is student.trained:
        result = replace(result, student=replace(result.student, trained={}))  # they were of other weights
    after = measure_effect(result.student.module, reference, judged=result.judged)
    done = LineageStep(
        step=step.kind,
        summary=_summary(result.summary, before, after),
        options=step.options.model_dump(mode="json"),
        seed=seed,
        before=before,
        after=after,
        seconds=round(time.monotonic() - began, 3),
    )
    return replace(result.student, lineage=(*student.lineage, done))


def method_of(kind: str) -> Callable[[Student, Any, StepContext], StepResult]:
    """The function of a step's key in a recipe."""
    method: Callable[[Student, Any, StepContext], StepResult] = pkgutil.resolve_name(METHODS[kind])
    return method


def _known_effect(student: Student) -> Effect | None:
    return student.lineage[-1].after if student.lineage else None


def _summary(done: str, before: Effect, after: Effect) -> str:
    """`removed 61 % of the MACs and 58 % of the parameters; accuracy 91.2 → 40.1 %`."""
    removed = (
        f"removed {_removed(before.macs, after.macs)} of the MACs and "
        f"{_removed(before.parameters, after.parameters)} of the parameters"
    )
    return f"{done.replace('{removed}', removed)}; {_accuracy_change(before, after)}"


def _removed(before: int | None, after: int | None) -> str:
    if not before or after is None:
        return "an unknown share"
    return f"{100 * (1 - after / before):.0f} %"


def _accuracy_change(before: Effect, after: Effect) -> str:
    if before.accuracy is None or after.accuracy is None:
        return "accuracy not measured"
    return f"accuracy {100 * before.accuracy:.1f} → {100 * after.accuracy:.1f} %"
