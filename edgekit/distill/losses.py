"""The losses between a feature of the student and one of the teacher.

Each is a module called with (student's feature, teacher's feature) that gives a scalar; what it learns, if anything,
is trained beside the student and no part of it. Features are `[B, C]` or `[B, C, …]`, channels on axis 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from edgekit.errors import WorkloadError

__all__ = [
    "AttentionTransfer",
    "Hint",
    "RelationalAngle",
    "RelationalDistance",
    "attention_map",
    "pooled_alike",
]


class Hint(nn.Module):
    """FitNets' hint (Romero et al. 2015, eq. 3): mean squared distance of the teacher's feature and the regressed
    student's.

    The regressor is a 1x1 convolution (a linear map of the channels at every position); the paper's is a convolution
    over the difference in extent, here the larger feature is pooled instead.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.regressor = nn.Linear(student_channels, teacher_channels)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The scalar hint loss of `[B, C_s, …]` against `[B, C_t, …]`."""
        student, teacher = pooled_alike(student, teacher)
        regressed = self.regressor(student.movedim(1, -1)).movedim(-1, 1)
        return F.mse_loss(regressed, teacher)


class AttentionTransfer(nn.Module):
    """Activation-based attention transfer (Zagoruyko and Komodakis 2017, eq. 2), p = 2.

    As the authors' code does, the distance of the normalised maps is squared and averaged over positions.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The scalar loss of `[B, C_s, …]` against `[B, C_t, …]`; raises WorkloadError for vectors."""
        if student.ndim < 3 or teacher.ndim < 3:
            raise WorkloadError(
                f"attention transfer compares positions, and the features are {tuple(student.shape)} and "
                f"{tuple(teacher.shape)}",
                hint="name modules before the pooling, or use features: for vectors",
            )
        student, teacher = pooled_alike(student, teacher)
        return (attention_map(student) - attention_map(teacher)).square().mean()


def attention_map(feature: Tensor) -> Tensor:
    """`[B, positions]`: the mean square over the channels of `[B, C, …]`, each row of length 1."""
    return F.normalize(feature.square().mean(dim=1).flatten(1))


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both features with the smaller extent of the two in every axis after the channels, by adaptive mean pooling.

    Features with other numbers of axes: the one with more is averaged over all its positions, if the other has none;
    else WorkloadError.
    """
    if student.ndim != teacher.ndim:
        if min(student.ndim, teacher.ndim) == 2:
            return _flat(student), _flat(teacher)
        raise WorkloadError(
            f"features of {tuple(student.shape)} and {tuple(teacher.shape)} cannot be compared: other numbers of axes",
            hint="pair modules that give the same kind of feature",
        )
    extent = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return _pooled(student, extent), _pooled(teacher, extent)


def _flat(feature: Tensor) -> Tensor:
    return feature.flatten(2).mean(dim=2) if feature.ndim > 2 else feature


def _pooled(feature: Tensor, extent: list[int]) -> Tensor:
    if list(feature.shape[2:]) == extent:
        return feature
    pools: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
    if len(extent) not in pools:
        raise WorkloadError(f"a feature of {feature.ndim} axes {tuple(feature.shape)} cannot be pooled")
    pooled: Tensor = pools[len(extent)](feature, extent)
    return pooled


class RelationalDistance(nn.Module):
    """RKD-D (Park et al. 2019, section 3.2.1): Huber loss of pairwise distances, each in units of its batch's mean."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The scalar loss of `[B, …]` against `[B, …]`; 0 for a batch of one."""
        if len(student) < 2:
            return student.sum() * 0.0
        return F.smooth_l1_loss(_relative(_distances(_gram(student))), _relative(_distances(_gram(teacher))))


class RelationalAngle(nn.Module):
    """RKD-A (Park et al. 2019, section 3.2.2): Huber loss of the cosines of the angles in every triplet of a batch.

    The cosines come from the batch's Gram matrix: `[B, B, B]` values, whatever the features' size.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The scalar loss of `[B, …]` against `[B, …]`; 0 for fewer than three samples."""
        if len(student) < 3:
            return student.sum() * 0.0
        return F.smooth_l1_loss(_cosines(_gram(student)), _cosines(_gram(teacher)))


def _gram(feature: Tensor) -> Tensor:
    """`[B, B]` inner products of the rows, measured from their mean: distances and angles do not depend on it, and
    less is lost to cancellation."""
    rows = feature.flatten(1)
    rows = rows - rows.mean(dim=0, keepdim=True)
    return rows @ rows.T


def _distances(gram: Tensor) -> Tensor:
    """`[B, B]` Euclidean distances, 0 on the diagonal."""
    squares = gram.diagonal()
    gaps = (squares[:, None] + squares[None, :] - 2 * gram).clamp(min=1e-12)
    # A square root has no gradient at 0: the diagonal is kept out of it, not only zeroed behind it.
    itself = torch.eye(len(gram), dtype=torch.bool, device=gram.device)
    return gaps.masked_fill(itself, 1.0).sqrt().masked_fill(itself, 0.0)


def _relative(distances: Tensor) -> Tensor:
    count = len(distances) * (len(distances) - 1)
    return distances / (distances.sum() / count).clamp(min=1e-12)


def _cosines(gram: Tensor) -> Tensor:
    """`[B, B, B]`: entry (j, i, k) is the cosine of the angle at j between i and k; 0 where i or k is j."""
    from_j = gram[:, :, None]  # <j, i>
    inner = gram[None, :, :] - from_j - gram[:, None, :] + gram.diagonal()[:, None, None]
    distances = _distances(gram)
    lengths = distances[:, :, None] * distances[:, None, :]
    apart = lengths > 0
    return torch.where(apart, inner / torch.where(apart, lengths, 1.0), 0.0)
