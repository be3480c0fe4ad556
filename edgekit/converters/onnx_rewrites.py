"""Rewrites of an ONNX graph that compute the same and that onnxruntime's integer kernels need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from edgekit.converters.onnx_graph import OnnxGraph

__all__ = [
    "attribute",
    "dense_as_gemm",
    "gemm_as_dense",
    "multiply_depthwise",
    "pad_in_convolutions",
    "pool_spatial_means",
]


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or `default` where it has none."""
    import onnx

    found = next((a for a in node.attribute if a.name == name), None)
    return onnx.helper.get_attribute_value(found) if found is not None else default


def pool_spatial_means(graph: OnnxGraph) -> None:
    """Write ReduceMean over every axis behind the first two as GlobalAveragePool, and a Reshape where the axes go.

    The two are the same sum. onnxruntime quantizes GlobalAveragePool and not ReduceMean.
    """
    import numpy as np
    import onnx

    for node in list(graph.proto.node):
        shape = graph.shape(node.input[0]) if node.op_type == "ReduceMean" else None
        if shape is None or len(shape) < 3 or _reduced_axes(graph, node, len(shape)) != set(range(2, len(shape))):
            continue
        if graph.dtype(node.input[0]) != "float32":
            continue
        keeps = attribute(node, "keepdims", 1)
        node.op_type = "GlobalAveragePool"
        del node.attribute[:]
        del node.input[1:]
        if not keeps:
            pooled, result = graph.fresh(f"{node.output[0]}_pooled"), node.output[0]
            axes = graph.add_constant(f"{result}_axes", np.arange(2, len(shape), dtype=np.int64))
            node.output[0] = pooled
            squeeze = onnx.helper.make_node(
                "Squeeze", [pooled, axes], [result], name=graph.fresh(f"{node.name}_squeeze")
            )
            graph.proto.node.append(squeeze)
            info = onnx.helper.make_tensor_value_info(
                pooled, onnx.TensorProto.FLOAT, [*shape[:2], *[1] * (len(shape) - 2)]
            )
            graph.proto.value_info.append(info)
    graph.sort()


def _reduced_axes(graph: OnnxGraph, node: Any, rank: int) -> set[int]:
    """The axes a reduction takes away, counted from the front; all of them where it names none."""
    given = attribute(node, "axes")
    if given is None and len(node.input) > 1 and node.input[1]:
        if node.input[1] not in graph.constants:
            return set()
        given = [int(axis) for axis in graph.array(node.input[1]).reshape(-1)]
    if not given:
        return set() if attribute(node, "noop_with_empty_axes", 0) else set(range(rank))
    return {axis % rank for axis in given}


def pad_in_convolutions(graph: OnnxGraph) -> None:
    """Move zero padding of spatial axes into the convolution that alone reads it.

    onnxruntime does so with float models when it loads them, but not through the quantization between the two.
    """
    gone = []
    for pad in list(graph.proto.node):
        amounts = _zero_padding(graph, pad)
        readers = graph.readers_of(pad.output[0]) if amounts is not None else []
        if amounts is None or graph.is_output(pad.output[0]) or not readers:
            continue
        if any(node.op_type != "Conv" or node.input[0] != pad.output[0] or _auto_pads(node) for node in readers):
            continue
        rank = amounts.size // 2
        for node in readers:
            own = next((a for a in node.attribute if a.name == "pads"), None)
            before = list(own.ints) if own is not None else [0] * (2 * (rank - 2))
            added = [*amounts[2:rank], *amounts[rank + 2 :]]
            if own is None:
                own = node.attribute.add(name="pads", type=7)  # AttributeProto.INTS
            own.ints[:] = [int(a + b) for a, b in zip(before, added, strict=True)]
            node.input[0] = pad.input[0]
        gone.append(pad)
    graph.remove(gone)


def _zero_padding(graph: OnnxGraph, node: Any) -> np.ndarray | None:
    """`[before …, after …]` of a Pad with zeros on spatial axes only; None for any other node."""
    if node.op_type != "Pad" or len(node.input) < 2 or node.input[1] not in graph.constants:
        return None
    if attribute(node, "mode", b"constant") != b"constant" or (len(node.input) > 3 and node.input[3]):
        return None
    if len(node.input) > 2 and node.input[2]:
        value = node.input[2]
        if value not in graph.constants or float(graph.array(value).reshape(-1)[0]) != 0.0:
            return None
    amounts = graph.array(node.input[1]).reshape(-1)
    rank = amounts.size // 2
    ends = [*amounts[:2], *amounts[rank : rank + 2]]
    return amounts if rank > 2 and not any(ends) and (amounts >= 0).all() else None


def _auto_pads(node: Any) -> bool:
    return attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"")


def dense_as_gemm(graph: OnnxGraph) -> None:
    """Write MatMul by a constant matrix and the Add of a bias as Gemm between two Reshapes.

    onnxruntime has an integer Gemm that adds the bias to its int32 sums; behind an integer MatMul the bias would be a
    pass of its own. Left as it is where more than one extent in front of the last is free: the Reshape back could not
    be told.
    """
    gone = []
    for add in list(graph.proto.node):
        found = _dense(graph, add) if add.op_type == "Add" else None
        if found is not None:
            gone += [found[0], add]
            _write_gemm(graph, found[0], found[1], add)
    graph.remove(gone)
    graph.sort()


def _dense(graph: OnnxGraph, add: Any) -> tuple[Any, str] | None:
    """(MatMul, name of the bias) of an Add that is the second half of a dense layer."""
    for position in (0, 1):
        product, bias = add.input[position], add.input[1 - position]
        matmul = graph.makers.get(product)
        if matmul is None or matmul.op_type != "MatMul" or bias not in graph.constants:
            continue
        weight, before = graph.shape(matmul.input[1]), graph.shape(matmul.input[0])
        is_alone = len(graph.readers_of(product)) == 1 and not graph.is_output(product)
        if not is_alone or matmul.input[1] not in graph.constants or weight is None or len(weight) != 2 or not before:
            continue
        fits = graph.shape(bias) == weight[1:] and graph.dtype(matmul.input[1]) == graph.dtype(bias) == "float32"
        if fits and len(before) >= 2 and sum(extent is None for extent in before[:-1]) <= 1:
            return matmul, bias
    return None


def _write_gemm(graph: OnnxGraph, matmul: Any, bias: str, add: Any) -> None:
    import numpy as np
    import onnx

    source, weight, result = matmul.input[0], matmul.input[1], add.output[0]
    depth, width = graph.array(weight).shape
    leading = [-1 if extent is None else extent for extent in (graph.shape(source) or ())[:-1]]
    rows, product = source, result
    nodes = []
    if len(leading) > 1:
        rows, product = graph.fresh(f"{result}_rows"), graph.fresh(f"{result}_product")
        flat = graph.add_constant(f"{result}_flat", np.array([-1, depth], np.int64))
        back = graph.add_constant(f"{result}_shape", np.array([*leading, width], np.int64))
        nodes.append(onnx.helper.make_node("Reshape", [source, flat], [rows], name=f"{add.name}_rows"))
        nodes.append(onnx.helper.make_node("Reshape", [product, back], [result], name=f"{add.name}_back"))
        count = None if -1 in leading else int(np.prod(leading))
        for name, extent in ((rows, depth), (product, width)):
            info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [count, int(extent)])
            graph.proto.value_info.append(info)
    nodes.append(onnx.helper.make_node("Gemm", [rows, weight, bias], [product], name=matmul.name))
    graph.proto.node.extend(nodes)


def gemm_as_dense(graph: OnnxGraph) -> None:
    """Write Gemm with a constant matrix as MatMul and Add: what onnxruntime has kernels with narrow weights for."""
    import numpy as np
    import onnx

    gone = []
    for node in list(graph.proto.node):
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
        is_plain = node.op_type == "Gemm" and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
        if not is_plain or attribute(node, "transA", 0) or node.input[1] not in graph.constants:
            continue
        weight, result = node.input[1], node.output[0]
        if attribute(node, "transB", 0):
            weight = f"{node.input[1]}_transposed"
            if weight not in graph.constants:
                graph.add_constant(weight, np.ascontiguousarray(graph.array(node.input[1]).T))
        product = graph.fresh(f"{result}_product") if bias else result
        graph.proto.node.append(onnx.helper.make_node("MatMul", [node.input[0], weight], [product], name=node.name))
        if bias:
            graph.proto.node.append(
                onnx.helper.make_node("Add", [product, bias], [result], name=graph.fresh(f"{node.name}_bias"))
            )
        gone.append(node)
    graph.remove(gone)
    graph.sort()
    graph.drop_unused_constants()


def multiply_depthwise(graph: OnnxGraph) -> None:
    """Write a depthwise convolution with a multiplier as a plain one over repeated channels.

    onnxruntime's fast integer kernel for depthwise convolutions takes as many channels as it makes; the general one is
    five times slower (measured).
    """
    import numpy as np
    import onnx

    for node in list(graph.proto.node):
        if node.op_type != "Conv" or node.input[1] not in graph.constants:
            continue
        groups, (outputs, each, *_) = attribute(node, "group", 1), graph.array(node.input[1]).shape
        shape = graph.shape(node.input[0])
        if groups < 2 or each != 1 or outputs == groups or shape is None or shape[1] != groups:
            continue
        repeated = graph.fresh(f"{node.input[0]}_repeated")
        channels = graph.add_constant(f"{repeated}_channels", np.repeat(np.arange(groups), outputs // groups))
        repeat = onnx.helper.make_node(
            "Gather", [node.input[0], channels], [repeated], name=f"{node.name}_repeat", axis=1
        )
        graph.proto.node.append(repeat)
        info = onnx.helper.make_tensor_value_info(repeated, onnx.TensorProto.FLOAT, [shape[0], outputs, *shape[2:]])
        graph.proto.value_info.append(info)
        node.input[0] = repeated
        next(a for a in node.attribute if a.name == "group").i = outputs
    graph.sort()
