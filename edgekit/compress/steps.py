"""The compression steps of a recipe: how each turns a student into the next, and what it did to it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from edgekit.artifact import Effect, LineageStep
from edgekit.compress.effects import TeacherReference, measure_effect
from edgekit.compress.prune import prune
from edgekit.compress.student import Student
from edgekit.distill.response import response_distillation
from edgekit.recipe import DistillOptions, PruneOptions, TrainOptions
from edgekit.training.fitting import TrainProgress, fit
from edgekit.training.objective import CrossEntropy, Objective
from edgekit.training.teacher import training_data

if TYPE_CHECKING:
    from edgekit.recipe import Step
    from edgekit.workload import Workload

__all__ = ["first_student", "run_step"]

OnProgress = Callable[[TrainProgress], None] | None


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
    on_progress: OnProgress = None,
) -> Student:
    """The next student, with one more LineageStep that says what the step did to size, cost and accuracy.

    Pass the same TeacherReference to every step and the teacher is evaluated once. `student` is left as it is.
    """
    reference = teacher if isinstance(teacher, TeacherReference) else TeacherReference(teacher, workload)
    began = time.monotonic()
    before = _known_effect(student) or measure_effect(student.module, reference)
    options = step.options
    if isinstance(options, PruneOptions):
        after_student = prune(student, workload.example_inputs, options, seed=seed)
    elif isinstance(options, TrainOptions):
        module = _train_student(student, reference.module, options, workload, seed, work_dir, on_progress)
        after_student = replace(student, module=module)
    else:
        raise TypeError(f"a step without options: {step!r}")
    after = measure_effect(after_student.module, reference)
    done = LineageStep(
        step=step.kind,
        summary=_summary(options, before, after),
        options=options.model_dump(mode="json"),
        seed=seed,
        before=before,
        after=after,
        seconds=round(time.monotonic() - began, 3),
    )
    return replace(after_student, lineage=(*student.lineage, done))


def _known_effect(student: Student) -> Effect | None:
    return student.lineage[-1].after if student.lineage else None


def _train_student(
    student: Student,
    teacher: nn.Module,
    options: TrainOptions,
    workload: Workload,
    seed: int,
    work_dir: Path,
    on_progress: OnProgress,
) -> nn.Module:
    data = training_data(workload, "distillation" if isinstance(options, DistillOptions) else "fine-tuning")
    if isinstance(options, DistillOptions):
        objective: Objective = response_distillation(
            teacher, data, options, work_dir=work_dir, augmented=workload.augment is not None
        )
    else:
        objective = CrossEntropy(label_smoothing=options.label_smoothing)
    module = copy.deepcopy(student.module)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    return fit(
        module, objective, data, options,
        seed=seed, work_dir=work_dir, augment=workload.augment, on_progress=on_progress,
    ).module  # fmt: skip


def _summary(options: PruneOptions | TrainOptions, before: Effect, after: Effect) -> str:
    """`removed 61 % of the MACs and 58 % of the parameters; accuracy 91.2 → 40.1 %`."""
    accuracy = _accuracy_change(before, after)
    if isinstance(options, PruneOptions):
        return (
            f"removed {_removed(before.macs, after.macs)} of the MACs and "
            f"{_removed(before.parameters, after.parameters)} of the parameters; {accuracy}"
        )
    epochs = f"{options.epochs} epoch{'s' if options.epochs > 1 else ''}"
    if isinstance(options, DistillOptions):
        return f"distilled for {epochs} at T={options.temperature:g}; {accuracy}"
    return f"fine-tuned for {epochs}; {accuracy}"


def _removed(before: int | None, after: int | None) -> str:
    if not before or after is None:
        return "an unknown share"
    return f"{100 * (1 - after / before):.0f} %"


def _accuracy_change(before: Effect, after: Effect) -> str:
    if before.accuracy is None or after.accuracy is None:
        return "accuracy not measured"
    return f"accuracy {100 * before.accuracy:.1f} → {100 * after.accuracy:.1f} %"
