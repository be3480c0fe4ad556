"""The losses of self-supervised pretraining."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

__all__ = ["byol_loss", "masked_l1", "nt_xent", "simsiam_loss"]


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross-entropy of two views `[B, D]` each, scalar (Chen et al. 2020, eq. 1).

    The mean over all 2B views i of -log(exp(sim(i, j)/T) / sum over k != i of exp(sim(i, k)/T)), with j the other view
    of the same sample and sim the cosine. log(2B - 1) is what views without any likeness give.
    """
    views = F.normalize(torch.cat([first, second]).float(), dim=1)
    similarity = views @ views.T / temperature
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(similarity.masked_fill(itself, float("-inf")), partner)


def simsiam_loss(predictions: tuple[Tensor, Tensor], projections: tuple[Tensor, Tensor]) -> Tensor:
    """The negative cosine of each view's prediction and the other's projection, scalar in [-1, 1].

    No gradient goes through the projections (Chen and He 2021, eq. 2: the stop-gradient, and the mean of both ways).
    """
    one = F.cosine_similarity(predictions[0], projections[1].detach(), dim=1).mean()
    other = F.cosine_similarity(predictions[1], projections[0].detach(), dim=1).mean()
    return -(one + other) / 2


def byol_loss(predictions: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """The squared distance of normalised predictions and the target network's projections of the other view, scalar.

    2 - 2 cos, both ways added (Grill et al. 2020, eq. 2), so in [0, 8].
    """
    return 4 + 4 * simsiam_loss(predictions, targets)


def masked_l1(predicted: Tensor, true: Tensor, hidden: Tensor) -> Tensor:
    """The mean absolute error of `predicted` `[B, C, *axes]` where `hidden` `[B, *axes]` is true (Xie et al. 2022)."""
    weights = hidden.unsqueeze(1).expand_as(true)
    return (predicted - true).abs()[weights].mean()
