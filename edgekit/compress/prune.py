"""Structured pruning: whole channels removed, so that every backend runs a smaller dense model.

    student = prune(student, (torch.zeros(1, 3, 32, 32),), PruneOptions(macs_ratio=0.4), seed=0)

The weights that remain are the teacher's; accuracy comes back with a distill or finetune step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from logging import getLogger
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.compress.channel_groups import Block, apply_edits, dependency_graph, edits_for, pruning_blocks, refusal
from edgekit.compress.cost import count_macs
from edgekit.compress.student import PruningEdit, Student
from edgekit.errors import RecipeError, UserError
from edgekit.schema import near_miss

if TYPE_CHECKING:
    from edgekit.compress.options import PruneOptions
    from edgekit.compress.steps import StepContext, StepResult

__all__ = ["prune", "restore", "run"]

logger = getLogger(__name__)

UNREACHABLE = 0.25
"""A result further than this from the asked ratio (relative) is an error, not a result."""


def run(student: Student, options: PruneOptions, context: StepContext) -> StepResult:
    """The recipe's `prune` step."""
    from edgekit.compress.steps import StepResult

    pruned = prune(student, context.workload.example_inputs, options, seed=context.seed)
    return StepResult(student=pruned, summary="{removed}")


def prune(student: Student, example_inputs: Sequence[Tensor], options: PruneOptions, *, seed: int) -> Student:
    """A new student with about `options.macs_ratio` of the MACs; outputs keep their shapes.

    Which channels go depends on the weights alone, so `seed` only makes tracing repeatable. Raises RecipeError for
    an excluded module that does not exist, UnsupportedError for a model that cannot be traced or has nothing to
    prune, UserError when no set of channels comes near the ratio.
    """
    _check_excluded(student.module, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        total = count_macs(student.module, example_inputs)
        blocks = _safe_blocks(student.module, example_inputs, options)
        chosen, macs = _nearest(student.module, example_inputs, blocks, round(total * options.macs_ratio))
        _check_reached(macs, total, options)
        edits = edits_for(chosen)
        module = restore(student.module, edits, example_inputs)
    _check_outputs(student.module, module, example_inputs)
    return replace(student, module=module, edits=(*student.edits, *edits))


def restore(module: nn.Module, edits: Sequence[PruningEdit], example_inputs: Sequence[Tensor]) -> nn.Module:
    """A copy of `module` with the channels of `edits` removed; the same edits give the same shapes and weights.

    Raises ValueError for an edit that does not fit the module.
    """
    pruned = copy.deepcopy(module).eval()
    done: set[str] = set()
    graph = dependency_graph(pruned, example_inputs) if edits else None
    for edit in edits:
        if edit.module in done:  # a second pruning of one layer: indices count what the first one left
            graph = dependency_graph(pruned, example_inputs)
            done = set()
        apply_edits(pruned, graph, [edit])
        done.add(edit.module)
    for parameter in pruned.parameters():
        parameter.grad = None
    return pruned


def _check_excluded(module: nn.Module, options: PruneOptions) -> None:
    names = [name for name, _ in module.named_modules() if name]
    for name in options.exclude:
        if name not in names:
            raise RecipeError(f"prune.exclude: the model has no module '{name}'; {near_miss(name, names)}")


def _safe_blocks(module: nn.Module, example_inputs: Sequence[Tensor], options: PruneOptions) -> list[Block]:
    """The blocks whose removal keeps the model running and its outputs' shapes."""
    probe = copy.deepcopy(module).eval()
    keep = frozenset(n for name in options.exclude for n, _ in module.get_submodule(name).named_modules(prefix=name))
    blocks = pruning_blocks(probe, dependency_graph(probe, example_inputs), options, keep=keep)
    if blocks and not _fits(module, example_inputs, blocks):
        # The graph missed a dependency (an input added to a feature, an output taken midway): find whose.
        roots = sorted({block.root for block in blocks})
        unsafe = {r for r in roots if not _fits(module, example_inputs, [b for b in blocks if b.root == r])}
        logger.warning("not pruned, because the outputs would change shape: %s", ", ".join(sorted(unsafe)))
        blocks = [block for block in blocks if block.root not in unsafe]
    if not blocks:
        raise refusal(
            f"no layer has more than {options.round_to} channels to spare, or all are excluded or give the output",
            hint="lower round_to, exclude fewer modules, or leave the prune step out",
        )
    return blocks


def _fits(module: nn.Module, example_inputs: Sequence[Tensor], blocks: Sequence[Block]) -> bool:
    try:
        pruned = restore(module, edits_for(blocks), example_inputs)
        return _shapes(pruned, example_inputs) == _shapes(module, example_inputs)
    except (RuntimeError, ValueError, IndexError):
        return False


def _nearest(
    module: nn.Module, example_inputs: Sequence[Tensor], blocks: Sequence[Block], target: int
) -> tuple[Sequence[Block], int]:
    """The first k blocks, k such that the MACs come nearest to `target`: bisection, MACs falling with k."""

    def macs_without(count: int) -> int:
        return count_macs(restore(module, edits_for(blocks[:count]), example_inputs), example_inputs)

    low, high = 0, len(blocks)  # macs(low) > target >= macs(high), once high is known to reach it
    known = {0: count_macs(module, example_inputs), high: macs_without(high)}
    while high - low > 1:
        middle = (low + high) // 2
        known[middle] = macs_without(middle)
        low, high = (low, middle) if known[middle] <= target else (middle, high)
    best = min(known, key=lambda count: (abs(known[count] - target), count))
    return blocks[:best], known[best]


def _check_reached(macs: int, total: int, options: PruneOptions) -> None:
    reached = macs / total
    if (reached == 1.0 and options.macs_ratio < 1.0) or abs(reached / options.macs_ratio - 1) > UNREACHABLE:
        raise UserError(
            f"pruning to {options.macs_ratio:.0%} of the MACs cannot be done with channels in multiples of "
            f"{options.round_to}: the nearest is {reached:.0%}",
            hint="ask for that ratio, lower round_to, or exclude fewer modules",
        )


def _check_outputs(before: nn.Module, after: nn.Module, example_inputs: Sequence[Tensor]) -> None:
    old, new = _shapes(before, example_inputs), _shapes(after, example_inputs)
    if old != new:
        raise refusal(f"the outputs would change from {old} to {new}", hint="exclude the layers they come from")


def _shapes(module: nn.Module, example_inputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
    from torch.utils._pytree import tree_leaves

    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return [tuple(v.shape) for v in tree_leaves(module(*example_inputs)) if isinstance(v, Tensor)]
    finally:
        module.train(training)
