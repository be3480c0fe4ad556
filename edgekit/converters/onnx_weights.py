"""Schemes that store the weights of an ONNX model in fewer bits and compute in float.

int8 weights have one scale per output channel, int4 ones a scale for every 32 along the reduced axis. They are
dequantized in front of the op at every inference, except in front of a matrix product: onnxruntime makes MatMulNBits
of the two. float16 weights are widened once, when the file is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.converters.onnx_qdq import output_axis, quantized_weight, weight_scale

if TYPE_CHECKING:
    from edgekit.converters.onnx_graph import OnnxGraph

__all__ = ["WEIGHTED", "dequantize_weights", "halve_weights", "pack_weights", "weight_inputs", "write_table"]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Gather")
"""Ops that have weights."""
LEAST_VALUES = 64
"""A smaller constant saves less than its scale costs."""
BLOCK = 32
"""Weights of 4 bits that share a scale; what MatMulNBits is fastest with."""
_LEAST_HALF_DB = 50.0
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)

Write = Callable[["OnnxGraph", Any, int, "int | None"], str]


def weight_inputs(graph: OnnxGraph, node: Any) -> Iterable[tuple[int, int | None]]:
    """(position, axis of the outputs) of each float32 weight of an op."""

    def is_weight(index: int) -> bool:
        name = node.input[index] if len(node.input) > index else ""
        if name not in graph.constants or graph.dtype(name) != "float32":
            return False
        shape = graph.shape(name) or ()
        return len(shape) >= 2 and math.prod(extent or 1 for extent in shape) >= LEAST_VALUES

    if node.domain or node.op_type not in WEIGHTED:
        return []
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return [(index, 1) for index in (1, 2) if is_weight(index)]
    if node.op_type == "Gather":
        is_table = is_weight(0) and not any(a.name == "axis" and a.i != 0 for a in node.attribute)
        return [(0, 0)] if is_table and len(graph.shape(node.input[0]) or ()) == 2 else []
    if node.op_type == "MatMul" and not is_weight(1):
        return [(0, None)] if is_weight(0) else []
    return [(1, output_axis(graph, node))] if is_weight(1) else []


def dequantize_weights(graph: OnnxGraph, ops: Collection[str], *, excluded: Collection[str] = ()) -> int:
    """Store the float weights of these ops as int8; how many there were."""
    return _each_weight(graph, ops, excluded, _write_int8)


def pack_weights(graph: OnnxGraph, *, excluded: Collection[str] = ()) -> int:
    """Store the float weights of every op as int4; how many there were.

    Those of recurrent ops and of tables whose rows are no multiple of the block get 8 bits.
    """
    return _each_weight(graph, WEIGHTED, excluded, _write_int4)


def _each_weight(graph: OnnxGraph, ops: Collection[str], excluded: Collection[str], write: Write) -> int:
    shared: dict[tuple[str, str, int | None], str] = {}
    count = 0
    for node in list(graph.proto.node):
        if node.op_type not in ops or node.name in excluded:
            continue
        for index, axis in weight_inputs(graph, node):
            if not np.isfinite(graph.array(node.input[index])).all():
                continue
            key = (node.input[index], node.op_type, axis)
            if node.op_type == "Gather":
                write(graph, node, index, axis)
            else:
                shared[key] = shared.get(key) or write(graph, node, index, axis)
                node.input[index] = shared[key]
            count += 1
    if count:
        graph.sort()
        graph.drop_unused_constants()
    return count


def _write_int8(graph: OnnxGraph, node: Any, index: int, axis: int | None) -> str:
    """The dequantized form of a weight."""
    if node.op_type == "Gather":
        write_table(graph, node)
        return ""
    name = node.input[index]
    weight = graph.array(name)
    scale = weight_scale(weight, axis)
    parts = [
        graph.add_constant(f"{name}_q8", quantized_weight(weight, scale, axis)),
        graph.add_constant(f"{name}_scale8", scale),
        graph.add_constant(f"{name}_point8", np.zeros(scale.shape, np.int8)),
    ]
    return _dequantized(graph, name, parts, **({} if axis is None else {"axis": axis}))


def _dequantized(graph: OnnxGraph, name: str, parts: list[str], **attributes: Any) -> str:
    import onnx

    result = graph.fresh(f"{name}_dq")
    graph.proto.node.append(
        onnx.helper.make_node("DequantizeLinear", parts, [result], name=f"{result}_D", **attributes)
    )
    return result


def write_table(graph: OnnxGraph, node: Any) -> None:
    """An embedding: int8 rows with a scale each are looked up first and dequantized then, not the whole table."""
    import onnx

    name, indices, result = node.input[0], node.input[1], node.output[0]
    table = graph.array(name)
    scale = weight_scale(table, 0)
    q, s = f"{name}_rows_q8", f"{name}_rows_scale8"
    if q not in graph.constants:
        graph.add_constant(q, quantized_weight(table, scale, 0))
        graph.add_constant(s, scale.reshape(-1, 1))
    rows, scales, cast = (graph.fresh(f"{result}_{part}") for part in ("rows", "scales", "cast"))
    node.input[0], node.output[0] = q, rows
    graph.proto.node.extend(
        [
            onnx.helper.make_node("Gather", [s, indices], [scales], name=f"{node.name}_scales", axis=0),
            onnx.helper.make_node("Cast", [rows], [cast], name=f"{node.name}_cast", to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [cast, scales], [result], name=f"{node.name}_scaled"),
        ]
    )


def _write_int4(graph: OnnxGraph, node: Any, index: int, axis: int | None) -> str:
    name = node.input[index]
    weight = graph.array(name)
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return _write_int8(graph, node, index, axis)
    if node.op_type == "Gather":
        if weight.shape[1] % BLOCK:
            write_table(graph, node)
        else:
            _write_packed_table(graph, node, weight)
        return ""
    if node.op_type == "MatMul" and index == 1 and weight.ndim == 2:
        return _dequantized(graph, name, _packed(graph, name, weight, 0), axis=0, block_size=BLOCK)
    flat = weight.reshape(weight.shape[0], -1)
    rows = _dequantized(graph, name, _packed(graph, name, flat, 1), axis=1, block_size=BLOCK)
    return rows if weight.ndim == 2 else _reshaped(graph, rows, weight.shape)


def _reshaped(graph: OnnxGraph, name: str, shape: tuple[int, ...]) -> str:
    import onnx

    result = graph.fresh(f"{name}_shaped")
    sizes = graph.add_constant(f"{result}_shape", np.array(shape, np.int64))
    graph.proto.node.append(onnx.helper.make_node("Reshape", [name, sizes], [result], name=f"{result}_R"))
    return result


def _write_packed_table(graph: OnnxGraph, node: Any, table: np.ndarray) -> None:
    import onnx

    packed, scale = _packed(graph, node.input[0], table, 1)
    lookup = onnx.helper.make_node(
        "GatherBlockQuantized",
        [packed, node.input[1], scale],
        [node.output[0]],
        name=node.name,
        domain="com.microsoft",
        gather_axis=0,
        quantize_axis=1,
        block_size=BLOCK,
    )
    node.CopyFrom(lookup)
    if not any(entry.domain == "com.microsoft" for entry in graph.model.opset_import):
        graph.model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def _packed(graph: OnnxGraph, name: str, weight: np.ndarray, axis: int) -> list[str]:
    """Names of the int4 values of a matrix and of their scales, one for each block along `axis`."""
    import ml_dtypes

    values, scale = packed_blocks(weight if axis == 1 else weight.T)
    if axis == 0:
        values, scale = np.ascontiguousarray(values.T), np.ascontiguousarray(scale.T)
    return [
        graph.add_constant(f"{name}_q4", values.astype(ml_dtypes.int4)),
        graph.add_constant(f"{name}_scale4", scale),
    ]


def packed_blocks(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 values of -8 to 7, float32 scales `[rows, blocks]`) of a matrix, blocks along its rows.

    Of a few scales for each block the one with the least squared error; the largest value of a block may be the -8.
    """
    count, width = rows.shape
    blocks = -(-width // BLOCK)
    padded = np.zeros((count, blocks * BLOCK), np.float32)
    padded[:, :width] = rows
    cut = padded.reshape(count, blocks, BLOCK)
    low, high = cut.min(axis=2), cut.max(axis=2)
    widest = np.maximum(np.maximum(-low / 8, high / 7), 2.0**-100)
    best = np.full(widest.shape, np.inf, np.float32)
    scale, values = widest.copy(), np.zeros(cut.shape, np.int8)
    for shrink in _SHRINK:
        tried = (widest * shrink).astype(np.float32)
        rounded = np.clip(np.rint(cut / tried[..., None]), -8, 7)
        error = np.square(cut - rounded * tried[..., None]).sum(axis=2)
        better = error < best
        best = np.where(better, error, best)
        scale = np.where(better, tried, scale)
        values = np.where(better[..., None], rounded.astype(np.int8), values)
    return values.reshape(count, -1)[:, :width], scale.astype(np.float32)


def halve_weights(graph: OnnxGraph) -> tuple[int, list[str]]:
    """Store float32 constants as float16, widened in front of their readers; how many there were, and the names of
    those that float16 cannot hold."""
    import onnx

    inner = {name for node in graph.proto.node for a in node.attribute for g in (a.g, *a.graphs) for name in _names(g)}
    count, kept = 0, []
    for name in [tensor.name for tensor in graph.proto.initializer]:
        readers = graph.readers_of(name)
        is_plain = graph.dtype(name) == "float32" and bool(readers) and not graph.is_output(name) and name not in inner
        if not is_plain or math.prod(graph.shape(name) or (1,)) < LEAST_VALUES:  # type: ignore[arg-type]
            continue
        half = _halved(graph.array(name))
        if half is None:
            kept.append(name)
            continue
        stored, widened = graph.add_constant(f"{name}_fp16", half), graph.fresh(f"{name}_widened")
        graph.replace_input(readers, name, widened)
        cast = onnx.helper.make_node("Cast", [stored], [widened], name=f"{widened}_C", to=onnx.TensorProto.FLOAT)
        graph.proto.node.append(cast)
        count += 1
    graph.sort()
    graph.drop_unused_constants()
    return count, kept


def _names(graph: Any) -> Iterable[str]:
    for node in graph.node:
        yield from node.input


def _halved(values: np.ndarray) -> np.ndarray | None:
    """The values in float16; None where they do not fit or lose more than rounding does."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        return None
    signal = float(np.square(values, dtype=np.float64).sum())
    noise = float(np.square(values.astype(np.float64) - half).sum())
    return half if noise <= signal * 10 ** (-_LEAST_HALF_DB / 10) else None
