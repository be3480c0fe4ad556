"""Sparse recovery: s from y = D s, D = A Ψ, for batches of measurements on the host.

    dictionary = torch.from_numpy(matrix @ basis("dct", (8, 8)))
    found = fista(dictionary, y, penalty=0.01)                    # y [B, m]
    blocks = found.coefficients @ torch.from_numpy(basis("dct", (8, 8))).T

`ista` and `fista` minimise ½‖y − D s‖² + λ‖s‖₁; `fista_continuation` lowers λ until y is met; `basis_pursuit` solves
min ‖s‖₁ subject to D s = y; `omp` picks atoms one by one. `D` is `[m, n]`, or `[B, m, n]` for a matrix each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.errors import UserError

__all__ = ["Recovery", "basis_pursuit", "fista", "fista_continuation", "ista", "soft_threshold"]


CHUNK = 25
"""Iterations between two looks at which rows are at rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What a solver found."""

    coefficients: Tensor
    """`[B, n]`."""
    iterations: int
    converged: Tensor
    """`bool [B]`: the change fell below the tolerance (OMP: the residual did) before the iterations ran out."""
    residual: Tensor
    """‖y − D s‖ / ‖y‖ `[B]`; 0 where y is 0."""


def soft_threshold(values: Tensor, threshold: Tensor | float) -> Tensor:
    """sign(v) · max(|v| − t, 0), the proximal operator of t‖·‖₁."""
    return torch.sign(values) * (values.abs() - threshold).clamp_min(0)


def ista(dictionary: Tensor, y: Tensor, *, penalty: float, iterations: int = 1000, tolerance: float = 1e-6) -> Recovery:
    """Iterative soft thresholding (Daubechies, Defrise and De Mol 2004): s ← S_{λ/L}(s + Dᵀ(y − D s) / L).

    L is the largest eigenvalue of DᵀD. Stops when no row changes by more than `tolerance` relative to its norm.
    """
    return _proximal_gradient(dictionary, y, penalty, iterations, tolerance, accelerated=False)


def fista(
    dictionary: Tensor, y: Tensor, *, penalty: float, iterations: int = 1000, tolerance: float = 1e-6
) -> Recovery:
    """FISTA (Beck and Teboulle 2009, eqs. 4.1 to 4.3): ISTA at a point extrapolated by t_k, error O(1/k²)."""
    return _proximal_gradient(dictionary, y, penalty, iterations, tolerance, accelerated=True)


def fista_continuation(
    dictionary: Tensor,
    y: Tensor,
    *,
    stages: int = 12,
    reduction: float = 0.4,
    iterations: int = 500,
    tolerance: float = 1e-7,
) -> Recovery:
    """FISTA for λ = 0.4^k ‖Dᵀy‖∞, k = 1 … `stages`, each started where the last ended (Hale, Yin and Zhang 2008).

    For measurements without noise: λ ends so small that D s = y nearly holds. λ is each row's own.
    """
    check_measurements(dictionary, y)
    largest = _adjoint(dictionary, y).abs().amax(dim=1, keepdim=True)
    s = torch.zeros(len(y), dictionary.shape[-1], dtype=y.dtype)
    done, still = 0, torch.zeros(len(y), dtype=torch.bool)
    for stage in range(1, stages + 1):
        problem = _Lasso(dictionary=dictionary, y=y, penalty=largest * reduction**stage)
        s, used, still = problem.descend(s, iterations, tolerance, accelerated=True)
        done += used
    return _found(dictionary, y, s, done, still)


def basis_pursuit(
    dictionary: Tensor, y: Tensor, *, iterations: int = 5000, tolerance: float = 1e-7, step: float | None = None
) -> Recovery:
    """min ‖s‖₁ subject to D s = y (Chen, Donoho and Saunders 1998), by Douglas-Rachford splitting.

    z ← z + P(2 S_γ(z) − z) − S_γ(z) with P the projection on {D s = y} (Combettes and Pesquet 2007); P is formed
    once. Exact where the solution is sparse; where it is not, ‖s‖₁ may still be some 1e-4 above the minimum when the
    iterations run out, and `converged` is False. γ is a tenth of each row's largest entry of D⁺y unless given. For
    measurements without noise.
    """
    check_measurements(dictionary, y)
    inverse = torch.linalg.pinv(dictionary)
    least = _times(inverse, y)
    gamma: Tensor | float = step if step is not None else 0.1 * least.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    projector = torch.eye(dictionary.shape[-1], dtype=y.dtype) - inverse @ dictionary
    scale = gamma if isinstance(gamma, Tensor) else torch.full((len(y), 1), gamma, dtype=y.dtype)

    def update(state: State, matrix: Tensor, rows: Tensor, _done: int) -> State:
        shrunk = soft_threshold(state[1], scale[rows])
        feasible = _times(matrix, 2 * shrunk - state[1]) + least[rows]
        return feasible, state[1] + feasible - shrunk

    (s, _), done, still = _until_still(update, (least, least), projector, iterations, tolerance)
    return _found(dictionary, y, s, done, still)


def check_measurements(dictionary: Tensor, y: Tensor) -> None:
    """Raise UserError unless D is `[m, n]` or `[B, m, n]` with m < n, y `[B, m]`, both finite floats of one dtype."""
    if y.ndim != 2 or dictionary.ndim not in (2, 3) or dictionary.shape[-2] != y.shape[1]:
        raise UserError(
            f"measurements of shape {list(y.shape)} for a dictionary of {list(dictionary.shape)}",
            hint="y is [B, m] and the dictionary A Ψ is [m, n], or [B, m, n] with one for each row of y",
        )
    if dictionary.ndim == 3 and len(dictionary) != len(y):
        raise UserError(f"{len(dictionary)} dictionaries for {len(y)} rows of measurements")
    rows, columns = dictionary.shape[-2:]
    if rows >= columns:
        raise UserError(
            f"{rows} measurements of {columns} numbers: sparse recovery is for fewer measurements than numbers",
            hint="solve the least-squares problem (torch.linalg.lstsq)",
        )
    if not y.is_floating_point() or y.dtype != dictionary.dtype:
        raise UserError(f"measurements are {y.dtype}, the dictionary {dictionary.dtype}; both must be one float type")
    for name, value in (("measurements", y), ("dictionary", dictionary)):
        bad = int(torch.count_nonzero(~torch.isfinite(value)))
        if bad:
            raise UserError(f"{bad} values of the {name} are not finite", hint="look where they were measured")


def _proximal_gradient(
    dictionary: Tensor, y: Tensor, penalty: float, iterations: int, tolerance: float, *, accelerated: bool
) -> Recovery:
    check_measurements(dictionary, y)
    if not (math.isfinite(penalty) and penalty > 0):
        raise UserError(f"the penalty λ is {penalty}; give a positive number", hint="0.01 · ‖Dᵀy‖∞ is a start")
    problem = _Lasso(dictionary=dictionary, y=y, penalty=torch.full((len(y), 1), penalty, dtype=y.dtype))
    start = torch.zeros(len(y), dictionary.shape[-1], dtype=y.dtype)
    s, done, still = problem.descend(start, iterations, tolerance, accelerated=accelerated)
    return _found(dictionary, y, s, done, still)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lasso:
    """½‖y − D s‖² + λ‖s‖₁ for each row, λ `[B, 1]`."""

    dictionary: Tensor
    y: Tensor
    penalty: Tensor

    def descend(
        self, start: Tensor, iterations: int, tolerance: float, *, accelerated: bool
    ) -> tuple[Tensor, int, Tensor]:
        """(s, iterations used, rows that stopped changing) from `start`."""
        lipschitz = _lipschitz(self.dictionary)
        momenta = [1.0]
        while len(momenta) <= iterations:
            momenta.append((1 + math.sqrt(1 + 4 * momenta[-1] ** 2)) / 2)

        def update(state: State, matrix: Tensor, rows: Tensor, done: int) -> State:
            bound = lipschitz[rows] if lipschitz.ndim else lipschitz
            gradient = _adjoint(matrix, _times(matrix, state[1]) - self.y[rows])
            following = soft_threshold(state[1] - gradient / bound, self.penalty[rows] / bound)
            pushed = (momenta[done] - 1) / momenta[done + 1] if accelerated else 0.0
            return following, following + pushed * (following - state[0])

        (s, _), done, still = _until_still(update, (start, start), self.dictionary, iterations, tolerance)
        return s, done, still


State = tuple[Tensor, Tensor]
"""The estimate s `[B, n]` and a companion: the extrapolated point, the sum of primal and dual."""


def _until_still(
    update: Callable[[State, Tensor, Tensor, int], State],
    state: State,
    matrix: Tensor,
    iterations: int,
    tolerance: float,
) -> tuple[State, int, Tensor]:
    """The state after `iterations`, or earlier for rows where neither part moves by more than `tolerance` · ‖s‖.

    Both: an estimate may stand still while its companion still drifts.

    `update(state, matrices, rows, iterations done)` is given those of the rows that are left. Which are at rest is
    looked at every CHUNK iterations.
    """
    estimate, companion = state[0].clone(), state[1].clone()
    rows = torch.arange(len(estimate))
    still = torch.zeros(len(estimate), dtype=torch.bool)
    done = 0
    while done < iterations and len(rows):
        part = before = estimate[rows], companion[rows]
        theirs = matrix if matrix.ndim == 2 or len(rows) == len(matrix) else matrix[rows]
        for _ in range(min(CHUNK, iterations - done)):
            before = part
            part = update(part, theirs, rows, done)
            done += 1
        estimate[rows], companion[rows] = part
        moved = torch.maximum(_norm(part[0] - before[0]), _norm(part[1] - before[1]))
        at_rest = moved <= tolerance * _norm(part[0]).clamp_min(torch.finfo(moved.dtype).tiny)
        still[rows] = at_rest
        rows = rows[~at_rest]
    return (estimate, companion), done, still


def _lipschitz(dictionary: Tensor) -> Tensor:
    """The largest eigenvalue of DᵀD, `[B, 1]` or a scalar."""
    largest: Tensor = torch.linalg.matrix_norm(dictionary, ord=2) ** 2
    return largest[:, None] if dictionary.ndim == 3 else largest


def _adjoint(dictionary: Tensor, y: Tensor) -> Tensor:
    """Dᵀ y for each row, `[B, m]` to `[B, n]`."""
    return _times(dictionary.transpose(-1, -2), y)


def _times(matrix: Tensor, rows: Tensor) -> Tensor:
    """Matrix times each row, `[B, n]` to `[B, m]`."""
    if matrix.ndim == 2:
        return torch.mm(rows, matrix.T)
    return torch.bmm(matrix, rows[:, :, None]).squeeze(2)


def _norm(rows: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return length


def _found(dictionary: Tensor, y: Tensor, s: Tensor, iterations: int, converged: Tensor) -> Recovery:
    length = _norm(y)
    residual = _norm(y - _times(dictionary, s)) / length.clamp_min(torch.finfo(y.dtype).tiny)
    return Recovery(
        coefficients=s,
        iterations=iterations,
        converged=converged,
        residual=torch.where(length > 0, residual, torch.zeros_like(residual)),
    )
