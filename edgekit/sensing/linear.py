"""Linear recovery: the best linear estimate of a signal from its measurements, by the statistics of other signals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgekit.errors import WorkloadError
from edgekit.training.batches import BatchSource

if TYPE_CHECKING:
    from edgekit.sensing.acquisition import Sensor
    from edgekit.workload import MapDataset

__all__ = ["MAX_SIGNAL", "linear_estimate", "lmmse", "pseudoinverse"]

MAX_SIGNAL = 4096
"""Numbers of one block whose covariance is still handled."""

SAMPLES = 10_000
"""Training samples the statistics are taken from, evenly spaced."""

RIDGE = 1e-6
"""Noise assumed in the measurements, as a share of their mean variance; keeps A C Aᵀ invertible."""


def pseudoinverse(matrix: Tensor) -> Tensor:
    """A⁺ `[n, m]` of A `[m, n]`."""
    inverse: Tensor = torch.linalg.pinv(matrix.double())
    return inverse.to(matrix.dtype)


def linear_estimate(sensor: Sensor, data: MapDataset, position: int, *, labelled: bool = True) -> tuple[Tensor, Tensor]:
    """W `[n, m]` and v `[n]` of the linear estimate x̂ = W y + v, by the blocks of `data`'s inputs at `position`.

    Raises WorkloadError for data that are not finite.
    """
    size = sensor.matrix.shape[1]
    count, total, second = 0, torch.zeros(size).double(), torch.zeros(size, size).double()
    for blocks in _blocks(sensor, data, position, labelled):
        exact = blocks.double()
        total += exact.sum(0)
        second += exact.T @ exact
        count += len(exact)
    mean = total / count
    covariance = second / count - torch.outer(mean, mean)
    if not torch.isfinite(covariance).all():
        raise WorkloadError("the training data hold values that are not finite; no linear decoder can be fitted")
    weight, offset = lmmse(sensor.matrix.detach(), mean, covariance)
    return weight.float(), offset.float()


def lmmse(matrix: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The linear minimum mean-square-error estimate: W = C Aᵀ (A C Aᵀ + εI)⁻¹ and v = μ − W A μ.

    `matrix` `[m, n]`, `mean` `[n]`, `covariance` `[n, n]`; W `[n, m]`, v `[n]`, in double precision (Kay 1993, 12.3).
    """
    exact = matrix.double()
    crossed = exact @ covariance
    measured = crossed @ exact.T
    noise = RIDGE * measured.diagonal().mean().clamp_min(1e-12)
    weight = torch.linalg.solve(measured + noise * torch.eye(len(exact), dtype=torch.float64), crossed).T
    return weight, mean - weight @ (exact @ mean)


def _blocks(sensor: Sensor, data: MapDataset, position: int, labelled: bool) -> Iterator[Tensor]:
    source = BatchSource(data, "train", labelled=labelled)
    wanted = min(len(source), SAMPLES)
    chosen = torch.linspace(0, len(source) - 1, wanted, dtype=torch.float64).round().long()
    for indices in torch.split(chosen, 512):
        yield sensor.blocks(source.fetch(indices).inputs[position])
