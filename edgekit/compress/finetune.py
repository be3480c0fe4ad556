"""Training a student further on the labels alone (`finetune`), and what every training step shares."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.compress.steps import StepContext, StepResult
from edgekit.training.constraints import kept_constraints
from edgekit.training.fitting import fit
from edgekit.training.objective import CrossEntropy, Objective
from edgekit.training.teacher import training_data

if TYPE_CHECKING:
    from edgekit.compress.options import TrainOptions
    from edgekit.compress.student import Student
    from edgekit.workload import MapDataset

__all__ = ["epochs_told", "run", "trained_student"]


def run(student: Student, options: TrainOptions, context: StepContext) -> StepResult:
    """Fine-tune on the labels."""
    data = training_data(context.workload, "fine-tuning")
    objective = CrossEntropy(label_smoothing=options.label_smoothing)
    trained = trained_student(student, objective, data, options, context)
    return StepResult(student=trained, summary=f"fine-tuned for {epochs_told(options)}")


def trained_student(
    student: Student, objective: Objective, data: MapDataset, options: TrainOptions, context: StepContext
) -> Student:
    """The student after training a copy of its module by `objective` on `data`; every parameter is trained,
    and what the student's constraints say of its weights is kept."""
    constraints = kept_constraints(student.module, student.constraints)
    module = copy.deepcopy(student.module)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    fitted = fit(
        module,
        objective,
        data,
        options,
        seed=context.seed,
        work_dir=context.work_dir,
        augment=context.workload.augment,
        constraints=constraints,
        on_progress=context.on_progress,
    )
    return replace(student, module=fitted.module, constraints=constraints)


def epochs_told(options: TrainOptions) -> str:
    """`2 epochs`."""
    return f"{options.epochs} epoch{'s' if options.epochs > 1 else ''}"
