"""Structured pruning: whole channels, heads and hidden units removed, so that every backend runs a smaller dense model.

    student = prune(module, (torch.zeros(1, 3, 32, 32),), PruneOptions(macs_ratio=0.4), seed=0)

The weights that remain are the teacher's; accuracy comes back with a distill or finetune step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.compress.attention import open_attention
from edgekit.compress.channel_groups import (
    Block,
    ChannelGroup,
    apply_edits,
    dependency_graph,
    edits_for,
    in_order,
    pruning_groups,
    refusal,
    without_readers,
)
from edgekit.compress.student import AttentionEdit, PruningEdit, Student
from edgekit.compress.targets import nearest, pricing_for
from edgekit.errors import RecipeError
from edgekit.schema import near_miss

if TYPE_CHECKING:
    from edgekit.compress.latency import LatencyTable
    from edgekit.compress.prune_options import BetweenRounds, PruneOptions
    from edgekit.compress.steps import StepContext, StepResult
    from edgekit.workload import MapDataset

__all__ = ["excluded_modules", "prune", "restore", "run"]

logger = getLogger(__name__)


def run(student: Student, options: PruneOptions, context: StepContext) -> StepResult:
    """The recipe's `prune` step: one round after another, each finished one kept in the work folder."""
    from edgekit.compress.latency import table_for
    from edgekit.compress.steps import StepResult

    table = table_for(student.module, context.workload.example_inputs, options, context.work_dir)
    before = student
    start = _Start.of(student.module, context.workload.example_inputs, options, table)
    for number in range(1, options.rounds + 1):
        student = _round(before, student, number, options, context, start, table)
    return StepResult(student=student, summary=_told(options))


def _told(options: PruneOptions) -> str:
    how = []
    if options.importance != "l2":
        how.append(f"by {options.importance} importance")
    if options.ranking == "global":
        how.append("ranked over all layers")
    if options.rounds > 1:
        trained = ", trained in between" if options.between is not None else ""
        how.append(f"in {options.rounds} rounds{trained}")
    return f"{' '.join(how)}: {{removed}}" if how else "{removed}"


def _round(
    before: Student,
    student: Student,
    number: int,
    options: PruneOptions,
    context: StepContext,
    start: _Start,
    table: LatencyTable | None,
) -> Student:
    """The student after round `number` and the training that follows it."""
    from edgekit.compress.storage import STUDENT_NAME, load_student, save_student

    inputs, is_last = context.workload.example_inputs, number == options.rounds
    folder = context.work_dir / f"round-{number}"
    if (folder / STUDENT_NAME).is_file():
        stored = load_student(folder, before.module, inputs)
        return replace(before, module=stored.module, edits=(*before.edits, *stored.edits))
    ratio = options.target[1] ** (number / options.rounds)
    pruned = _pruned(
        student, inputs, options, ratio=ratio, start=start, seed=context.seed, data=context.workload.train, table=table
    )
    if not is_last and options.between is not None:
        pruned = _trained(pruned, options.between, replace(context, work_dir=context.work_dir / f"train-{number}"))
    if not is_last:
        made = pruned.edits[len(before.edits) :]
        save_student(Student(module=pruned.module, edits=made), folder)
    return pruned


def _trained(student: Student, between: BetweenRounds, context: StepContext) -> Student:
    from edgekit.compress.steps import method_of

    kind = "distill" if between.distill is not None else "finetune"
    return method_of(kind)(student, getattr(between, kind), context).student


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """What a ratio is of."""

    whole: float

    @classmethod
    def of(
        cls, module: nn.Module, inputs: Sequence[Tensor], options: PruneOptions, table: LatencyTable | None
    ) -> _Start:
        target, _ = options.target
        if target == "channels_ratio":
            opened, _ = open_attention(module, keep=excluded_modules(module, options.exclude, where="prune.exclude"))
            cheap = options.model_copy(update={"importance": "l2"})
            groups = _safe_groups(opened, inputs, cheap, data=None, seed=0)
            return cls(whole=float(sum(group.width for group in groups if group.is_open)))
        return cls(whole=pricing_for(target, inputs, table).total(module))


def prune(
    model: Student | nn.Module,
    example_inputs: Sequence[Tensor],
    options: PruneOptions,
    *,
    seed: int = 0,
    data: MapDataset | None = None,
    table: LatencyTable | None = None,
) -> Student:
    """A new student that keeps about the asked share of its target; outputs keep their shapes. One round.

    Which channels go depends on the weights, and for Taylor importance on `data`, so `seed` only makes tracing and the
    choice of samples repeatable. Raises RecipeError for an excluded module that does not exist, UnsupportedError for a
    model that cannot be traced or has nothing to prune, UserError when no set of channels comes near the target: it
    names the least that can be reached and the layer that binds.
    """
    student = model if isinstance(model, Student) else Student(module=model)
    start = _Start.of(student.module, example_inputs, options, table)
    ratio = options.target[1]
    return _pruned(student, example_inputs, options, ratio=ratio, start=start, seed=seed, data=data, table=table)


def _pruned(
    student: Student,
    example_inputs: Sequence[Tensor],
    options: PruneOptions,
    *,
    ratio: float,
    start: _Start,
    seed: int,
    data: MapDataset | None,
    table: LatencyTable | None,
) -> Student:
    keep = excluded_modules(student.module, options.exclude, where="prune.exclude")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        opened, openings = open_attention(student.module, keep=keep)
        groups = _safe_groups(opened, example_inputs, options, data=data, seed=seed)
        blocks = in_order(groups, options.ranking)
        if not blocks:
            raise refusal(
                f"no layer has more than {options.round_to} channels to spare, or all are excluded or give the output",
                hint="lower round_to, exclude fewer modules, or leave the prune step out",
            )

        def without(gone: Sequence[Block]) -> nn.Module:
            return restore(opened, edits_for(gone), example_inputs)

        pricing = pricing_for(options.target[0], example_inputs, table)
        chosen = nearest(blocks, groups, without, options, pricing, whole=start.whole, ratio=ratio)
        edits: tuple[AttentionEdit | PruningEdit, ...] = (*openings, *edits_for(chosen))
        module = without(chosen)
    _check_outputs(student.module, module, example_inputs)
    present = {name for name, _ in module.named_parameters()}
    constraints = tuple(c for c in student.constraints if c.parameter in present)
    return replace(student, module=module, edits=(*student.edits, *edits), constraints=constraints)


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


def excluded_modules(module: nn.Module, patterns: Sequence[str], *, where: str) -> frozenset[str]:
    """The modules that `patterns` (names or globs) take in, with all below them; RecipeError for one of none."""
    import fnmatch

    names = [name for name, _ in module.named_modules() if name]
    found: set[str] = set()
    for pattern in patterns:
        roots = fnmatch.filter(names, pattern)
        if not roots:
            raise RecipeError(f"{where}: the model has no module '{pattern}'; {near_miss(pattern, names)}")
        found.update(n for root in roots for n, _ in module.get_submodule(root).named_modules(prefix=root))
    return frozenset(found)


def _safe_groups(
    module: nn.Module, example_inputs: Sequence[Tensor], options: PruneOptions, *, data: MapDataset | None, seed: int
) -> list[ChannelGroup]:
    """The groups of `module`; those whose removal would not keep it running and its outputs' shapes have no blocks."""
    probe = copy.deepcopy(module).eval()
    keep = excluded_modules(module, options.exclude, where="prune.exclude")
    graph = dependency_graph(probe, example_inputs)
    groups = pruning_groups(probe, graph, options, keep=keep, data=data, seed=seed)
    unsafe = {g.root: "heads do not go one by one there" for g in groups if not _is_exact(module, example_inputs, g)}
    left = [group for group in groups if group.root not in unsafe]
    if not _fits(module, example_inputs, left):
        # The graph missed a dependency (an input added to a feature, an output taken midway): find whose.
        lost = [group.root for group in left if not _fits(module, example_inputs, [group])]
        unsafe |= dict.fromkeys(lost, "the outputs would change shape")
    for root, why in sorted(unsafe.items()):
        logger.warning("not pruned, because %s: %s", why, root)
    return [_whole(group, unsafe[group.root]) if group.root in unsafe else group for group in groups]


def _whole(group: ChannelGroup, why: str) -> ChannelGroup:
    return replace(group, blocks=(), is_open=False, kept_because=why)


def _fits(module: nn.Module, example_inputs: Sequence[Tensor], groups: Sequence[ChannelGroup]) -> bool:
    blocks = [block for group in groups for block in group.blocks]
    try:
        pruned = restore(module, edits_for(blocks), example_inputs)
        return _shapes(pruned, example_inputs) == _shapes(module, example_inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return False


def _is_exact(module: nn.Module, example_inputs: Sequence[Tensor], group: ChannelGroup) -> bool:
    """Whether a module without the heads of `group` computes what it does when nothing reads them."""
    if not group.heads or not group.blocks:
        return True
    edits = edits_for(group.blocks[: max(1, len(group.blocks) // 2)])
    silent = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(x.shape, generator=generator, dtype=x.dtype) if x.is_floating_point() else x
              for x in example_inputs]  # fmt: skip
    try:
        without_readers(silent, dependency_graph(silent, example_inputs), edits)
        pruned = restore(module, edits, example_inputs)
        with torch.no_grad():
            pairs = list(zip(_outputs(pruned, inputs), _outputs(silent, inputs), strict=True))
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return False
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * _size(b)) for a, b in pairs)


def _size(value: Tensor) -> float:
    return max(float(value.abs().max()), 1e-6) if value.numel() and value.is_floating_point() else 1.0


def _check_outputs(before: nn.Module, after: nn.Module, example_inputs: Sequence[Tensor]) -> None:
    old, new = _shapes(before, example_inputs), _shapes(after, example_inputs)
    if old != new:
        raise refusal(f"the outputs would change from {old} to {new}", hint="exclude the layers they come from")


def _shapes(module: nn.Module, example_inputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return [tuple(value.shape) for value in _outputs(module, example_inputs)]
    finally:
        module.train(training)


def _outputs(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [value for value in tree_leaves(module(*inputs)) if isinstance(value, Tensor)]
