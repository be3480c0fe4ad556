"""What masked prediction hides: patches of images, stretches of time, tokens; seeded by torch's generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

__all__ = ["corrupted_tokens", "hidden_patches"]


def hidden_patches(
    batch: int, axes: Sequence[int], *, patch: int, ratio: float, generator: Generator | None = None
) -> Tensor:
    """`bool [batch, *axes]`, true on that share of the patches, `patch` long in every axis, of each sample.

    The share is rounded to whole patches; one at least is hidden and one seen.
    """
    counts = [-(-size // patch) for size in axes]
    total = 1
    for count in counts:
        total *= count
    hidden = min(max(round(ratio * total), 1), max(total - 1, 1))
    rank = torch.rand(batch, total, generator=generator).argsort(dim=1).argsort(dim=1)
    mask = (rank < hidden).reshape(batch, *counts)
    for axis, size in enumerate(axes, start=1):
        mask = mask.repeat_interleave(patch, dim=axis).narrow(axis, 0, size)
    return mask


def corrupted_tokens(
    tokens: Tensor,
    *,
    vocabulary: int,
    ratio: float,
    mask_token: int | None,
    pad_token: int | None,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens as the model sees them, which to predict, which are masked), each `[B, T]`, for integer `tokens`.

    Of the share `ratio` to predict 80 % become `mask_token` (None leaves them, for the caller to hide), 10 % another
    token of the vocabulary, and 10 % stay (Devlin et al. 2019, section 3.1). `pad_token` is never among them; a row
    that has tokens has one to predict at least.
    """
    shape, device = tokens.shape, tokens.device
    draws = torch.rand(shape, generator=generator).to(device)
    usable = tokens != pad_token if pad_token is not None else torch.ones_like(tokens, dtype=torch.bool)
    draws = draws.masked_fill(~usable, 2.0)
    lowest = draws == draws.amin(dim=1, keepdim=True)
    chosen = ((draws < ratio) | lowest) & usable
    kind = torch.rand(shape, generator=generator).to(device)
    others = torch.randint(vocabulary, shape, generator=generator).to(device=device, dtype=tokens.dtype)
    masked = chosen & (kind < 0.8)
    swapped = chosen & (kind >= 0.8) & (kind < 0.9)
    seen = torch.where(swapped, others, tokens)
    if mask_token is not None:
        seen = seen.masked_fill(masked, mask_token)
    return seen, chosen, masked
