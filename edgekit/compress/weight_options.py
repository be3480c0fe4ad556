"""The options of the steps that change single weights and leave the architecture: `sparsify` and `share`."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from edgekit.compress.options import TrainOptions

__all__ = ["Bits", "ShareOptions", "SparsifyOptions", "Sparsity"]

Sparsity = Annotated[float, Field(gt=0, lt=1)]
Bits = Annotated[int, Field(ge=2, le=8)]


class SparsifyOptions(TrainOptions):
    """Magnitude pruning of single weights (Han et al. 2015), and N:M patterns; fine-tuning between the rounds."""

    sparsity: Sparsity | None = None
    """Share of the weights that become zero; 0.8 where neither this nor `pattern` is given."""
    pattern: str | None = None
    """`2:4`: of every 4 neighbours along the input axis at most 2 stay."""
    scope: Literal["global", "layer"] = "global"
    """Magnitudes are ranked over all layers together, or within each."""
    layers: dict[str, Sparsity] = Field(default_factory=dict)
    """Layers (globs) with a sparsity of their own."""
    exclude: tuple[str, ...] = ()
    """Layers or parameters (globs) that are left dense."""
    include: tuple[str, ...] = ()
    """Parameters (globs) taken besides the weights of linear, convolutional and recurrent layers, as `*.bias`."""
    rounds: Annotated[int, Field(ge=1)] = 1
    """1: all at once. More: the sparsity rises by the cubic schedule (Zhu and Gupta 2017, eq. 1)."""
    epochs: Annotated[int, Field(ge=0)] = 3
    """Of fine-tuning on the labels after each round; 0 for none."""

    @field_validator("pattern")
    @classmethod
    def _n_of_m(cls, value: str | None) -> str | None:
        if value is not None:
            found = re.fullmatch(r"(\d{1,3}):(\d{1,3})", value)
            if found is None or not 0 < int(found[1]) < int(found[2]):
                raise ValueError("a pattern is N:M with 0 < N < M, 2:4 say")
        return value

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.pattern is not None and (self.sparsity is not None or self.layers):
            raise ValueError("a pattern fixes the sparsity: leave 'sparsity' and 'layers' out")
        return self

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """How many weights of how many stay, by the pattern; None without one."""
        if self.pattern is None:
            return None
        kept, group = map(int, self.pattern.split(":"))
        return kept, group

    @property
    def target(self) -> float:
        """The share of zeros asked for, 0 to 1."""
        if self.kept_of is not None:
            kept, group = self.kept_of
            return 1 - kept / group
        return 0.8 if self.sparsity is None else self.sparsity


class ShareOptions(TrainOptions):
    """Weight sharing: a k-means codebook a layer, then its centroids fine-tuned (Han et al. 2016, section 3)."""

    bits: Bits = 5
    """A codebook has 2^bits values; zeros of a sparse layer stay zeros besides."""
    layers: dict[str, Bits] = Field(default_factory=dict)
    """Layers (globs) with another number of bits."""
    init: Literal["linear", "density", "random"] = "linear"
    """First centroids: evenly between the extremes, at quantiles, or weights drawn by the seed (section 3.2)."""
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    """Parameters (globs) taken besides the weights of known layers, as `*.bias`."""
    epochs: Annotated[int, Field(ge=0)] = 2
    """Of centroid fine-tuning on the labels; 0 for none."""
