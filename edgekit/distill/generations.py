"""Born-again networks (Furlanello et al. 2018): a student of the teacher's own architecture, taught by the teacher,
then its student taught by it, each from new weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgekit.distill.architecture import reinitialised
from edgekit.distill.distilling import distil, told
from edgekit.distill.lesson import Lesson, lesson_of, plain_lesson
from edgekit.errors import UserError
from edgekit.training.batches import derive_seed, generators_kept, seed_generators

if TYPE_CHECKING:
    from edgekit.compress.steps import StepContext, StepResult
    from edgekit.compress.student import Student
    from edgekit.distill.options import BornAgainOptions
    from edgekit.training.fitting import TrainProgress
    from edgekit.workload import MapDataset

__all__ = ["born_again", "run"]

Fresh = Callable[[int], nn.Module]
"""The architecture with the initial weights of a generation (from 1)."""


def run(student: Student, options: BornAgainOptions, context: StepContext) -> StepResult:
    """The recipe's `born_again` step: the student is the first teacher, the last generation the next student."""
    from edgekit.compress.steps import StepResult

    if student.constraints:
        raise UserError(
            "born-again generations start from new weights, and the student's zeros or shared values would be lost",
            hint="put born_again before the steps that make them",
        )
    modules = _generations(student.module, _fresh(student, context), options, lesson_of(student, context))
    count = f"{options.generations} generation{'s' if options.generations > 1 else ''}"
    return StepResult(
        student=replace(student, module=modules[-1]), summary=f"born again: {count}, each distilled {told(options)}"
    )


def _fresh(student: Student, context: StepContext) -> Fresh:
    from edgekit.compress.student import replay

    workload = context.workload
    given = workload.student if student.base == "student" else workload.model

    def make(generation: int) -> nn.Module:
        seed = derive_seed(context.seed, "generation", generation)
        if isinstance(given, nn.Module):
            return reinitialised(student.module, seed=seed)
        with generators_kept():
            seed_generators(seed)
            return replay(workload.build_base(student.base), student.edits, workload.example_inputs)

    return make


def _generations(first: nn.Module, fresh: Fresh, options: BornAgainOptions, lesson: Lesson) -> list[nn.Module]:
    """Every generation in order; one whose folder is finished is trained no more."""
    found: list[nn.Module] = []
    for generation in range(1, options.generations + 1):
        teacher = found[-1] if found else first
        at = lesson.within(f"generation-{generation}")
        found.append(distil(fresh(generation), teacher, options, at)[0])
    return found


def born_again(
    model: nn.Module,
    train: MapDataset,
    options: BornAgainOptions,
    *,
    make: Callable[[], nn.Module] | None = None,
    unlabelled: MapDataset | None = None,
    seed: int = 0,
    work_dir: Path | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> list[nn.Module]:
    """The generations after `model`, the last of them last; the mean of their outputs is the paper's ensemble.

    Each starts from `make()`, or from the layers' own `reset_parameters` where that is not given.
    """

    def fresh(generation: int) -> nn.Module:
        drawn = derive_seed(seed, "generation", generation)
        if make is None:
            return reinitialised(model, seed=drawn)
        with generators_kept():
            seed_generators(drawn)
            return make()

    with plain_lesson(
        train=train, unlabelled=unlabelled, seed=seed, work_dir=work_dir, augment=augment, on_progress=on_progress
    ) as lesson:
        return _generations(model, fresh, options, lesson)
