"""Where recovery by l1 succeeds: the Donoho-Tanner curve, and the share of random problems a solver solves.

For n large, min ‖s‖₁ subject to A s = y finds a k-sparse s from m Gaussian measurements with probability near 1 below
ρ(δ) = k/m at δ = m/n, near 0 above (Donoho and Tanner 2009, weak threshold of the cross-polytope).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgekit.errors import UserError

__all__ = ["SuccessRate", "crossing", "donoho_tanner", "statistical_dimension", "success_rate"]

EXACT = 1e-3
"""A problem counts as solved when ‖ŝ − s‖ ≤ this · ‖s‖, as Donoho and Tanner's experiments had it."""


def statistical_dimension(sparse: float) -> float:
    """δ(descent cone of ‖·‖₁ at a vector with a share `sparse` of nonzeros) / n, the measurements needed per number.

    ψ(σ) = inf_τ [ σ (1 + τ²) + (1 − σ) · 2 ∫_τ^∞ (u − τ)² φ(u) du ] (Amelunxen, Lotz, McCoy and Tropp 2014, Prop. 4.5).
    The infimum is where σ τ = (1 − σ) · 2 ∫_τ^∞ (u − τ) φ(u) du, found by bisection.
    """
    if not 0 <= sparse <= 1:
        raise UserError(f"a share of {sparse} nonzeros; give one from 0 to 1")
    if sparse in (0.0, 1.0):
        return sparse
    low, high = 0.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        falling = sparse * middle < (1 - sparse) * 2 * (_density(middle) - middle * _tail(middle))
        low, high = (middle, high) if falling else (low, middle)
    tau = (low + high) / 2
    beyond = 2 * ((1 + tau**2) * _tail(tau) - tau * _density(tau))
    return sparse * (1 + tau**2) + (1 - sparse) * beyond


def donoho_tanner(delta: float) -> float:
    """ρ(δ), the weak threshold: the k/m at which the statistical dimension of k nonzeros is m."""
    if not 0 < delta < 1:
        raise UserError(f"δ = m/n is {delta}; give one between 0 and 1")
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if statistical_dimension(middle * delta) < delta else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessRate:
    """How many of `trials` random problems of one size a solver solved."""

    rows: int
    """m."""
    size: int
    """n."""
    nonzeros: int
    """k."""
    solved: int
    trials: int

    @property
    def rho(self) -> float:
        return self.nonzeros / self.rows

    @property
    def rate(self) -> float:
        return self.solved / self.trials


def success_rate(
    solve: Callable[[Tensor, Tensor], Tensor],
    *,
    size: int,
    rows: int,
    nonzeros: int,
    trials: int,
    seed: int,
    matrices: int = 5,
) -> SuccessRate:
    """The rate of `solve(A [m, n], y [B, m]) -> [B, n]` over Gaussian A and k-sparse vectors with normal nonzeros.

    The trials share `matrices` matrices evenly; each has a support and values of its own. float64, from `seed`.
    """
    generator = np.random.default_rng([seed, size, rows, nonzeros])
    solved = 0
    for batch in np.array_split(np.arange(trials), matrices):
        matrix = torch.from_numpy(generator.standard_normal((rows, size)) / math.sqrt(rows))
        signals = torch.zeros(len(batch), size, dtype=torch.float64)
        for signal in signals:
            support = torch.from_numpy(generator.permutation(size)[:nonzeros])
            signal[support] = torch.from_numpy(generator.standard_normal(nonzeros))
        error = torch.linalg.vector_norm(solve(matrix, signals @ matrix.T) - signals, dim=1)
        solved += int(torch.count_nonzero(error <= EXACT * torch.linalg.vector_norm(signals, dim=1)))
    return SuccessRate(rows=rows, size=size, nonzeros=nonzeros, solved=solved, trials=trials)


def crossing(rates: Sequence[SuccessRate]) -> float | None:
    """ρ at which success falls through 50 %, by a logistic fit (maximum likelihood) to rates at several ρ, one δ.

    None where the rates do not bracket 50 %.
    """
    if not rates or max(r.rate for r in rates) < 0.5 or min(r.rate for r in rates) > 0.5:
        return None
    rho = np.array([r.rho for r in rates])
    solved, trials = np.array([r.solved for r in rates], float), np.array([r.trials for r in rates], float)
    middle = float(np.average(rho))
    design = np.stack([np.ones_like(rho), rho - middle], axis=1)
    weights = np.zeros(2)
    for _ in range(200):  # Newton, ridged a little: separable rates have no finite slope
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (solved - trials * p) - 1e-4 * weights
        curvature = design.T @ (design * (trials * p * (1 - p))[:, None]) + 1e-4 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights = weights + np.clip(step, -50, 50)
        if np.abs(step).max() < 1e-9:
            break
    return float(middle - weights[0] / weights[1])


def _density(value: float) -> float:
    return math.exp(-(value**2) / 2) / math.sqrt(2 * math.pi)


def _tail(value: float) -> float:
    return math.erfc(value / math.sqrt(2)) / 2
