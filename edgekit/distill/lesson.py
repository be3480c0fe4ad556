"""What the training runs of one distillation share: data, seed, folder, and the loop that trains."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgekit.errors import WorkloadError
from edgekit.training.batches import BatchSource, joined
from edgekit.training.fitting import TrainProgress, fit

if TYPE_CHECKING:
    from edgekit.compress.options import TrainOptions
    from edgekit.compress.steps import StepContext
    from edgekit.compress.student import Student
    from edgekit.training.objective import Objective
    from edgekit.workload import MapDataset

__all__ = ["Lesson", "LessonData", "lesson_of", "plain_lesson"]

Trainer = Callable[[nn.Module, "Objective", "MapDataset", "TrainOptions", Path], nn.Module]
"""Trains a copy of a module by an objective on data, resuming from a folder, and returns it in eval mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonData:
    """The samples of a run: `labelled` of them with targets, then `unlabelled` without."""

    data: MapDataset
    labelled: int
    unlabelled: int

    @property
    def has_targets(self) -> bool:
        return self.labelled > 0

    def probe(self) -> tuple[Tensor, ...]:
        """The inputs of the first two samples."""
        source = BatchSource(self.data, "train", labelled=self.has_targets)
        import torch

        return source.fetch(torch.arange(min(2, len(self.data)))).inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """The conditions every training run of a method shares."""

    train: MapDataset | None
    unlabelled: MapDataset | None
    seed: int
    work_dir: Path
    trainer: Trainer
    is_augmented: bool = False
    base: Path = Path()
    """Where relative paths in the options start."""

    def within(self, name: str) -> Lesson:
        """The same in a folder of its own below `work_dir`, for one of several runs."""
        return replace(self, work_dir=self.work_dir / name)

    def trained(self, module: nn.Module, objective: Objective, data: MapDataset, options: TrainOptions) -> nn.Module:
        """A trained copy of `module`, in eval mode."""
        return self.trainer(module, objective, data, options, self.work_dir)

    def data(self, *, with_unlabelled: bool, what: str) -> LessonData:
        """What there is to learn from; raises WorkloadError, naming `what` wants it, where there is nothing."""
        extra = self.unlabelled if with_unlabelled else None
        if self.train is None and extra is None:
            raise WorkloadError(
                f"{what} needs training data, and there is neither train nor"
                + (" unlabelled" if with_unlabelled else ", with `unlabelled: false`, anything else"),
                hint="give the workload a train or an unlabelled data set, or leave the step out",
            )
        if self.train is None or extra is None:
            chosen = self.train if extra is None else extra
            assert chosen is not None  # noqa: S101 - for mypy; one of the two is there
            labelled = 0 if self.train is None else len(chosen)
            return LessonData(data=chosen, labelled=labelled, unlabelled=len(chosen) - labelled)
        return LessonData(data=joined(self.train, extra), labelled=len(self.train), unlabelled=len(extra))


def lesson_of(student: Student, context: StepContext) -> Lesson:
    """The lesson of a recipe's step; what it trains keeps the student's constraints."""
    from edgekit.compress.finetune import trained_student

    def train(module: nn.Module, objective: Objective, data: MapDataset, options: TrainOptions, at: Path) -> nn.Module:
        # Another module than the student's (a generator of its weights) has none of its parameters.
        constraints = student.constraints if module is student.module else ()
        pupil = replace(student, module=module, constraints=constraints)
        return trained_student(pupil, objective, data, options, replace(context, work_dir=at)).module

    return Lesson(
        train=context.workload.train,
        unlabelled=context.workload.unlabelled,
        seed=context.seed,
        work_dir=context.work_dir,
        trainer=train,
        is_augmented=context.workload.augment is not None,
        base=context.base,
    )


@contextmanager
def plain_lesson(
    *,
    train: MapDataset | None,
    unlabelled: MapDataset | None = None,
    seed: int = 0,
    work_dir: Path | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> Iterator[Lesson]:
    """A lesson without a recipe; without `work_dir` in a temporary folder, so it cannot be resumed."""

    def train_copy(
        module: nn.Module, objective: Objective, data: MapDataset, options: TrainOptions, at: Path
    ) -> nn.Module:
        pupil = copy.deepcopy(module)
        for parameter in pupil.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        fitted = fit(pupil, objective, data, options, seed=seed, work_dir=at, augment=augment, on_progress=on_progress)
        return fitted.module

    with tempfile.TemporaryDirectory(prefix="edgekit-distill-") as temporary:
        yield Lesson(
            train=train,
            unlabelled=unlabelled,
            seed=seed,
            work_dir=work_dir or Path(temporary),
            trainer=train_copy,
            is_augmented=augment is not None,
        )
