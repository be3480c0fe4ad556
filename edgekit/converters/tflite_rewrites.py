"""Operations litert-torch cannot lower as they stand, written with ones it can.

Only the nodes that need it are touched: what litert-torch does well by itself (layout above all) it then does still.
The program that comes in is never changed.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["named_copy", "rewrite"]

Extents = int | Sequence[int]


def named_copy(program: ExportedProgram) -> ExportedProgram:
    """The program once more, its weights shared and every op's debug information its own node name.

    litert-torch names the tensors of the file after the debug information: `relu;;batch_norm;;conv2d;` is where those
    three nodes were fused. That is how a rule or a trained range finds its tensor.
    """
    from torch.export import ExportedProgram

    module = copy.deepcopy(program.graph_module)  # holds the graph; weights are lifted out of it
    for node, original in zip(module.graph.nodes, program.graph.nodes, strict=True):
        node.name = original.name  # copying renames what is also a Python word, as `input`
        if node.op == "call_function":
            node.meta["nn_module_stack"] = {"node": ("", node.name)}
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=program.state_dict,
        range_constraints=dict(program.range_constraints),
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def rewrite(program: ExportedProgram) -> None:
    """Give each node that needs it a target made of lowerable ops, in place; the next decomposition traces into it."""
    table = _table()
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        needed, replacement = table.get(node.target, (None, None))
        if needed is not None and needed(node):
            node.target = replacement


def _table() -> dict[Any, tuple[Callable[[Node], bool], Callable[..., Any]]]:
    import torch

    aten = torch.ops.aten
    return {
        aten.conv_transpose1d.default: (_is_no_plain_transpose, _transposed_convolution),
        aten.conv_transpose2d.input: (_is_no_plain_transpose, _transposed_convolution),
        aten.conv_transpose3d.input: (_is_no_plain_transpose, _transposed_convolution),
        aten.conv1d.padding: (_always, _padded_convolution),
        aten.conv3d.padding: (_always, _padded_convolution),
        aten.sort.default: (_always, _sorted),
        aten.adaptive_max_pool1d.default: (_pools_evenly, _adaptive_max_pool),
        aten.adaptive_max_pool2d.default: (_pools_evenly, _adaptive_max_pool),
    }


def _always(_: Node) -> bool:
    return True


def _per_axis(value: Extents, axes: int) -> list[int]:
    if isinstance(value, int):
        return [value] * axes
    return list(value) * axes if len(value) == 1 else list(value)


_TRANSPOSED_DEFAULTS: tuple[Any, ...] = (None, None, None, 1, 0, 0, 1, 1)


def _is_no_plain_transpose(node: Node) -> bool:
    """Whether TRANSPOSE_CONV does not have these paddings: it knows none, and the one of `same` for k - s = 2 p."""
    arguments: list[Any] = [*node.args, *_TRANSPOSED_DEFAULTS[len(node.args) :]]
    weight: Any = node.args[1]
    kernel = weight.meta["val"].shape[2:]
    axes = len(kernel)
    stride, padding, output_padding = (_per_axis(arguments[i], axes) for i in (3, 4, 5))
    dilation = _per_axis(arguments[7], axes)
    same = all(p == 0 or k - s == 2 * p for k, s, p in zip(kernel, stride, padding, strict=True))
    return axes == 3 or arguments[6] != 1 or max(dilation) > 1 or max(output_padding) > 0 or not same


def _transposed_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Extents = 1,
    padding: Extents = 0,
    output_padding: Extents = 0,
    groups: int = 1,
    dilation: Extents = 1,
) -> torch.Tensor:
    """The full transposed convolution of each group, cut to the part that padding leaves."""
    import torch
    from torch.nn import functional

    axes = weight.dim() - 2
    strides, cut, more, spread = (_per_axis(v, axes) for v in (stride, padding, output_padding, dilation))
    for axis in range(axes):
        weight = _with_gaps(weight, 2 + axis, spread[axis])

    def full(part: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        zeros, ones = [0] * axes, [1] * axes
        out: torch.Tensor = torch.ops.aten.convolution.default(part, kernel, None, strides, zeros, ones, True, zeros, 1)
        return out

    if groups == 1:  # litert-torch trips over a split into one
        y = full(x, weight)
    else:
        pairs = zip(x.chunk(groups, 1), weight.chunk(groups, 0), strict=True)
        y = torch.cat([full(part, kernel) for part, kernel in pairs], 1)
    missing = []
    for axis in range(axes):
        have = y.shape[2 + axis] - cut[axis]
        wanted = have - cut[axis] + more[axis]
        y = y.narrow(2 + axis, cut[axis], min(wanted, have))
        missing.append(max(0, wanted - have))
    if any(missing):
        y = functional.pad(y, [end for amount in reversed(missing) for end in (0, amount)])
    return y if bias is None else y + bias.view(1, -1, *[1] * axes)


def _with_gaps(weight: torch.Tensor, axis: int, spread: int) -> torch.Tensor:
    """The kernel with `spread - 1` zeros between its taps."""
    import torch

    if spread == 1:
        return weight
    taps = weight.shape[axis]
    spaced = torch.stack([weight] + [torch.zeros_like(weight)] * (spread - 1), axis + 1).flatten(axis, axis + 1)
    return spaced.narrow(axis, 0, (taps - 1) * spread + 1)


def _padded_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Extents = 1,
    padding: str = "valid",
    dilation: Extents = 1,
    groups: int = 1,
) -> torch.Tensor:
    """`padding="same"` by its numbers; the odd one goes to the end, as in PyTorch."""
    import torch
    from torch.nn import functional

    axes = weight.dim() - 2
    strides, spread = _per_axis(stride, axes), _per_axis(dilation, axes)
    total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(spread, weight.shape[2:], strict=True)]
    if any(amount % 2 for amount in total):
        x = functional.pad(x, [end for amount in reversed(total) for end in (0, amount % 2)])
    sides = [amount // 2 for amount in total]
    out: torch.Tensor = torch.ops.aten.convolution.default(
        x, weight, bias, strides, sides, spread, False, [0] * axes, groups
    )
    return out


def _sorted(x: torch.Tensor, dim: int = -1, descending: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """All of the axis as its top k."""
    import torch

    values, indices = torch.topk(x, x.shape[dim], dim, largest=descending, sorted=True)
    return values, indices


def _pools_evenly(node: Node) -> bool:
    """Whether every output bin holds as many inputs, and nobody asks for the indices."""
    x: Any = node.args[0]
    size: Any = node.args[1]
    inputs = x.meta["val"].shape[-len(size) :]
    takes_values = all(user.target is operator.getitem and (user.args[1] == 0 or not user.users) for user in node.users)
    return takes_values and all(n % out == 0 for n, out in zip(inputs, size, strict=True))


def _adaptive_max_pool(x: torch.Tensor, output_size: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A maximum over each bin; the indices that come with it are not to be used (`_pools_evenly`)."""
    import torch

    axes = len(output_size)
    split: list[int] = list(x.shape[:-axes])
    inner = []
    for n, out in zip(x.shape[-axes:], output_size, strict=True):
        inner.append(len(split) + 1)
        split += [out, n // out]
    values = torch.amax(x.reshape(split), inner)
    return values, torch.zeros_like(values, dtype=torch.int64)
