"""Which channels of a module can go together, and in which order they should: torch-pruning's dependency groups.

A group is a set of layers whose channels depend on one another (Fang et al. 2023, DepGraph): the two convolutions
into a residual sum, a convolution with its batch norm and the depthwise one behind it. Channels are taken in blocks,
so that what remains is a multiple of `round_to`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.compress.student import PruningEdit
from edgekit.errors import MissingDependencyError, Problem, UnsupportedError

if TYPE_CHECKING:
    from edgekit.compress.options import PruneOptions

__all__ = ["Block", "apply_edits", "dependency_graph", "edits_for", "pruning_blocks", "refusal"]

MAX_PRUNED = 0.9
"""No group loses more than this share of its channels: a layer of one channel carries nothing."""


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as e:
        raise MissingDependencyError("pruning", extra="train", package="torch-pruning") from e
    return torch_pruning


def refusal(message: str, *, hint: str, module: str | None = None) -> UnsupportedError:
    """The error for a model that cannot be pruned."""
    return UnsupportedError((Problem(backend="pruning", message=message, module=module),), hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Channels of one group that are removed together; `rank` orders the blocks, lowest first."""

    root: str
    """Name of the module whose output channels these are."""
    indices: tuple[int, ...]
    rank: tuple[float, float]


def dependency_graph(module: nn.Module, example_inputs: Sequence[Tensor]) -> Any:
    """torch-pruning's graph of `module`; raises UnsupportedError when the module cannot be traced."""
    tp = _torch_pruning()
    # The graph is read off autograd's: frozen weights would be invisible.
    frozen = [p for p in module.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        return tp.DependencyGraph().build_dependency(module, example_inputs=tuple(example_inputs), verbose=False)
    except Exception as e:
        _raise_interrupt(e)
        raise refusal(
            f"the model cannot be traced ({type(e).__name__}: {e})",
            hint="its forward must run on example_inputs and be differentiable; else leave the prune step out",
        ) from e
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _raise_interrupt(error: BaseException) -> None:
    """Raise the Ctrl-C that came while the model ran: torch-pruning catches it, and calls the model in another way."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        link = link.__context__


def pruning_blocks(module: nn.Module, graph: Any, options: PruneOptions, *, keep: frozenset[str]) -> list[Block]:
    """Every removable block of `module` in the order of removal; `keep` names modules left whole.

    The order is by the share of its group's channels that would be gone, ties by importance: all layers shrink
    alike, and where the target falls between two widths the least important block goes first.
    """
    tp = _torch_pruning()
    names = {m: n for n, m in module.named_modules()}
    ignored = [m for m, n in names.items() if n in keep]
    scorer = _importance(tp, options)
    blocks: list[Block] = []
    for group in graph.get_all_groups(ignored_layers=ignored, root_module_types=[*_root_types()]):
        if any(names.get(dep.target.module) in keep for dep, _ in group) or _touches_output(graph, group):
            continue
        score = scorer(group)
        if score is None:
            raise refusal(
                f"importance '{options.importance}' finds no batch norm to read",
                module=names[group[0].dep.target.module],
                hint="use importance l2, or exclude the module",
            )
        blocks += _blocks_of(names[group[0].dep.target.module], score, _channel_groups(graph, group), options.round_to)
    return sorted(blocks, key=lambda block: (block.rank, block.root))


def _root_types() -> tuple[type[nn.Module], ...]:
    return (nn.modules.conv._ConvNd, nn.Linear)


def _importance(tp: Any, options: PruneOptions) -> Any:
    if options.importance == "bn_scale":
        return tp.importance.BNScaleImportance()
    return tp.importance.GroupMagnitudeImportance(p=1 if options.importance == "l1" else 2)


def _touches_output(graph: Any, group: Any) -> bool:
    """Whether `group` holds the channels of a node that nothing follows: an output of the model."""
    return any(graph.is_out_channel_pruning_fn(dep.handler) and not dep.target.outputs for dep, _ in group)


def _channel_groups(graph: Any, group: Any) -> int:
    """Into how many equal parts the group's channels fall (grouped convolution, GroupNorm, attention heads)."""
    counts = [1]
    for dep, _ in group:
        module = dep.target.module
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels:
            continue  # depthwise: its channels go with their inputs
        pruner = graph.get_pruner_of_module(module) if isinstance(module, nn.Module) else None
        if pruner is None:
            continue
        is_output = graph.is_out_channel_pruning_fn(dep.handler)
        counts.append(pruner.get_out_channel_groups(module) if is_output else pruner.get_in_channel_groups(module))
    return math.lcm(*(int(count) for count in counts))


def _blocks_of(root: str, score: Tensor, parts: int, round_to: int) -> list[Block]:
    """The blocks of one group: `round_to` channels each, spread evenly over its `parts`."""
    per_part = len(score) // parts
    if per_part * parts != len(score):
        return []
    part_score = score.detach().float().reshape(parts, per_part).mean(dim=0)
    order = torch.argsort(part_score, stable=True).tolist()
    step = math.lcm(round_to, parts) // parts
    least = max(step, math.ceil(per_part * (1 - MAX_PRUNED)))
    blocks: list[Block] = []
    done = 0
    # The first block brings the width to a multiple of `step`; every later one keeps it there.
    size = per_part % step or step
    while per_part - done - size >= least:
        chosen = order[done : done + size]
        done += size
        indices = tuple(sorted(part * per_part + i for part in range(parts) for i in chosen))
        importance = float(part_score[chosen].mean())
        blocks.append(Block(root=root, indices=indices, rank=(round(done / per_part, 9), importance)))
        size = step
    return blocks


def edits_for(blocks: Sequence[Block]) -> tuple[PruningEdit, ...]:
    """One edit a root: the channels of all its blocks."""
    merged: dict[str, set[int]] = {}
    for block in blocks:
        merged.setdefault(block.root, set()).update(block.indices)
    return tuple(PruningEdit(module=r, is_output=True, indices=tuple(sorted(i))) for r, i in merged.items())


def apply_edits(module: nn.Module, graph: Any, edits: Sequence[PruningEdit]) -> None:
    """Remove the channels of `edits` from `module`, in order; raises ValueError for one that does not fit it."""
    modules = dict(module.named_modules())
    for edit in edits:
        target = modules.get(edit.module)
        pruner = graph.get_pruner_of_module(target) if target is not None else None
        if target is None or pruner is None:
            raise ValueError(f"no prunable module '{edit.module}'")
        prune = pruner.prune_out_channels if edit.is_output else pruner.prune_in_channels
        width = pruner.get_out_channels(target) if edit.is_output else pruner.get_in_channels(target)
        if not edit.indices or min(edit.indices) < 0 or max(edit.indices) >= width:
            raise ValueError(f"'{edit.module}' has {width} channels; cannot remove {list(edit.indices)[:8]}")
        group = graph.get_pruning_group(target, prune, list(edit.indices))
        if not graph.check_pruning_group(group):
            raise ValueError(f"'{edit.module}': removing {len(edit.indices)} channels would leave a layer empty")
        group.prune(record_history=False)
