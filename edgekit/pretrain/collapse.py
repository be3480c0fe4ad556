"""Whether a representation collapsed: every sample at one point, or all on one line."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

__all__ = ["Spread", "spread_of"]

SMALLEST_DEVIATION = 0.02
SMALLEST_RANK = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far apart the samples' features lie."""

    deviation: float
    """Standard deviation of the L2-normalised features, the mean over dimensions times sqrt(D): 1 when directions are
    spread evenly, 0 when all are one (Chen and He 2021, section 4.1)."""
    rank: float
    """exp of the entropy of the centred features' singular values (RankMe, Garrido et al. 2023, eq. 1)."""
    width: int

    @property
    def is_collapsed(self) -> bool:
        return not (self.deviation >= SMALLEST_DEVIATION and (self.rank >= SMALLEST_RANK or self.width == 1))

    def told(self) -> str:
        """One sentence on it."""
        if not self.is_collapsed:
            return f"spread {self.deviation:.2f}, effective rank {self.rank:.1f} of {self.width}"
        what = "all samples look alike" if self.deviation < SMALLEST_DEVIATION else "they differ in one direction only"
        return (
            f"the representation collapsed: {what} (spread {self.deviation:.3f}, effective rank {self.rank:.1f} of "
            f"{self.width}); lower the learning rate, take a larger batch, stronger augmentations or method: simclr"
        )


def spread_of(features: Tensor) -> Spread:
    """The Spread of `features` `[N, D]`, N at least 2."""
    features = features.double()
    directions = F.normalize(features, dim=1)
    deviation = directions.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5
    values = torch.linalg.svdvals(features - features.mean(dim=0))
    shares = values / values.sum().clamp_min(1e-12)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return Spread(deviation=float(deviation), rank=float(entropy.exp()), width=features.shape[1])
