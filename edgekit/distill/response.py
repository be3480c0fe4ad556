"""Response distillation: the student learns the teacher's softened outputs.

Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2:

    loss = weight · T² · KL(softmax(teacher/T) ‖ softmax(student/T)) + (1 − weight) · cross-entropy

T² keeps the gradients of the soft term at the scale of the hard one's when T changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from edgekit.errors import WorkloadError
from edgekit.schema import digest, write_atomically
from edgekit.training.evaluation import collect_outputs, evaluate_outputs, forward
from edgekit.training.fitting import weights_digest
from edgekit.training.objective import NO_TARGET, Batch, Objective
from edgekit.workload import sample_digest

if TYPE_CHECKING:
    from edgekit.distill.options import DistillOptions
    from edgekit.workload import MapDataset

__all__ = [
    "ResponseDistillation",
    "check_same_outputs",
    "distillation_loss",
    "response_distillation",
    "teacher_responses",
]

logger = getLogger(__name__)


def distillation_loss(
    student: Tensor,
    teacher: Tensor | None,
    targets: Tensor | None,
    *,
    temperature: float,
    weight: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The scalar loss of `student` logits `[B, classes]` against `teacher` logits and `targets` `[B]`.

    Each term is a mean: the soft one over the batch, the hard one over the samples that have a target. What is not
    given, or is NO_TARGET, has no part; `teacher` may be None where `weight` is 0.
    """
    loss = student.new_zeros(())
    if weight > 0 and teacher is not None:
        soft = F.kl_div(
            F.log_softmax(student / temperature, dim=1),
            F.log_softmax(teacher / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        loss = loss + weight * temperature**2 * soft
    if weight < 1 and targets is not None:
        labelled = targets != NO_TARGET
        if bool(labelled.any()):
            hard = F.cross_entropy(student[labelled], targets[labelled], label_smoothing=label_smoothing)
            loss = loss + (1 - weight) * hard
    # A batch in which nothing is asked still has a gradient, of zero.
    return loss if loss.requires_grad or not student.requires_grad else loss + 0.0 * student.sum()


def check_same_outputs(student: Tensor, teacher: Tensor) -> None:
    """Raise WorkloadError, with both shapes, unless the outputs of student and teacher have the same."""
    if teacher.shape != student.shape:
        raise WorkloadError(
            f"the teacher gives {tuple(teacher.shape)} where the student gives {tuple(student.shape)}; "
            "response distillation needs the same classes in both",
            hint="give the student's last layer the teacher's number of outputs, or distil features alone (weight: 0)",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseDistillation(Objective):
    """The objective; the teacher's logits come from `responses` by sample index, or from `teacher` on each batch."""

    options: DistillOptions
    teacher: nn.Module
    """In eval mode; never trained."""
    teacher_digest: str
    responses: Tensor | None = None
    """`[N, classes]` float32; None where augmentation makes every batch new."""

    @property
    def key(self) -> str:
        return digest("response", self.options.model_dump(mode="json"), self.teacher_digest, self.responses is None)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The distillation loss of `outputs` `[B, classes]`; raises WorkloadError for a teacher of other classes."""
        teacher = self._teacher_logits(batch)
        check_same_outputs(outputs, teacher)
        return distillation_loss(
            outputs,
            teacher,
            batch.known_targets(),
            temperature=self.options.temperature,
            weight=self.options.weight,
            label_smoothing=self.options.label_smoothing,
        )

    def _teacher_logits(self, batch: Batch) -> Tensor:
        if self.responses is not None:
            return self.responses.index_select(0, batch.indices)
        with torch.no_grad():
            return forward(self.teacher, batch, name="train").float()


def response_distillation(
    teacher: nn.Module, data: MapDataset, options: DistillOptions, *, work_dir: Path, augmented: bool
) -> ResponseDistillation:
    """The objective for one training run on `data`; without augmentation the teacher runs once per sample."""
    teacher.eval()
    identity = weights_digest(teacher)
    responses = None if augmented else torch.from_numpy(teacher_responses(teacher, data, work_dir=work_dir))
    return ResponseDistillation(options=options, teacher=teacher, teacher_digest=identity, responses=responses)


def teacher_responses(
    teacher: nn.Module, data: MapDataset, *, work_dir: Path, has_targets: bool = True
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The teacher's logits on all of `data`, `float32 [N, classes]`; kept in `work_dir` as .npy for a resumed run."""
    key = digest("responses", weights_digest(teacher), sample_digest(data))
    path = work_dir / f"teacher-{key[:16]}.npy"
    if path.is_file():
        try:
            stored = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as e:
            logger.warning("%s cannot be read (%s); the teacher runs again", path, e)
        else:
            if stored.shape[:1] == (len(data),) and stored.dtype == np.float32:
                return np.asarray(stored)
    if has_targets:
        outputs, _ = evaluate_outputs(teacher, data, name="train")
    else:
        outputs = collect_outputs(teacher, data, name="train")
    write_atomically(path, _npy_bytes(outputs))
    return outputs


def _npy_bytes(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
