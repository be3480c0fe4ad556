"""What several parts use: the words of a verdict, images moved about."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["moved", "verdict"]


def verdict(is_reached: bool, *, seeds: int = 1, of: int = 1) -> str:
    """`reached` (so far, where fewer than all seeds are measured) or `missed`."""
    if not is_reached:
        return "**missed**"
    return "reached" if seeds == of else f"reached so far ({seeds} of {of} seeds)"


def moved(images: Tensor, by: int, **padding: Any) -> Tensor:
    """`[B, C, H, W]` shifted by up to `by` pixels each way, one shift a batch; `padding` (of torch's pad) comes in."""
    padded = functional.pad(images, (by, by, by, by), **padding)
    down, right = torch.randint(0, 2 * by + 1, (2,)).tolist()
    return padded[:, :, down : down + images.shape[2], right : right + images.shape[3]]
