"""Sparse weights as random projections, y = A w: what that costs beside entropy coding.

    code = encode_sparse(pruned, rows=384, block=1024, seed=0)    # the encoder need not know where the nonzeros are
    weights = decode_sparse(code, nonzeros=120).weights

The encoder adds and multiplies, nothing else, and codes add: A w₁ + A w₂ is the code of w₁ + w₂. In bytes it does not
come near entropy coding, which pays about log₂(n/k) + 1.44 bits for a position where projections pay the m/k − 1
further values that recovery needs (`docs/sensing.md` has the figures).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from edgekit.errors import UserError
from edgekit.sensing.matrices import measurement_matrix
from edgekit.sensing.phase import statistical_dimension
from edgekit.sensing.pursuit import omp
from edgekit.sensing.recovery import basis_pursuit

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Decoded", "SparseCode", "deal", "decode_sparse", "encode_sparse", "entropy_bound_bits", "rows_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseCode:
    """Projections of a weight tensor, block by block; all a receiver needs."""

    projections: NDArray[np.floating]
    """`[blocks, rows]`."""
    shape: tuple[int, ...]
    block: int
    seed: int

    @property
    def nbytes(self) -> int:
        return self.projections.nbytes

    def __add__(self, other: SparseCode) -> SparseCode:
        """The code of the sum of both tensors; raises UserError for codes made otherwise."""
        mine, theirs = (self.shape, self.block, self.seed), (other.shape, other.block, other.seed)
        if mine != theirs or self.projections.shape != other.projections.shape:
            raise UserError(f"codes of {theirs} and {mine} (shape, block, seed) do not add")
        return SparseCode(
            projections=self.projections + other.projections, shape=self.shape, block=self.block, seed=self.seed
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Weights as they came out, and how many blocks answer their projections."""

    weights: NDArray[np.float32]
    blocks: int
    unsolved: int
    """Blocks whose residual stayed above the tolerance: these weights are wrong."""


def encode_sparse(
    weights: NDArray[np.floating], *, rows: int, block: int = 1024, seed: int, value_bits: Literal[16, 32] = 32
) -> SparseCode:
    """`rows` projections of each `block` weights, the weights dealt to the blocks in an order made from `seed`.

    Dealt, so that each block has about its share of the nonzeros; the last is filled with zeros. Raises UserError for
    weights that are not finite and unless 0 < rows < block.
    """
    if not np.isfinite(weights).all():
        raise UserError("the weights hold values that are not finite")
    matrix = measurement_matrix("gaussian", rows, block, seed=seed)
    dealt = np.zeros(-(-weights.size // block) * block)
    dealt[deal(weights.size, dealt.size, seed)] = weights.ravel()
    dtype = np.float16 if value_bits == 16 else np.float32
    return SparseCode(
        projections=(dealt.reshape(-1, block) @ matrix.T).astype(dtype), shape=weights.shape, block=block, seed=seed
    )


def decode_sparse(
    code: SparseCode, *, nonzeros: int, method: Literal["omp", "l1"] = "omp", tolerance: float | None = None
) -> Decoded:
    """The weights, each block with at most `nonzeros` of them (OMP), or of least l1 norm.

    `tolerance` is the relative residual a solved block is left with; by default what rounding of the projections
    leaves. Raises UserError for projections that are not finite.
    """
    rows = code.projections.shape[1]
    matrix = torch.from_numpy(measurement_matrix("gaussian", rows, code.block, seed=code.seed))
    y = torch.from_numpy(code.projections.astype(np.float64))
    rounding = float(np.finfo(code.projections.dtype).eps)
    allowed = tolerance if tolerance is not None else 2 * rounding
    found = (
        omp(matrix, y, sparsity=min(nonzeros, rows), tolerance=allowed) if method == "omp" else basis_pursuit(matrix, y)
    )
    # l1 meets y whatever it is: a block is solved where it needed no more nonzeros than were there.
    entries = (found.coefficients.abs() > 1e-4 * found.coefficients.abs().amax(dim=1, keepdim=True)).sum(dim=1)
    solved = (found.residual <= allowed) & (entries <= nonzeros) if method == "omp" else entries <= nonzeros
    order = deal(math.prod(code.shape), y.shape[0] * code.block, code.seed)
    dealt = found.coefficients.numpy().ravel()
    return Decoded(
        weights=dealt[order].reshape(code.shape).astype(np.float32),
        blocks=len(y),
        unsolved=int(torch.count_nonzero(~solved)),
    )


def rows_for(nonzeros: int, block: int, *, margin: float = 1.15) -> int:
    """The fewest rows at which l1 recovers `nonzeros` of `block` by the Donoho-Tanner curve, times `margin`.

    Raises UserError where that is not fewer than `block`: projections then save nothing.
    """
    rows = math.ceil(block * statistical_dimension(nonzeros / block) * margin)
    if rows >= block:
        raise UserError(
            f"{nonzeros} nonzeros of {block} are too many: recovery would need all {block} projections",
            hint="prune further, or send the weights themselves",
        )
    return rows


def entropy_bound_bits(size: int, nonzeros: int, *, value_bits: float) -> float:
    """Bits of k of n weights entropy coded: n · H(k/n) for where they are, k · `value_bits` for what they are.

    What an ideal arithmetic coder of independent positions needs (Shannon 1948); log₂(n/k) + 1.44 bits a position where
    k is much smaller than n.
    """
    if not 0 <= nonzeros <= size:
        raise UserError(f"{nonzeros} nonzeros of {size} weights")
    share = nonzeros / size
    if share in (0.0, 1.0):
        return nonzeros * value_bits
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    return size * entropy + nonzeros * value_bits


def deal(count: int, places: int, seed: int) -> NDArray[np.int64]:
    """Which of `places` each of `count` weights is dealt to."""
    return np.random.default_rng([seed, places]).permutation(places)[:count]
