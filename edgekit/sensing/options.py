"""The options of the `sense` step, as a recipe writes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgekit.schema import Record

__all__ = ["MatrixKind", "SenseOptions"]

MatrixKind = Literal["gaussian", "bernoulli", "orthogonal"]
"""Entries of variance 1/m: normal, or ±1/√m; or a normal matrix with its rows made orthonormal."""


class SenseOptions(Record):
    """A compressed-sensing front-end: the student reads m = ratio · n measurements y = A x instead of the signal.

    Nothing is trained by this step: a linear decoder gives the student's network its input back as well as m numbers
    allow, and a `finetune` or `distill` step after it adapts the network (and the matrix, where it is `learned`).
    """

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """m / n: measurements sent for each number of the signal."""
    block: Annotated[int, Field(ge=2)] | None = None
    """One matrix for every block of this size, across all channels: b x b pixels of an image `[C, H, W]`, b steps of a
    series `[C, T]`; None measures the signal as a whole."""
    matrix: MatrixKind = "gaussian"
    learned: bool = False
    """Train the matrix with the student in the steps that follow."""
    decoder: Literal["linear", "pseudoinverse"] = "linear"
    """What the student's network is given first: the best linear estimate by the training data, or A⁺ y."""
    input: Annotated[int, Field(ge=0)] = 0
    """Which of the model's inputs is measured."""
