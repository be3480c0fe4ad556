"""What training keeps of single weights: zeros stay zero, and weights that share a value go on sharing it.

    with constrained(module, student.constraints):
        ...  # any training loop, any torch optimizer

Each shared value is a centroid: its members' gradients are replaced by their mean (Han et al. 2016, section 3.3, which
sums them; the mean is that with the rate of a single weight), a zero's gradient by 0. That already keeps them together
under any elementwise optimizer; after each optimizer step the members are also set to their first one's value, because
vectorised and scalar code may round differently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

if TYPE_CHECKING:
    from edgekit.compress.student import WeightConstraint

__all__ = ["MAX_SHARED_VALUES", "constrained", "kept_constraints"]

MAX_SHARED_VALUES = 257
"""A codebook of 8 bits and zero; a parameter with more different values is no longer shared."""

logger = getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SparseWeight:
    """Zeros that stay zero: `is_kept` is of the parameter's shape."""

    is_kept: Tensor

    def gradient(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(~self.is_kept.to(gradient.device), 0)

    def project(self, parameter: Tensor) -> None:
        parameter.masked_fill_(~self.is_kept.to(parameter.device), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SharedWeight:
    """Groups of equal values: `groups` `int64 [numel]` is each weight's, `first` `[K]` a member of each, `counts` `[K]`
    its size; `zero` is the group that stays zero."""

    groups: Tensor
    first: Tensor
    counts: Tensor
    zero: int | None

    def gradient(self, gradient: Tensor) -> Tensor:
        sums = torch.zeros(len(self.counts), dtype=gradient.dtype, device=gradient.device)
        groups = self.groups.to(gradient.device)
        means = sums.index_add_(0, groups, gradient.reshape(-1)) / self.counts.to(gradient.device)
        if self.zero is not None:
            means[self.zero] = 0
        return means[groups].view_as(gradient)

    def project(self, parameter: Tensor) -> None:
        values = parameter.reshape(-1)[self.first.to(parameter.device)]
        if self.zero is not None:
            values[self.zero] = 0
        parameter.copy_(values[self.groups.to(parameter.device)].view_as(parameter))


def kept_constraints(module: nn.Module, constraints: Sequence[WeightConstraint]) -> tuple[WeightConstraint, ...]:
    """Those of `constraints` that still say something of `module`; the others are told in a warning.

    A parameter can vanish (a layer that was factorised), or its values can have gone apart (trained elsewhere).
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    kept = []
    for constraint in constraints:
        reason = _dropped_because(parameters.get(constraint.parameter), constraint.kind)
        if reason is None:
            kept.append(constraint)
        else:
            logger.warning("%s is no longer kept %s: %s", constraint.parameter, constraint.kind, reason)
    return tuple(kept)


def _dropped_because(parameter: nn.Parameter | None, kind: str) -> str | None:
    if parameter is None:
        return "the model has no such parameter any more"
    values = parameter.detach()
    if kind == "sparse":
        return None if bool((values == 0).any()) else "it has no zeros"
    if int(values.reshape(-1).sort().values.diff().count_nonzero()) >= MAX_SHARED_VALUES:
        return "its values are no longer shared"
    return None


@contextlib.contextmanager
def constrained(module: nn.Module, constraints: Sequence[WeightConstraint]) -> Iterator[None]:
    """Training inside keeps the constraints, by gradient hooks and after each step of any torch optimizer.

    What is kept is read from the weights as they are on entering. On leaving nothing of it is left in the module.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    kinds: dict[str, set[str]] = {}
    for constraint in kept_constraints(module, constraints):
        kinds.setdefault(constraint.parameter, set()).add(constraint.kind)
    held = [(parameters[name], _held(parameters[name].detach(), wanted)) for name, wanted in kinds.items()]

    @torch.no_grad()
    def after_step(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for parameter, weight in held:
            if id(parameter) in stepped:
                weight.project(parameter)

    with contextlib.ExitStack() as hooks:
        for parameter, weight in held:
            if parameter.requires_grad:
                hook: Any = parameter.register_hook(weight.gradient)  # type: ignore[no-untyped-call]
                hooks.callback(hook.remove)
        if held:
            hooks.callback(register_optimizer_step_post_hook(after_step).remove)
        yield


def _held(values: Tensor, kinds: set[str]) -> _SparseWeight | _SharedWeight:
    if "shared" not in kinds:
        return _SparseWeight(is_kept=values != 0)
    codes, groups, counts = torch.unique(values.reshape(-1), return_inverse=True, return_counts=True)
    order = torch.argsort(groups, stable=True)
    first = order[torch.cumsum(counts, 0) - counts]
    zeros = torch.nonzero(codes == 0).reshape(-1).tolist() if "sparse" in kinds else []
    return _SharedWeight(groups=groups, first=first, counts=counts, zero=zeros[0] if zeros else None)
