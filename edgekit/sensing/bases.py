"""Orthonormal bases in which real signals are sparse, as matrices: x = Ψ s with s sparse.

basis("dct", (8, 8))           # 2-D DCT of an 8x8 block, flattened row by row: Ψ [64, 64]
basis("db4", (256,))           # Daubechies' wavelet of four vanishing moments, as deep as the length allows
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import MissingDependencyError, UserError
from edgekit.schema import near_miss

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["basis", "dct_basis", "known_bases", "wavelet_basis"]

MAX_SIZE = 4096
"""Numbers of a signal whose basis is still written as a matrix."""

WAVELETS = ("haar", *(f"db{n}" for n in range(2, 11)), *(f"sym{n}" for n in range(2, 11)), "coif1", "coif2", "coif3")
"""Orthogonal families of PyWavelets; a biorthogonal one would not keep the l2 norm, on which the solvers count."""


def known_bases() -> tuple[str, ...]:
    """Every name `basis` takes."""
    return ("identity", "dct", *WAVELETS)


def basis(name: str, shape: Sequence[int]) -> NDArray[np.float64]:
    """Ψ `[n, n]`, its columns the atoms of signals of `shape` (1 to 3 axes, flattened in C order); ΨᵀΨ = I.

    Raises UserError for an unknown name, a shape that has no such basis, and more than 4096 numbers.
    """
    if name not in known_bases():
        raise UserError(f"basis '{name}': {near_miss(name, known_bases())}")
    size = math.prod(shape)
    if not shape or size < 1 or size > MAX_SIZE:
        raise UserError(
            f"a basis of signals of {'x'.join(map(str, shape))} numbers; 1 to {MAX_SIZE} can be",
            hint="recover block by block",
        )
    if name == "identity":
        return np.eye(size)
    if name == "dct":
        atoms: NDArray[np.float64] = np.ones((1, 1))
        for extent in shape:
            atoms = np.kron(atoms, dct_basis(extent)).astype(np.float64)
        return atoms
    return wavelet_basis(name, shape)


def dct_basis(size: int) -> NDArray[np.float64]:
    """The orthonormal DCT-II (Ahmed, Natarajan and Rao 1974): column k is √(2/n) cos(π (i + ½) k / n)."""
    place, frequency = np.arange(size)[:, None] + 0.5, np.arange(size)[None, :]
    atoms: NDArray[np.float64] = np.cos(np.pi * place * frequency / size) * math.sqrt(2 / size)
    atoms[:, 0] /= math.sqrt(2)
    return atoms


def wavelet_basis(name: str, shape: Sequence[int]) -> NDArray[np.float64]:
    """An orthogonal wavelet's basis, periodic at the borders, over all axes alike, as deep as they allow (Mallat 1989).

    Raises UserError where an axis has an odd number of values.
    """
    try:
        import pywt
    except ImportError as e:
        raise MissingDependencyError("a wavelet basis", extra="train", package="PyWavelets") from e

    depth = _depth(shape, pywt.Wavelet(name).dec_len)
    if depth == 0:
        raise UserError(
            f"basis '{name}' needs an even number of values along each axis, and not fewer than its filter's length: "
            f"the signal is {'x'.join(map(str, shape))}",
            hint="take a shorter wavelet (haar), or dct",
        )
    size = math.prod(shape)
    rows = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Level value", category=UserWarning)  # periodic: no border to fear
        for atom in np.eye(size):
            coefficients = pywt.wavedecn(atom.reshape(shape), name, mode="periodization", level=depth)
            rows.append(pywt.coeffs_to_array(coefficients)[0].ravel())
    # Row i holds the coefficients of unit vector i: the analysis matrix transposed, which is Ψ.
    return np.stack(rows)


def _depth(shape: Sequence[int], filter_length: int) -> int:
    """Halvings until an axis turns odd or shorter than the filter."""
    depth = 0
    extents = list(shape)
    while all(extent % 2 == 0 and extent >= filter_length for extent in extents):
        extents = [extent // 2 for extent in extents]
        depth += 1
    return depth
