"""A program made ready for ExecuTorch: the same computation, in ops that XNNPACK takes or executorch has a kernel for.

Recurrent layers become linear layers and element-wise ops, so that these can be quantized; a 3-D convolution becomes
2-D ones; an op without a kernel is written with others where torch knows how. Weights are shared with the program
given, which is left as it is.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edgekit.converters.executorch_kernels import nodes_without_kernel

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

__all__ = ["as_arguments", "exported_again", "free_extents", "node_origins", "ready", "with_plain_outputs"]

_ROUNDS = 3
"""An op written with others may bring one that has to be written with others again."""


@lru_cache(maxsize=2)
def ready(program: ExportedProgram) -> ExportedProgram:
    """The program with every op replaced that has a better form for this backend (see the module)."""
    for _ in range(_ROUNDS):
        table = _replacements(program)
        if not table:
            break
        program = program.run_decompositions(table)
    return _with_constant_weights(program)


def _replacements(program: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """For each op of the program that should not stay, how it is written with others."""
    from torch._decomp import decomposition_table

    own = _own_decompositions()
    present = {node.target for node in program.graph.nodes if node.op == "call_function"}
    table = {target: own[target] for target in present if target in own}
    for node in nodes_without_kernel(program):
        if node.target in decomposition_table and node.target not in table:
            table[node.target] = decomposition_table[node.target]
    return table


def _own_decompositions() -> dict[Any, Callable[..., Any]]:
    import torch
    from torch._decomp import decomposition_table

    aten = torch.ops.aten
    recurrent = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
    return {
        **{op: decomposition_table[op] for op in recurrent if op in decomposition_table},
        aten.conv3d.default: _conv3d,
        aten.conv3d.padding: _conv3d_padded,
        aten.pixel_shuffle.default: _pixel_shuffle,
        aten.pixel_unshuffle.default: _pixel_unshuffle,
    }


def _pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    *batch, channels, height, width = x.shape
    count = len(batch)
    split = x.reshape(*batch, channels // factor**2, factor, factor, height, width)
    order = [*range(count), count, count + 3, count + 1, count + 4, count + 2]
    return split.permute(order).reshape(*batch, channels // factor**2, height * factor, width * factor)


def _pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    *batch, channels, height, width = x.shape
    count = len(batch)
    split = x.reshape(*batch, channels, height // factor, factor, width // factor, factor)
    order = [*range(count), count, count + 2, count + 4, count + 1, count + 3]
    return split.permute(order).reshape(*batch, channels * factor**2, height // factor, width // factor)


def _each(value: int | Sequence[int]) -> tuple[int, int, int]:
    values = [value] if isinstance(value, int) else list(value)
    depth, height, width = values * 3 if len(values) == 1 else values
    return depth, height, width


def _conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """One 2-D convolution with the kernels of every depth side by side, then a sum of its slices shifted in depth."""
    import torch

    if x.dim() == 4:
        return _conv3d(x.unsqueeze(0), weight, bias, stride, padding, dilation, groups).squeeze(0)
    strides, pads, dilations = _each(stride), _each(padding), _each(dilation)
    batch, channels, depth, height, width = x.shape
    out, _, kernel = weight.shape[:3]
    frames = x.transpose(1, 2).reshape(batch * depth, channels, height, width)
    # the kernels of one group stay together: [groups, kernel depth, out / groups, in / groups, h, w]
    flat = weight.reshape(groups, out // groups, *weight.shape[1:]).permute(0, 3, 1, 2, 4, 5)
    flat = flat.reshape(kernel * out, *weight.shape[1:2], *weight.shape[3:])
    planes = torch.nn.functional.conv2d(frames, flat, None, strides[1:], pads[1:], dilations[1:], groups)
    extents = planes.shape[2:]
    planes = planes.reshape(batch, depth, groups, kernel, out // groups, -1)  # six axes are the most XNNPACK takes
    if pads[0]:
        planes = torch.nn.functional.pad(planes, (0, 0, 0, 0, 0, 0, 0, 0, pads[0], pads[0]))
    count = (depth + 2 * pads[0] - dilations[0] * (kernel - 1) - 1) // strides[0] + 1
    total: Tensor | None = None
    for index in range(kernel):
        start = index * dilations[0]
        part = planes[:, start : start + strides[0] * (count - 1) + 1 : strides[0], :, index]
        total = part if total is None else total + part
    assert total is not None  # noqa: S101 - a kernel has at least one plane
    result = total.reshape(batch, count, out, *extents).transpose(1, 2)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1, 1)


def _conv3d_padded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str = "valid",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    import torch

    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(_each(dilation), weight.shape[2:], strict=True)]
        x = torch.nn.functional.pad(x, [n for t in reversed(totals) for n in (t // 2, t - t // 2)])
    return _conv3d(x, weight, bias, stride, 0, dilation, groups)


def _with_constant_weights(program: ExportedProgram) -> ExportedProgram:
    """The program with weights that are computed from parameters (weight normalization, …) computed once, here."""
    import torch

    aten = torch.ops.aten
    kinds = ("convolution", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "linear")
    weighted = {getattr(aten, kind) for kind in kinds}

    def computed_weight(node: Node) -> Node | None:
        is_weighted = node.op == "call_function" and getattr(node.target, "overloadpacket", None) in weighted
        weight: Any = node.args[1] if is_weighted else None
        # a dequantize is how a trained graph holds an int8 weight: computed, it would be a float one
        is_computed = weight is not None and weight.op == "call_function" and "dequantize" not in str(weight.target)
        return weight if is_computed else None

    if not any(computed_weight(node) for node in program.graph.nodes) or program.example_inputs is None:
        return program
    module = program.module(check_guards=False)
    changed = False
    for node in list(module.graph.nodes):
        weight = computed_weight(node)
        value = None if weight is None else _constant_value(weight, module, {})
        if weight is not None and isinstance(value, torch.Tensor):
            name = f"_weight_of_{node.name}"
            module.register_buffer(name, value.detach().contiguous())
            with module.graph.inserting_before(node):
                getter = module.graph.create_node("get_attr", name, (), {})
            getter.meta = {"val": weight.meta.get("val")}
            node.update_arg(1, getter)
            changed = True
    if not changed:
        return program
    module.graph.eliminate_dead_code()
    module.recompile()
    return exported_again(module, program)


def _constant_value(node: Any, module: Any, known: dict[Any, Any]) -> Any:
    """What a node computes when only parameters and constants go in; None when anything else does."""
    from torch import fx

    if node in known:
        return known[node]
    value: Any = None
    if node.op == "get_attr":
        value = operator.attrgetter(node.target)(module)
    elif node.op == "call_function":
        sources = {source: _constant_value(source, module, known) for source in node.all_input_nodes}
        if sources and all(source is not None for source in sources.values()):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda one: sources[one])
            value = node.target(*args, **kwargs)
    known[node] = value
    return value


def with_plain_outputs(program: ExportedProgram) -> ExportedProgram:
    """The program with its outputs as one flat tuple: executorch cannot write a named tuple's structure down."""
    from dataclasses import replace

    import torch

    first, *rest = program.module_call_graph
    if first.signature is None or first.signature.out_spec is None:
        return program
    flat = torch.utils._pytree.tree_structure(tuple(range(first.signature.out_spec.num_leaves)))
    changed = copy.copy(program)
    entry = replace(first, signature=replace(first.signature, out_spec=flat))
    changed._module_call_graph = [entry, *rest]
    return changed


def node_origins(node: Node) -> frozenset[str]:
    """The names this node had in the programs it was made from, its own included."""
    names = {node.name}
    waiting = list(node.meta.get("from_node") or ())
    while waiting:
        source = waiting.pop()
        names.add(source.name)
        waiting.extend(source.from_node or ())
    return frozenset(names)


def as_arguments(sample: Iterable[np.ndarray]) -> tuple[Tensor, ...]:
    """The arrays of a sample as contiguous tensors of their own memory."""
    import numpy as np
    import torch

    return tuple(torch.from_numpy(np.array(array, order="C")) for array in sample)


def exported_again(module: nn.Module | GraphModule, program: ExportedProgram) -> ExportedProgram:
    """A module made from `program.module()`, exported with the inputs and the free axes of the program."""
    import torch

    args, kwargs = program.example_inputs or ((), {})
    again = torch.export.export(module, args, kwargs, dynamic_shapes=_free_axes(program, args), strict=False)
    return again


def free_extents(program: ExportedProgram) -> tuple[list[dict[int, str]], list[dict[int, str]]]:
    """For each input and each output of the program, its free axes by name; an extent that depends on others is named
    by its formula."""
    given = set(program.graph_signature.user_inputs)
    inputs = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in given]
    names: dict[Any, str] = {}
    for node in inputs:
        for axis, extent in enumerate(node.meta["val"].shape):
            if not isinstance(extent, int):
                names.setdefault(extent.node.expr, "batch" if axis == 0 else f"n{len(names)}")

    def free(node: Any) -> dict[int, str]:
        shape = node.meta["val"].shape
        return {axis: str(n.node.expr.subs(names)) for axis, n in enumerate(shape) if not isinstance(n, int)}

    given_back = [
        node for node in program.graph.output_node().args[0] if hasattr(getattr(node, "meta", {}).get("val"), "shape")
    ]
    return [free(node) for node in inputs], [free(node) for node in given_back]


def _free_axes(program: ExportedProgram, args: Any) -> Any:
    """What torch.export takes as `dynamic_shapes` to make the same axes free; None when none is."""
    import torch
    from torch.export import Dim

    given = set(program.graph_signature.user_inputs)
    dims: dict[str, Any] = {}
    shapes = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in given:
            axes = {}
            for axis, extent in enumerate(node.meta["val"].shape):
                if not isinstance(extent, int):
                    axes[axis] = _dim(extent, program.range_constraints, dims, Dim)
            shapes.append(axes)
    if not dims:
        return None
    return torch.utils._pytree.tree_unflatten(shapes, torch.utils._pytree.tree_structure(args))


def _dim(extent: Any, limits: Mapping[Any, Any], dims: dict[str, Any], make: Any) -> Any:
    symbol = extent.node.expr
    name = str(symbol)
    if name not in dims:
        bounds = limits[symbol]
        upper = int(bounds.upper) if math.isfinite(bounds.upper) else None
        dims[name] = make(name, min=int(bounds.lower), max=upper)
    return dims[name]
