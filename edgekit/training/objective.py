"""What a training run minimises: the objective, the batch it sees, and plain cross-entropy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from edgekit.errors import WorkloadError

__all__ = ["NO_TARGET", "Batch", "CrossEntropy", "Objective", "StepOutcome", "labelled_rows", "top1_counts"]

NO_TARGET = -100
"""The target of a sample that has none, in a batch where others have: torch's own `ignore_index`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One training batch: `inputs` each `[B, …]`, `targets` `[B]`, and the samples' `indices` in the data set `[B]`."""

    inputs: tuple[Tensor, ...]
    indices: Tensor
    """`int64 [B]`, on the CPU whatever the device."""
    targets: Tensor | None = None
    """`int64 [B]`, the classes; None where the objective needs none; NO_TARGET for a sample without."""

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> Batch:
        """Inputs and targets on `device`; `indices` stay on the CPU."""
        inputs = tuple(value.to(device, non_blocking=True) for value in self.inputs)
        targets = None if self.targets is None else self.targets.to(device, non_blocking=True)
        return Batch(inputs=inputs, indices=self.indices, targets=targets)

    def known_targets(self) -> Tensor:
        """The targets; raises WorkloadError for a batch without."""
        if self.targets is None:
            raise WorkloadError("this objective needs targets, and the data have none")
        return self.targets


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What one step gave: the loss, and the logits `[B, classes]` where there are any to judge by the targets."""

    loss: Tensor
    outputs: Tensor | None = None


class Objective(ABC):
    """A loss over a batch; `key` and `loss` are enough for one that looks at the model's output 0 only.

    One that needs more (inner features, two views, several passes) overrides `step`. Whatever is random must draw
    from torch's generator alone, which is seeded before every step: that is what makes a resumed run the same run.
    """

    @property
    @abstractmethod
    def key(self) -> str:
        """Equal for two objectives only if they give the same loss; a checkpoint of another key is not resumed."""

    @property
    def needs_targets(self) -> bool:
        """False: items may come without a target, and `Batch.targets` is None."""
        return True

    @property
    def takes_missing_targets(self) -> bool:
        """True: single samples may have NO_TARGET (see `joined`); `labelled_rows` tells which do."""
        return False

    @property
    def parts(self) -> nn.Module | None:
        """Modules of the objective's own, trained (where `requires_grad`) and checkpointed beside the model.

        Regressors, projection heads, a momentum encoder; thrown away when training ends. The same object every time,
        made from a seed of its own before training begins.
        """
        return None

    def to(self, device: torch.device) -> None:  # noqa: B027 - most hold nothing
        """Move what the objective holds besides `parts` (a teacher, cached outputs) to `device`."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The scalar loss of `outputs` `[B, classes]`; not called by the loop where `step` is overridden."""

    def step(self, model: nn.Module, batch: Batch) -> StepOutcome:
        """One forward pass: `loss` of the model's output 0. In validation the model is in eval mode, without grad."""
        from edgekit.training.evaluation import check_targets, forward

        outputs = forward(model, batch, name="train")
        if self.needs_targets:
            check_targets(outputs, batch, name="train", some_missing=self.takes_missing_targets)
        return StepOutcome(loss=self.loss(outputs, batch), outputs=outputs)

    def after_step(self, model: nn.Module, step: int, total_steps: int) -> None:  # noqa: B027 - most do nothing
        """Called after each optimizer step (`step` counts from 1), without grad: a momentum encoder is updated here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropy(Objective):
    """Cross-entropy with the true classes, labels smoothed by `label_smoothing` (Szegedy et al. 2016)."""

    label_smoothing: float = 0.0

    @property
    def key(self) -> str:
        return f"cross-entropy smoothing={self.label_smoothing!r}"

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy over the batch."""
        loss: Tensor = F.cross_entropy(outputs, batch.known_targets(), label_smoothing=self.label_smoothing)
        return loss


def labelled_rows(batch: Batch) -> Tensor:
    """`bool [B]`: which samples have a target."""
    if batch.targets is None:
        return torch.zeros(len(batch), dtype=torch.bool)
    return batch.targets != NO_TARGET


def top1_counts(outputs: Tensor | None, batch: Batch) -> tuple[int, int]:
    """How many rows of `outputs` `[B, classes]` have their largest value at their target, and how many have targets."""
    if outputs is None or batch.targets is None or outputs.ndim != 2:
        return 0, 0
    labelled = batch.targets != NO_TARGET
    right = (outputs.argmax(dim=1) == batch.targets) & labelled
    return int(torch.count_nonzero(right)), int(torch.count_nonzero(labelled))
