"""Low rank: weights replaced by factors where that saves parameters and multiply-accumulates.

    student = factorize(module, (torch.zeros(1, 3, 32, 32),), LowRankOptions(energy=0.9))

A layer whose factors would cost as much as its weight stays as it is. Accuracy comes back with a distill or finetune
step, which trains the factors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.compress.attention import open_attention
from edgekit.compress.cost import count_macs, count_parameters, macs_by_module
from edgekit.compress.factors import Spectrum, factored, spectrum, why_not
from edgekit.compress.prune import excluded_modules
from edgekit.compress.student import LowRankEdit, Student
from edgekit.errors import Problem, UnsupportedError, UserError

if TYPE_CHECKING:
    from edgekit.compress.prune_options import LowRankOptions
    from edgekit.compress.steps import StepContext, StepResult

__all__ = ["Factorization", "factorize", "restore", "run"]

logger = getLogger(__name__)

Ranks = Mapping[str, tuple[int, ...]]
WHERE = "low_rank.exclude"
UNREACHABLE = 0.25
"""A result further than this from the asked ratio (relative) is an error, not a result."""


def run(student: Student, options: LowRankOptions, context: StepContext) -> StepResult:
    """The recipe's `low_rank` step."""
    from edgekit.compress.steps import StepResult

    done = factorize(student, context.workload.example_inputs, options)
    return StepResult(student=done.student, summary=f"{done.told()}; {{removed}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Factorization:
    """A student with factored layers, and what became of the others."""

    student: Student
    ranks: Ranks
    kept: Mapping[str, str]
    """Layers left as they are, and why."""

    def told(self) -> str:
        """`5 of 9 layers factored; kept: features.0 (does not pay), …`."""
        text = f"{len(self.ranks)} of {len(self.ranks) + len(self.kept)} layers factored"
        if not self.kept:
            return text
        shown = [f"{name} ({why})" for name, why in list(self.kept.items())[:4]]
        more = f" and {len(self.kept) - 4} more" if len(self.kept) > 4 else ""
        return f"{text}; kept: {', '.join(shown)}{more}"


def factorize(model: Student | nn.Module, example_inputs: Sequence[Tensor], options: LowRankOptions) -> Factorization:
    """Factors in place of the weights of linear and convolutional layers, ranks by energy or by budget.

    Raises RecipeError for an excluded module that does not exist, UnsupportedError where no layer pays, UserError for a
    budget out of reach: it names the least that can be reached and the layer that binds.
    """
    student = model if isinstance(model, Student) else Student(module=model)
    # Packed projections cannot be factored, and the fused path of nn.TransformerEncoderLayer reads weights.
    opened, openings = open_attention(
        student.module, keep=excluded_modules(student.module, options.exclude, where=WHERE)
    )
    student = replace(student, module=opened, edits=(*student.edits, *openings))
    layers, kept = _candidates(student.module, example_inputs, options)
    if options.energy is not None:
        ranks = {name: layer.ranks(options.energy, options.round_to) for name, layer in layers.items()}
    else:
        ranks = _within_budget(student.module, example_inputs, layers, options)
    paying = {name: ranks[name] for name in ranks if layers[name].pays(ranks[name])}
    kept |= {name: "its factors would cost as much" for name in ranks if name not in paying}
    paying, broken = _running(student.module, example_inputs, paying)
    kept |= broken
    if not paying:
        shown = ", ".join(f"{name} ({why})" for name, why in list(kept.items())[:4])
        problem = Problem(backend="low_rank", message=f"no layer pays: {shown or 'the model has none to factor'}")
        raise UnsupportedError((problem,), hint="lower energy or round_to, or leave the step out")
    edits = tuple(LowRankEdit(module=name, ranks=value) for name, value in paying.items())
    module = restore(student.module, edits, example_inputs)
    present = {name for name, _ in module.named_parameters()}
    constraints = tuple(c for c in student.constraints if c.parameter in present)
    made = replace(student, module=module, edits=(*student.edits, *edits), constraints=constraints)
    return Factorization(student=made, ranks=paying, kept=kept)


def restore(module: nn.Module, edits: Sequence[LowRankEdit], _example_inputs: Sequence[Tensor]) -> nn.Module:
    """A copy of `module` with the layers of `edits` factored; raises ValueError for an edit that does not fit."""
    changed = copy.deepcopy(module).eval()
    modules = dict(changed.named_modules(remove_duplicate=False))
    for edit in edits:
        old = modules.get(edit.module)
        if old is None:
            raise ValueError(f"no module '{edit.module}'")
        new = factored(old, edit.ranks)
        if old is changed:
            changed = new
        for parent in list(changed.modules()):
            for name, child in list(parent._modules.items()):
                if child is old:
                    setattr(parent, name, new)
    return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer that can be factored, and what it costs whole and in factors."""

    spectrum: Spectrum
    shape: tuple[int, int, int]
    """Outputs, inputs, kernel positions."""
    macs: float

    def ranks(self, energy: float, round_to: int) -> tuple[int, ...]:
        return self.spectrum.ranks(energy, round_to)

    def parameters_saved(self, ranks: Sequence[int]) -> int:
        outputs, inputs, positions = self.shape
        whole = outputs * inputs * positions
        if len(ranks) == 1:
            return whole - ranks[0] * (outputs + inputs)
        into, out_of = ranks
        return whole - (inputs * into + into * out_of * positions + out_of * outputs)

    def pays(self, ranks: Sequence[int]) -> bool:
        return self.parameters_saved(ranks) > 0


def _candidates(
    module: nn.Module, example_inputs: Sequence[Tensor], options: LowRankOptions
) -> tuple[dict[str, _Layer], dict[str, str]]:
    """The layers that can be factored, and why the others cannot."""
    excluded = excluded_modules(module, options.exclude, where=WHERE)
    macs = macs_by_module(module, example_inputs)
    inside = {c for m in module.modules() if isinstance(m, nn.MultiheadAttention) for c in m.modules()}
    uses: dict[int, int] = {}
    for _, layer in module.named_modules():
        for parameter in layer.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    found: dict[str, _Layer] = {}
    kept: dict[str, str] = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) or layer in inside:
            continue
        why = "it is excluded" if name in excluded else why_not(layer)
        if why is None and uses[id(layer.weight)] > 1:
            why = "its weight is shared"
        if why is not None:
            kept[name] = why
            continue
        outputs, inputs = layer.weight.shape[:2]
        positions = layer.weight[0, 0].numel()
        found[name] = _Layer(
            spectrum=spectrum(layer), shape=(outputs, inputs, positions), macs=float(macs.get(name, 0))
        )
    return found, kept


def _running(
    module: nn.Module, example_inputs: Sequence[Tensor], ranks: Ranks
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """`ranks` without the layers whose owner reads more than their output (a weight, say), found one by one."""

    def runs(names: Sequence[str]) -> bool:
        edits = [LowRankEdit(module=name, ranks=ranks[name]) for name in names]
        try:
            with torch.no_grad():
                restore(module, edits, example_inputs)(*example_inputs)
        except (AttributeError, RuntimeError, TypeError) as e:
            logger.debug("factored layers do not run: %s", e)
            return False
        return True

    if runs(list(ranks)):
        return dict(ranks), {}
    broken = {name: "the model reads its weight" for name in ranks if not runs([name])}
    return {name: value for name, value in ranks.items() if name not in broken}, broken


def _within_budget(
    module: nn.Module, example_inputs: Sequence[Tensor], layers: Mapping[str, _Layer], options: LowRankOptions
) -> dict[str, tuple[int, ...]]:
    """Ranks of one energy for all layers, such that the whole model costs nearest to the budget."""
    is_macs = options.macs_ratio is not None
    ratio = options.macs_ratio if options.macs_ratio is not None else options.parameters_ratio
    assert ratio is not None  # noqa: S101 - one of the three is given
    whole = count_macs(module, example_inputs) if is_macs else count_parameters(module)

    def chosen(energy: float) -> dict[str, tuple[int, ...]]:
        return {name: layer.ranks(energy, options.round_to) for name, layer in layers.items()}

    def cost(energy: float) -> float:
        picked = {n: r for n, r in chosen(energy).items() if layers[n].pays(r)}
        if not is_macs:
            return whole - sum(layers[name].parameters_saved(r) for name, r in picked.items())
        edits = [LowRankEdit(module=name, ranks=r) for name, r in picked.items()]
        return count_macs(restore(module, edits, example_inputs), example_inputs)

    best = _bisected(cost, whole * ratio)
    reached = cost(best) / whole
    if abs(reached / ratio - 1) > UNREACHABLE:
        least = cost(0.0) / whole
        what = "MACs" if is_macs else "parameters"
        raise UserError(
            f"low rank cannot bring the model to {ratio:.0%} of its {what}: the nearest is {reached:.0%}, the least "
            f"{least:.0%}; {_binding(module, example_inputs, layers, is_macs)}",
            hint="ask for that ratio, lower round_to, or exclude fewer modules",
        )
    return chosen(best)


def _bisected(cost: Callable[[float], float], wanted: float) -> float:
    """The energy in [0, 1] whose cost comes nearest to `wanted`; cost grows with energy."""
    low, high = 0.0, 1.0
    known = {low: cost(low), high: cost(high)}
    for _ in range(20):
        middle = (low + high) / 2
        known[middle] = cost(middle)
        low, high = (middle, high) if known[middle] <= wanted else (low, middle)
        if known[low] == known[high]:
            break
    return min(known, key=lambda energy: (abs(known[energy] - wanted), energy))


def _binding(module: nn.Module, example_inputs: Sequence[Tensor], layers: Mapping[str, _Layer], is_macs: bool) -> str:
    """The layer that costs most of what factors cannot save."""
    if is_macs:
        costs = {n: c for n, c in macs_by_module(module, example_inputs).items() if n not in layers}
    else:
        costs = {
            name: float(sum(p.numel() for p in m.parameters(recurse=False)))
            for name, m in module.named_modules()
            if name not in layers
        }
    name = max(costs, key=lambda key: costs[key], default="")
    if not name or not costs[name]:
        return "every layer is at its least rank"
    return f"'{name}' binds, which is not factored"
