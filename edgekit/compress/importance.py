"""How much a channel matters: a score for each channel of a dependency group, larger for what should stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from edgekit.compress.recurrent import levels
from edgekit.errors import UserError, WorkloadError
from edgekit.training.batches import BatchSource, derive_seed
from edgekit.training.evaluation import check_targets, forward

if TYPE_CHECKING:
    from edgekit.compress.prune_options import PruneOptions
    from edgekit.workload import MapDataset

__all__ = ["magnitude_scores", "taylor_scores"]

TAYLOR_BATCH = 32


def magnitude_scores(tp: Any, graph: Any, groups: Sequence[Any], importance: str) -> list[Tensor | None]:
    """A score `[channels]` for each group, from the weights alone, 1 on average in each group.

    None for a group with no weights to read (`bn_scale` without batch norm).
    """
    if importance == "bn_scale":
        scorer = tp.importance.BNScaleImportance(normalizer=None)
    else:
        scorer = tp.importance.GroupMagnitudeImportance(p=1 if importance == "l1" else 2, normalizer=None)
    return [_magnitude(graph, group, scorer, importance) for group in groups]


def _magnitude(graph: Any, group: Any, scorer: Any, importance: str) -> Tensor | None:
    found = scorer(group)
    score: Tensor | None = found if isinstance(found, Tensor) else None
    if importance != "bn_scale":
        power = 1 if importance == "l1" else 2
        units = [
            _spread(_unit_norms(dep.target.module, power)[torch.as_tensor(idxs)], item.root_idxs, len(group[0].idxs))
            for item in group
            for dep, idxs in (item,)
            if isinstance(dep.target.module, nn.RNNBase) and graph.is_out_channel_pruning_fn(dep.handler)
        ]
        score = sum(units, start=score) if score is not None else (sum(units[1:], start=units[0]) if units else None)
    return None if score is None else score / score.mean().clamp_min(1e-12)


def _unit_norms(layer: nn.RNNBase, power: int) -> Tensor:
    """`[directions * hidden]`: the norm of every weight into and out of a hidden unit, mean over levels."""
    hidden = layer.hidden_size
    found: dict[str, Tensor] = {}
    for _, suffix in levels(layer):
        into = torch.cat([getattr(layer, f"weight_{kind}_{suffix}").detach() for kind in ("ih", "hh")], 1)
        out_of = getattr(layer, f"weight_hh_{suffix}").detach()
        norms = into.abs().pow(power).sum(1).reshape(-1, hidden).sum(0) + out_of.abs().pow(power).sum(0)
        direction = "reverse" if suffix.endswith("_reverse") else "forward"
        found[direction] = found.get(direction, 0) + norms / layer.num_layers
    return torch.cat(list(found.values()))


def _spread(values: Tensor, roots: Sequence[int | None], width: int) -> Tensor:
    """`values` added up by the root channel each belongs to."""
    total = torch.zeros(width)
    pairs = [(root, value) for root, value in zip(roots, values.tolist(), strict=True) if root is not None]
    if pairs:
        index, found = zip(*pairs, strict=True)
        total.index_add_(0, torch.tensor(index), torch.tensor(found))
    return total


def taylor_scores(
    module: nn.Module, graph: Any, groups: Sequence[Any], data: MapDataset | None, options: PruneOptions, *, seed: int
) -> list[Tensor | None]:
    """Molchanov et al. 2019, eq. 8, with a gate on each channel of a group where it is read.

    The first-order change of the loss when a channel's values become zero is the sum, over all weights that read the
    channel, of weight times gradient; its square is averaged over batches of `data`. The scores of different groups
    compare as they are. Groups nobody reads are gated where they are made.
    """
    if data is None:
        raise UserError(
            "importance 'taylor' needs training data to take gradients on",
            hint="give `data`, or a workload with a train data set; or use importance l2",
        )
    totals = [torch.zeros(len(group[0].idxs)) for group in groups]
    source = BatchSource(data, "train")
    chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(derive_seed(seed, "taylor")))
    batches = torch.split(chosen[: options.samples], TAYLOR_BATCH)
    is_training, frozen = module.training, [p for p in module.parameters() if not p.requires_grad]
    module.eval()
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for indices in batches:
            module.zero_grad(set_to_none=True)
            batch = source.fetch(indices)
            with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
                outputs = forward(module, batch, name="train")
                check_targets(outputs, batch, name="train")
                F.cross_entropy(outputs, batch.known_targets()).backward()  # type: ignore[no-untyped-call]
            for total, group in zip(totals, groups, strict=True):
                total += _gates(graph, group) ** 2 / len(batches)
    finally:
        module.zero_grad(set_to_none=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
        module.train(is_training)
    if not all(torch.isfinite(total).all() for total in totals):
        raise WorkloadError("importance 'taylor': the gradients are not finite on the training data")
    return list(totals)


def _gates(graph: Any, group: Any) -> Tensor:
    """The gradient of the loss by a gate on each channel of the group, `[channels]`."""
    width = len(group[0].idxs)
    read, made = torch.zeros(width), torch.zeros(width)
    is_read = False
    for item in group:
        dep, idxs = item
        module, index = dep.target.module, torch.as_tensor(idxs)
        if graph.is_in_channel_pruning_fn(dep.handler) and not graph.is_out_channel_pruning_fn(dep.handler):
            found = _read(module)
            if found is not None:
                is_read = True
                read += _spread(found[index], item.root_idxs, width)
        elif isinstance(module, nn.RNNBase):
            is_read = True
            read += _spread(_read_inside(module)[index], item.root_idxs, width)
        elif isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            made += _spread(_made(module)[index], item.root_idxs, width)
    return read if is_read else made


def _change(parameter: Tensor | None) -> Tensor:
    """Weight times gradient, zero where the loss does not depend on it."""
    if parameter is None or parameter.grad is None:
        return torch.zeros(()) if parameter is None else torch.zeros_like(parameter)
    return (parameter * parameter.grad).detach()


def _read(module: Any) -> Tensor | None:
    """`[input channels]`: the sum of weight times gradient over all weights that read a channel."""
    if isinstance(module, nn.Linear):
        return _change(module.weight).sum(0)
    if isinstance(module, nn.RNNBase):
        return sum(
            (_change(getattr(module, f"weight_ih_{suffix}")).sum(0) for level, suffix in levels(module) if not level),
            start=torch.zeros(module.input_size),
        )
    if not isinstance(module, nn.modules.conv._ConvNd):
        return None
    change = _change(module.weight)
    if module.transposed:  # [in, out / groups, …]
        return change.flatten(1).sum(1)
    parts = change.reshape(module.groups, module.out_channels // module.groups, change.shape[1], -1)
    return parts.sum((1, 3)).reshape(-1)


def _read_inside(layer: nn.RNNBase) -> Tensor:
    """`[directions * hidden]`: as `_read`, of what the layer itself reads of a hidden unit."""
    hidden, directions = layer.hidden_size, 2 if layer.bidirectional else 1
    total = torch.zeros(directions * hidden)
    for level, suffix in levels(layer):
        start = hidden if suffix.endswith("_reverse") else 0
        total[start : start + hidden] += _change(getattr(layer, f"weight_hh_{suffix}")).sum(0)
        if level:
            total += _change(getattr(layer, f"weight_ih_{suffix}")).sum(0)
    return total


def _made(module: Any) -> Tensor:
    """`[output channels]`: the sum of weight times gradient over what makes a channel, bias included."""
    change = _change(module.weight)
    if getattr(module, "transposed", False):
        parts = change.reshape(module.groups, module.in_channels // module.groups, change.shape[1], -1)
        return parts.sum((1, 3)).reshape(-1) + _change(module.bias)
    return change.flatten(1).sum(1) + _change(module.bias)
