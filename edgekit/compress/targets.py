"""Pruning targets: what a set of channels costs, the nearest to what was asked, and the least there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgekit.compress.channel_groups import Block, ChannelGroup
from edgekit.compress.cost import count_macs, count_parameters, macs_by_module
from edgekit.compress.prune_options import TARGETS
from edgekit.errors import UserError

if TYPE_CHECKING:
    from edgekit.compress.latency import LatencyTable
    from edgekit.compress.prune_options import PruneOptions

__all__ = ["Pricing", "nearest", "pricing_for"]

UNREACHABLE = 0.25
"""A result further than this from the asked ratio (relative) is an error, not a result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """One way to say what a module costs."""

    total: Callable[[nn.Module], float]
    by_module: Callable[[nn.Module], Mapping[str, float]]
    """The same by leaf module, to say where the cost is."""


def pricing_for(target: str, example_inputs: Sequence[Tensor], table: LatencyTable | None) -> Pricing:
    """How `target` (of TARGETS) is counted; `channels_ratio` is counted over blocks, not here."""
    if target == "latency_ratio":
        if table is None:
            raise UserError("a latency target needs a table of measured layers", hint="LatencyTable.measure makes one")
        return Pricing(
            total=lambda module: table.total(module, example_inputs),
            by_module=lambda module: table.by_module(module, example_inputs),
        )
    if target == "parameters_ratio":
        return Pricing(total=count_parameters, by_module=_parameters_by_module)
    return Pricing(
        total=lambda module: count_macs(module, example_inputs),
        by_module=lambda module: macs_by_module(module, example_inputs),
    )


def _parameters_by_module(module: nn.Module) -> dict[str, float]:
    found = {name: sum(p.numel() for p in m.parameters(recurse=False)) for name, m in module.named_modules()}
    return {name: float(count) for name, count in found.items() if count}


def nearest(
    blocks: Sequence[Block],
    groups: Sequence[ChannelGroup],
    without: Callable[[Sequence[Block]], nn.Module],
    options: PruneOptions,
    pricing: Pricing,
    *,
    whole: float,
    ratio: float,
) -> Sequence[Block]:
    """The first k of `blocks`, k such that what is left costs nearest to `ratio` of `whole`: bisection.

    `without(blocks)` gives the module without them. Raises UserError, with the least that can be reached and the layer
    that binds there, for a ratio out of reach.
    """
    target, _ = options.target

    def cost(count: int) -> float:
        if target == "channels_ratio":
            gone = sum(len(block.indices) for block in blocks[:count])
            return float(sum(group.width for group in groups if group.is_open) - gone)
        return pricing.total(without(blocks[:count]))

    wanted = whole * ratio
    low, high = 0, len(blocks)  # cost(low) > wanted >= cost(high), once high is known to reach it
    known = {0: cost(0), high: cost(high)}
    while high - low > 1:
        middle = (low + high) // 2
        known[middle] = cost(middle)
        low, high = (low, middle) if known[middle] <= wanted else (middle, high)
    best = min(known, key=lambda count: (abs(known[count] - wanted), count))
    reached = known[best] / whole
    if (reached == 1.0 and ratio < 1.0) or abs(reached / ratio - 1) > UNREACHABLE:
        least = known[len(blocks)] / whole
        told = f"pruning to {ratio:.0%} {TARGETS[target]} cannot be done"
        if least > ratio:
            binding = _binding(without(blocks), groups, pricing, options)
            raise UserError(
                f"{told}: the nearest is {least:.0%}, the least that can be reached; {binding}",
                hint="ask for that ratio, lower round_to, or exclude fewer modules",
            )
        raise UserError(
            f"{told} with channels in multiples of {options.round_to}: the nearest is {reached:.0%}",
            hint="ask for that ratio, or lower round_to",
        )
    return blocks[:best]


def _binding(module: nn.Module, groups: Sequence[ChannelGroup], pricing: Pricing, options: PruneOptions) -> str:
    """Where most of what is left is, and why it stays: `'head' binds: …`."""
    costs = pricing.by_module(module)
    total = sum(costs.values()) or 1.0
    name = max(costs, key=lambda key: costs[key], default="")
    share = f"'{name}' binds, with {costs.get(name, 0) / total:.0%} of what is left"
    making = next((group for group in groups if name in group.makers), None)
    reading = next((group for group in groups if name in group.readers), None)
    told = [_standing(group, what, options) for group, what in ((making, "makes"), (reading, "reads")) if group]
    return f"{share}: {'; '.join(told) or 'its widths are in no group that can be pruned'}"


def _standing(group: ChannelGroup, what: str, options: PruneOptions) -> str:
    if group.kept_because is not None:
        return f"it {what} the {group.width} channels of group '{group.root}', all kept because {group.kept_because}"
    left = group.width - sum(len(block.indices) for block in group.blocks)
    unit = "one head stays" if group.heads else f"multiples of {options.round_to}, at least a tenth stays"
    return f"it {what} the channels of group '{group.root}', {left} of {group.width} ({unit})"
