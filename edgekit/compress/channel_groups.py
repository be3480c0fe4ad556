"""Which channels of a module can go together, and in which order they should: torch-pruning's dependency groups.

A group is a set of layers whose channels depend on one another (Fang et al. 2023, DepGraph): the two convolutions
into a residual sum, a convolution with its batch norm and the depthwise one behind it, the query, key and value
projections of attention. Channels are taken in blocks, so that what remains is a multiple of `round_to`; of attention,
a block is a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.compress.attention import head_count, update_head_counts
from edgekit.compress.importance import magnitude_scores, taylor_scores
from edgekit.compress.recurrent import RecurrentPruner, recurrent_modules, traced_as_one
from edgekit.compress.student import PruningEdit
from edgekit.errors import MissingDependencyError, Problem, UnsupportedError

if TYPE_CHECKING:
    from edgekit.compress.prune_options import PruneOptions
    from edgekit.workload import MapDataset

__all__ = [
    "Block",
    "ChannelGroup",
    "apply_edits",
    "dependency_graph",
    "edits_for",
    "in_order",
    "pruning_groups",
    "refusal",
    "without_readers",
]

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
    """Channels of one group that are removed together."""

    root: str
    """Name of the module whose output channels these are."""
    indices: tuple[int, ...]
    share: float
    """Share of the group's channels that is gone once this block is."""
    importance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """One dependency group: its blocks in the order of removal, or why it keeps all its channels."""

    root: str
    width: int
    makers: tuple[str, ...]
    """The modules that make these channels."""
    readers: tuple[str, ...]
    """The modules that read them."""
    blocks: tuple[Block, ...] = ()
    heads: int | None = None
    """Of attention, how many heads the channels are."""
    kept_because: str | None = None
    is_open: bool = True
    """Whether it could lose channels; one that has none to spare is open too."""


def dependency_graph(module: nn.Module, example_inputs: Sequence[Tensor]) -> Any:
    """torch-pruning's graph of `module`; raises UnsupportedError when the module cannot be traced."""
    tp = _torch_pruning()
    # The graph is read off autograd's: frozen weights would be invisible.
    frozen = [p for p in module.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    recurrent = {type(layer): RecurrentPruner() for layer in recurrent_modules(module)}
    try:
        with traced_as_one(module), torch.enable_grad():
            graph = tp.DependencyGraph().build_dependency(
                module, example_inputs=tuple(example_inputs), customized_pruners=recurrent, verbose=False
            )
    except Exception as e:
        _raise_interrupt(e)
        raise refusal(
            f"the model cannot be traced ({type(e).__name__}: {e})",
            hint="its forward must run on example_inputs and be differentiable; else leave the prune step out",
        ) from e
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    graph.edgekit_batch = example_inputs[0].shape[0] if example_inputs[0].dim() else 1
    return graph


def _raise_interrupt(error: BaseException) -> None:
    """Raise the Ctrl-C that came while the model ran: torch-pruning catches it, and calls the model in another way."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        link = link.__context__


def pruning_groups(
    module: nn.Module,
    graph: Any,
    options: PruneOptions,
    *,
    keep: frozenset[str],
    data: MapDataset | None = None,
    seed: int = 0,
) -> list[ChannelGroup]:
    """Every dependency group of `module`; `keep` names modules left whole. Raises UnsupportedError where the
    importance cannot be had, UserError for Taylor importance without `data`."""
    names = {m: n for n, m in module.named_modules()}
    raw = list(graph.get_all_groups(root_module_types=[*_root_types()]))
    described = [_described(graph, group, names, keep) for group in raw]
    open_ones = [i for i, group in enumerate(described) if group.kept_because is None]
    chosen = [raw[i] for i in open_ones]
    if options.importance == "taylor":
        scores = taylor_scores(module, graph, chosen, data, options, seed=seed)
    else:
        scores = magnitude_scores(_torch_pruning(), graph, chosen, options.importance)
    for i, score in zip(open_ones, scores, strict=True):
        if score is None:
            raise refusal(
                f"importance '{options.importance}' finds no batch norm to read",
                module=described[i].root,
                hint="use importance l2, or exclude the module",
            )
        described[i] = _with_blocks(described[i], score, _channel_groups(graph, raw[i]), options.round_to)
    return described


def in_order(groups: Sequence[ChannelGroup], ranking: str) -> list[Block]:
    """All blocks in the order of removal.

    `uniform`: by the share of its group's channels that would be gone, ties by importance, so that all layers shrink
    alike. `global`: by importance, wherever the channels are; within a group the order stays.
    """
    blocks = [block for group in groups for block in group.blocks]
    if ranking == "global":
        return sorted(blocks, key=lambda block: (block.importance, block.share, block.root))
    return sorted(blocks, key=lambda block: (block.share, block.importance, block.root))


def _root_types() -> tuple[type[nn.Module], ...]:
    return (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)


def _described(graph: Any, group: Any, names: dict[nn.Module, str], keep: frozenset[str]) -> ChannelGroup:
    makers: list[str] = []
    readers: list[str] = []
    for dep, _ in group:
        name = names.get(dep.target.module)
        if name is None:
            continue
        (makers if graph.is_out_channel_pruning_fn(dep.handler) else readers).append(name)
    described = ChannelGroup(
        root=names[group[0].dep.target.module],
        width=len(group[0].idxs),
        makers=tuple(dict.fromkeys(makers)),
        readers=tuple(dict.fromkeys(readers)),
        heads=_heads(graph, group),
    )
    why = _why_kept(graph, group, described, keep)
    return replace(described, kept_because=why, is_open=why is None)


def _why_kept(graph: Any, group: Any, described: ChannelGroup, keep: frozenset[str]) -> str | None:
    if any(name in keep for name in (*described.makers, *described.readers)):
        return "it is excluded"
    if any(graph.is_out_channel_pruning_fn(dep.handler) and not dep.target.outputs for dep, _ in group):
        return "it gives an output of the model"
    if any(isinstance(dep.target.module, nn.RNNBase) and dep.target.module.proj_size for dep, _ in group):
        return "a recurrent layer with a projection keeps its widths"
    if not all(_within(graph, dep, idxs) for dep, idxs in group):
        return "its channels cannot be followed through the model"
    if described.heads is not None:
        projected = [len(i) for dep, i in group if isinstance(dep.target.module, nn.Linear)]
        if described.heads < 1 or described.width % described.heads:
            return "it runs through a product whose heads cannot be told"
        if any(count != described.width for count in projected):
            return "its queries, keys and values are not projected one head to one head"
    return None


def _within(graph: Any, dep: Any, idxs: Sequence[int]) -> bool:
    """Whether the module at the end of a dependency has the channels it says."""
    if not isinstance(dep.target.module, nn.Module) or _is_op(dep.target):
        return True
    is_output = graph.is_out_channel_pruning_fn(dep.handler)
    width = (graph.get_out_channels if is_output else graph.get_in_channels)(dep.target)
    return width is None or not idxs or max(idxs) < width


def _heads(graph: Any, group: Any) -> int | None:
    """How many attention heads the channels of `group` are; 0 where that cannot be told, None where there are none."""
    counts = {head_count(dep.target.grad_fn, graph.edgekit_batch) for dep, _ in group if _is_op(dep.target)} - {None}
    if not counts:
        return None
    return counts.pop() if len(counts) == 1 else 0


def _is_op(node: Any) -> bool:
    return not isinstance(node.module, nn.Parameter) and type(node.module).__module__.startswith("torch_pruning")


def _channel_groups(graph: Any, group: Any) -> int:
    """Into how many equal parts the group's channels fall (grouped convolution, GroupNorm, two directions)."""
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


def _with_blocks(group: ChannelGroup, score: Tensor, parts: int, round_to: int) -> ChannelGroup:
    score = score.detach().float()
    blocks = _head_blocks(group, score) if group.heads else _blocks_of(group.root, score, parts, round_to)
    if blocks:
        return replace(group, blocks=tuple(blocks))
    if group.heads:
        why = f"it has {group.heads} head{'s' if group.heads > 1 else ''}"
    else:
        why = f"its {group.width} channels leave none to spare in multiples of {round_to}"
    return replace(group, kept_because=why)


def _head_blocks(group: ChannelGroup, score: Tensor) -> list[Block]:
    """A block a head, the least important first; one stays."""
    heads = group.heads or 1
    width = group.width // heads
    by_head = score.reshape(heads, width).mean(1)
    order = torch.argsort(by_head, stable=True).tolist()[: heads - max(1, math.ceil(heads * (1 - MAX_PRUNED)))]
    return [
        Block(
            root=group.root,
            indices=tuple(range(head * width, (head + 1) * width)),
            share=round((done + 1) / heads, 9),
            importance=float(by_head[head]),
        )
        for done, head in enumerate(order)
    ]


def _blocks_of(root: str, score: Tensor, parts: int, round_to: int) -> list[Block]:
    """The blocks of one group: `round_to` channels each, spread evenly over its `parts`."""
    per_part = len(score) // parts
    if per_part * parts != len(score):
        return []
    part_score = score.reshape(parts, per_part).mean(dim=0)
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
        blocks.append(Block(root=root, indices=indices, share=round(done / per_part, 9), importance=importance))
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
    names = {m: n for n, m in modules.items()}
    for edit in edits:
        target = modules.get(edit.module)
        group = _group_of(graph, target, edit)
        heads = _heads(graph, group)
        projections = {
            names[dep.target.module]: len(idxs)
            for dep, idxs in group
            if isinstance(dep.target.module, nn.Linear) and graph.is_out_channel_pruning_fn(dep.handler)
        }
        before = _width(graph, target, edit)
        group.prune(record_history=False)
        if heads and before % heads == 0 and len(edit.indices) % (before // heads) == 0:
            gone = len(edit.indices) // (before // heads)
            for name in projections:
                update_head_counts(module, name, before=heads, after=heads - gone, width=before // heads)


def _width(graph: Any, target: Any, edit: PruningEdit) -> int:
    pruner = graph.get_pruner_of_module(target)
    return int(pruner.get_out_channels(target) if edit.is_output else pruner.get_in_channels(target))


def _group_of(graph: Any, target: Any, edit: PruningEdit) -> Any:
    """The dependency group of an edit; raises ValueError where it does not fit the module."""
    pruner = graph.get_pruner_of_module(target) if target is not None else None
    if pruner is None or target not in graph.module2node:
        raise ValueError(f"no prunable module '{edit.module}'")
    width = _width(graph, target, edit)
    if not edit.indices or min(edit.indices) < 0 or max(edit.indices) >= width:
        raise ValueError(f"'{edit.module}' has {width} channels; cannot remove {list(edit.indices)[:8]}")
    prune = pruner.prune_out_channels if edit.is_output else pruner.prune_in_channels
    group = graph.get_pruning_group(target, prune, list(edit.indices))
    if not graph.check_pruning_group(group):
        raise ValueError(f"'{edit.module}': removing {len(edit.indices)} channels would leave a layer empty")
    return group


def without_readers(module: nn.Module, graph: Any, edits: Sequence[PruningEdit]) -> None:
    """Set to zero, in `module`, every weight that reads a channel of `edits`: what removing them should amount to."""
    modules = dict(module.named_modules())
    with torch.no_grad():
        for edit in edits:
            for dep, idxs in _group_of(graph, modules.get(edit.module), edit):
                reader = dep.target.module
                if isinstance(reader, nn.Linear) and not graph.is_out_channel_pruning_fn(dep.handler):
                    reader.weight[:, idxs] = 0
