"""What a training run minimises: the objective, the batch it sees, and plain cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

__all__ = ["Batch", "CrossEntropy", "Objective"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One training batch: `inputs` each `[B, …]`, `targets` `[B]`, and the samples' `indices` in the data set `[B]`."""

    inputs: tuple[Tensor, ...]
    targets: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)


class Objective(Protocol):
    """A loss over a batch. `key` is equal for two objectives only if they give the same loss."""

    @property
    def key(self) -> str: ...

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The scalar loss of `outputs` `[B, classes]`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropy:
    """Cross-entropy with the true classes, labels smoothed by `label_smoothing` (Szegedy et al. 2016)."""

    label_smoothing: float = 0.0

    @property
    def key(self) -> str:
        return f"cross-entropy smoothing={self.label_smoothing!r}"

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy over the batch."""
        loss: Tensor = F.cross_entropy(outputs, batch.targets, label_smoothing=self.label_smoothing)
        return loss


def top1_correct(outputs: Tensor, targets: Tensor) -> int:
    """How many rows of `outputs` `[B, classes]` have their largest value at `targets` `[B]`."""
    return int(torch.count_nonzero(outputs.argmax(dim=1) == targets))
