"""Measurement matrices, from a seed alone, so that a sensor node and its hub need not exchange them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

import numpy as np

from edgekit.errors import UserError
from edgekit.schema import near_miss
from edgekit.sensing.options import MatrixKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["measurement_count", "measurement_matrix"]


def measurement_matrix(kind: str, measurements: int, signal: int, *, seed: int) -> NDArray[np.float64]:
    """A `[m, n]` of the given kind with columns of expected norm 1 (`orthogonal`: rows orthonormal).

    The same seed gives the same matrix. Raises UserError unless 0 < m < n, and for an unknown kind.
    """
    if kind not in get_args(MatrixKind):
        raise UserError(f"measurement matrix '{kind}': {near_miss(kind, list(get_args(MatrixKind)))}")
    if not 0 < measurements < signal:
        raise UserError(
            f"{measurements} measurements of {signal} numbers; compressed sensing takes from 1 to {signal - 1}",
            hint="lower the ratio, or send the signal itself",
        )
    generator = np.random.default_rng(np.random.SeedSequence([seed, measurements, signal]))
    if kind == "bernoulli":
        signs: NDArray[np.float64] = (generator.integers(0, 2, (measurements, signal)) * 2 - 1) / math.sqrt(
            measurements
        )
        return signs
    normal: NDArray[np.float64] = generator.standard_normal((measurements, signal))
    if kind == "orthogonal":
        rows, triangle = np.linalg.qr(normal.T)
        rows = rows * np.sign(np.diag(triangle))  # one factorisation, whatever LAPACK's signs
        orthonormal: NDArray[np.float64] = np.ascontiguousarray(rows.T)
        return orthonormal
    return normal / math.sqrt(measurements)


def measurement_count(ratio: float, signal: int) -> int:
    """m nearest to `ratio` · n; raises UserError where that is none at all or all n."""
    measurements = round(ratio * signal)
    if not 0 < measurements < signal:
        raise UserError(
            f"{ratio:g} of {signal} numbers are {measurements} measurements; compressed sensing takes at least 1 and "
            f"fewer than {signal}",
            hint=f"give a ratio between {1 / signal:.3g} and {(signal - 1) / signal:.3g}, or larger blocks",
        )
    return measurements
