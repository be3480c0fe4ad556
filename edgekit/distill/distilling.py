"""Distillation of a student by its teacher: the recipe's `distill` step, and `distill` for any two modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from edgekit.distill.lesson import Lesson, LessonData, lesson_of, plain_lesson
from edgekit.distill.objective import distillation
from edgekit.distill.options import DistillOptions
from edgekit.distill.stored import StoredOutputs, read_outputs

if TYPE_CHECKING:
    from edgekit.compress.steps import StepContext, StepResult
    from edgekit.compress.student import Student
    from edgekit.training.fitting import TrainProgress
    from edgekit.workload import MapDataset

__all__ = ["distil", "distill", "run", "told"]


def run(student: Student, options: DistillOptions, context: StepContext) -> StepResult:
    """The recipe's `distill` step."""
    from edgekit.compress.steps import StepResult
    from edgekit.training.constraints import kept_constraints

    lesson = lesson_of(student, context)
    module, material = distil(student.module, context.teacher.module, options, lesson)
    kept = kept_constraints(module, student.constraints)
    return StepResult(
        student=replace(student, module=module, constraints=kept), summary=f"distilled {told(options, material)}"
    )


def distil(
    student: nn.Module, teacher: nn.Module | StoredOutputs, options: DistillOptions, lesson: Lesson
) -> tuple[nn.Module, LessonData]:
    """A distilled copy of `student`, and what it learned from."""
    source: nn.Module | StoredOutputs = teacher
    if options.teacher_outputs is not None:
        source = read_outputs(lesson.base / options.teacher_outputs)
    material = lesson.data(with_unlabelled=options.unlabelled, what="distillation")
    objective = distillation(student, source, material, options, lesson)
    return lesson.trained(student, objective, material.data, options), material


def distill(
    student: nn.Module,
    teacher: nn.Module | np.ndarray[Any, np.dtype[Any]] | Tensor,
    train: MapDataset | None,
    options: DistillOptions | None = None,
    *,
    unlabelled: MapDataset | None = None,
    seed: int = 0,
    work_dir: Path | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> nn.Module:
    """A copy of `student`, in eval mode, that has learned from `teacher`; both are left as they are.

    `teacher` may be its outputs, `[N, classes]` in the order of `train` and then `unlabelled`. A run in `work_dir`
    that was cut off goes on there. Raises WorkloadError where student, teacher, data and options do not fit.
    """
    options = options or DistillOptions()
    source = teacher if isinstance(teacher, nn.Module) else _stored(teacher)
    with plain_lesson(
        train=train,
        unlabelled=unlabelled,
        seed=seed,
        work_dir=work_dir,
        augment=augment,
        on_progress=on_progress,
    ) as lesson:
        return distil(student, source, options, lesson)[0]


def _stored(outputs: np.ndarray[Any, np.dtype[Any]] | Tensor) -> StoredOutputs:
    rows = outputs.detach().cpu().numpy() if isinstance(outputs, Tensor) else np.asarray(outputs)
    return StoredOutputs(name="the teacher's outputs", rows=rows)


def told(options: DistillOptions, material: LessonData | None = None) -> str:
    """`for 2 epochs at T=4, on features and relations, with 500 unlabelled samples`."""
    from edgekit.compress.finetune import epochs_told

    terms = [name for name in ("features", "attention", "relations") if getattr(options, name) is not None]
    parts = [f"for {epochs_told(options)}"]
    if options.weight > 0:
        parts[0] += f" at T={options.temperature:g}"
    if terms:
        parts.append(f"on {' and '.join(terms)}")
    if material is not None and material.unlabelled:
        parts.append(f"with {material.unlabelled} unlabelled samples")
    if options.teacher_outputs is not None:
        parts.append(f"from the outputs in {options.teacher_outputs}")
    return ", ".join(parts)
