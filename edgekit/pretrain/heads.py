"""The heads that pretraining trains beside the encoder and throws away."""

from __future__ import annotations

import math

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

__all__ = ["Reconstruction", "predictor", "projector", "token_head"]


def projector(features: int, hidden: int, width: int, *, is_deep: bool = False) -> nn.Sequential:
    """`[B, features]` to `[B, width]`: two layers with batch norm between; three, the last normed too, if deep.

    SimCLR and BYOL have two (Chen et al. 2020, section 4.2), SimSiam three (Chen and He 2021, section 3).
    """
    layers: list[nn.Module] = [nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
    if is_deep:
        layers += [nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(hidden, width, bias=False), nn.BatchNorm1d(width, affine=False))
    return nn.Sequential(*layers, nn.Linear(hidden, width))


def predictor(width: int, hidden: int) -> nn.Sequential:
    """`[B, width]` to `[B, width]`, two layers (SimSiam's is a bottleneck: hidden a quarter of width)."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width)
    )


def token_head(features: int, hidden: int, vocabulary: int) -> nn.Sequential:
    """`[…, features]` to scores `[…, vocabulary]` (BERT's: dense, GELU, layer norm, decoder)."""
    return nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.LayerNorm(hidden), nn.Linear(hidden, vocabulary))


class Reconstruction(nn.Module):
    """The signal `[B, C, *axes]` from features `[B, D, *grid]`.

    Where the grid lies over the axes one linear layer tells each cell's share of the signal (Xie et al. 2022, section
    3.4: a 1x1 prediction head); tokens in a row are folded into the image's grid, a class token left out. Features
    without a grid, or with another one, go pooled through two layers.
    """

    def __init__(self, features: int, grid: tuple[int, ...], shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.shape = shape
        channels, axes = shape[0], shape[1:]
        self.folded = _folded(grid, axes)
        if self.folded is None:
            self.head: nn.Module = nn.Sequential(
                nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, math.prod(shape))
            )
            self.cell: tuple[int, ...] = ()
        else:
            self.cell = tuple(-(-size // cells) for size, cells in zip(axes, self.folded, strict=True))
            self.head = nn.Linear(features, channels * math.prod(self.cell))

    def forward(self, features: Tensor) -> Tensor:
        if self.folded is None:
            flat = features.flatten(2).mean(dim=2) if features.ndim > 2 else features
            made: Tensor = self.head(flat)
            return made.reshape(len(flat), *self.shape)
        cells = features.flatten(2)[:, :, -math.prod(self.folded) :]
        values: Tensor = self.head(cells.transpose(1, 2))
        values = values.reshape(len(features), *self.folded, self.shape[0], *self.cell)
        count = len(self.folded)
        # [B, *grid, C, *cell] to [B, C, grid, cell, grid, cell, …]
        order = [0, count + 1, *(axis for i in range(count) for axis in (1 + i, count + 2 + i))]
        sizes = [cells * side for cells, side in zip(self.folded, self.cell, strict=True)]
        values = values.permute(order).reshape(len(features), self.shape[0], *sizes)
        if tuple(sizes) == self.shape[1:]:
            return values
        return F.interpolate(values, self.shape[1:], mode="linear" if count == 1 else "bilinear")


def _folded(grid: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The grid as it lies over the axes; None where it does not."""
    if len(grid) == len(axes):
        return tuple(grid) if all(1 <= g <= a for g, a in zip(grid, axes, strict=True)) else None
    if len(grid) == 1 and len(axes) == 2:
        for tokens in (grid[0], grid[0] - 1):
            rows = round(math.sqrt(tokens * axes[0] / axes[1]))
            if rows and tokens % rows == 0 and rows * axes[1] == (tokens // rows) * axes[0]:
                return rows, tokens // rows
    return None
