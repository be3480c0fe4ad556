"""What a module is worth at one point of its lineage: size, cost, accuracy, agreement with the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgekit.artifact import Effect
from edgekit.compress.cost import count_macs, count_parameters, weight_bytes
from edgekit.train import agreement, evaluate_outputs, top1_accuracy, weights_digest

if TYPE_CHECKING:
    from edgekit.training.evaluation import FloatArray, IntArray
    from edgekit.workload import Workload

__all__ = ["TeacherReference", "measure_effect"]


@dataclass
class TeacherReference:
    """The teacher and its answers on the workload's evaluation set, computed when first asked for and then kept."""

    module: nn.Module
    workload: Workload
    _answers: tuple[FloatArray, IntArray] | None = None

    def answers(self) -> tuple[FloatArray, IntArray]:
        """The teacher's logits `float32 [N, classes]` and the true classes `int64 [N]`."""
        if self._answers is None:
            self._answers = evaluate_outputs(self.module, self.workload.evaluation)
        return self._answers

    @cached_property
    def digest(self) -> str:
        """sha256 of the teacher's weights."""
        return weights_digest(self.module)


def measure_effect(
    module: nn.Module,
    teacher: TeacherReference,
    *,
    judged: nn.Module | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Effect:
    """The Effect of `module` on the evaluation set of the teacher's workload.

    Its answers are those of `judged` where that is given: a graph that computes as the module's file will.
    """
    reference, targets = teacher.answers()
    outputs = reference
    if judged is not None or weights_digest(module) != teacher.digest:
        answering = module if judged is None else judged
        outputs, targets = evaluate_outputs(answering, teacher.workload.evaluation, on_progress=on_progress)
    return Effect(
        parameters=count_parameters(module),
        macs=count_macs(module, teacher.workload.example_inputs),
        size_bytes=weight_bytes(module),
        accuracy=top1_accuracy(outputs, targets),
        agreement=agreement(outputs, reference),
        nonzero_parameters=sum(int(torch.count_nonzero(p)) for p in module.parameters()),
        samples=len(targets),
    )
