"""Orthogonal matching pursuit: atoms picked one by one, least squares on those picked."""

from __future__ import annotations

import torch
from torch import Tensor

from edgekit.errors import UserError
from edgekit.sensing.recovery import Recovery, check_measurements

__all__ = ["omp"]


def omp(dictionary: Tensor, y: Tensor, *, sparsity: int, tolerance: float = 1e-6) -> Recovery:
    """At most `sparsity` atoms for each row of y `[B, m]` (Tropp and Gilbert 2007, algorithm 3).

    Each step takes the atom most correlated with the residual (atoms scaled to norm 1) and projects y on all atoms
    taken, by a Cholesky factor of their Gram matrix that grows with them (Rubinstein, Zibulevsky and Elad 2008). A row
    stops when ‖y − D s‖ ≤ `tolerance` · ‖y‖. D is `[m, n]` or `[B, m, n]`; raises UserError unless
    1 ≤ sparsity ≤ m.
    """
    check_measurements(dictionary, y)
    if not 1 <= sparsity <= y.shape[1]:
        raise UserError(
            f"sparsity {sparsity} with {y.shape[1]} measurements; OMP takes from 1 to as many atoms as measurements"
        )
    rows, atoms = len(y), dictionary.shape[-1]
    scale = torch.linalg.vector_norm(dictionary, dim=-2, keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)
    unit = (dictionary / scale).expand(rows, *dictionary.shape[-2:])
    limit = tolerance * torch.linalg.vector_norm(y, dim=1)
    picked = torch.zeros(rows, sparsity, dtype=torch.long)
    taken = torch.zeros(rows, y.shape[1], sparsity, dtype=y.dtype)
    free = torch.ones(rows, atoms, dtype=torch.bool)
    solution = torch.zeros(rows, sparsity, dtype=y.dtype)
    residual, active = y, torch.linalg.vector_norm(y, dim=1) > limit
    steps = 0
    while steps < sparsity and bool(active.any()):
        correlation = torch.bmm(unit.transpose(1, 2), residual[:, :, None])[:, :, 0].abs()
        best = correlation.masked_fill(~free, -1.0).argmax(dim=1)
        column = torch.gather(unit, 2, best[:, None, None].expand(-1, y.shape[1], 1))[:, :, 0]
        taken[active, :, steps] = column[active]
        picked[active, steps] = best[active]
        free[active, best[active]] = False
        steps += 1
        found = torch.linalg.lstsq(taken[active, :, :steps], y[active, :, None]).solution
        solution[active, :steps] = found[:, :, 0]
        residual = y - torch.bmm(taken, solution[:, :, None])[:, :, 0]
        active = active & (torch.linalg.vector_norm(residual, dim=1) > limit)
    coefficients = torch.zeros(rows, atoms, dtype=y.dtype).scatter_add(1, picked, solution)
    length = torch.linalg.vector_norm(y, dim=1)
    left = torch.linalg.vector_norm(residual, dim=1)
    return Recovery(
        coefficients=coefficients / scale.reshape(-1, atoms),
        iterations=steps,
        converged=left <= limit,
        residual=torch.where(length > 0, left / length.clamp_min(torch.finfo(y.dtype).tiny), torch.zeros_like(left)),
    )
