"""`dynamic_w8`: int8 weights, activations quantized at every inference by the range they have then.

Matrix products become MatMulInteger (onnxruntime fuses it with what is around it to DynamicQuantizeMatMul),
convolutions of one group ConvInteger with uint8 weights (the kernel with int8 ones is four times slower, and missing
in older runtimes), LSTMs DynamicQuantizeLSTM. There is no such kernel for GRU and transposed convolution, and grouped
convolutions would be slower than in float: their weights stay float and are listed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.converters.onnx_qdq import quantized_weight, weight_scale
from edgekit.converters.onnx_rewrites import attribute
from edgekit.converters.onnx_weights import weight_inputs, write_table

if TYPE_CHECKING:
    from edgekit.converters.onnx_graph import OnnxGraph

__all__ = ["quantize_on_the_fly"]


def quantize_on_the_fly(graph: OnnxGraph, *, excluded: Collection[str] = ()) -> int:
    """Rewrite every op that has a kernel; how many there were."""
    writer = _Writer(graph)
    writers = {"MatMul": writer.product, "Conv": writer.convolution, "LSTM": writer.lstm, "Gather": writer.table}
    gone = []
    for node in list(graph.proto.node):
        found = weight_inputs(graph, node) if node.op_type in writers and node.name not in excluded else ()
        positions = [index for index, _ in found]
        finite = all(np.isfinite(graph.array(node.input[index])).all() for index in positions)
        if positions and finite and writers[node.op_type](node, positions):
            gone.append(node)
    replaced = {id(node) for node in gone}
    graph.remove([node for node in graph.proto.node if id(node) in replaced and node.op_type in ("MatMul", "Conv")])
    graph.sort()
    graph.drop_unused_constants()
    return len(gone)


class _Writer:
    def __init__(self, graph: OnnxGraph) -> None:
        self._graph = graph
        self._quantized: dict[str, tuple[str, str, str]] = {}

    def _node(self, op: str, inputs: list[str], result: str, name: str, **attributes: Any) -> str:
        import onnx

        self._graph.proto.node.append(onnx.helper.make_node(op, inputs, [result], name=name, **attributes))
        return result

    def _activation(self, name: str) -> tuple[str, str, str]:
        """Names of the uint8 values, the scale and the zero point of an activation."""
        import onnx

        if name not in self._quantized:
            parts = tuple(self._graph.fresh(f"{name}_{part}") for part in ("q8", "scale", "point"))
            self._quantized[name] = (parts[0], parts[1], parts[2])
            node = onnx.helper.make_node("DynamicQuantizeLinear", [name], parts, name=f"{parts[0]}_Q")
            self._graph.proto.node.append(node)
        return self._quantized[name]

    def _scaled(self, node: Any, sums: str, scale: str, weight_scale_name: str, result: str) -> None:
        """float results of int32 sums."""
        import onnx

        fresh = self._graph.fresh
        cast = self._node("Cast", [sums], fresh(f"{result}_cast"), f"{node.name}_cast", to=int(onnx.TensorProto.FLOAT))
        both = self._node("Mul", [scale, weight_scale_name], fresh(f"{result}_scales"), f"{node.name}_scales")
        self._node("Mul", [cast, both], result, f"{node.name}_scaled")

    def product(self, node: Any, positions: list[int]) -> bool:
        graph = self._graph
        weight = graph.array(node.input[1]) if positions == [1] else np.zeros(0)
        if weight.ndim != 2:
            return False
        scale = weight_scale(weight, 1)
        quantized = graph.add_constant(f"{node.name}_weight", quantized_weight(weight, scale, 1))
        scales = graph.add_constant(f"{node.name}_weight_scale", scale)
        values, own, point = self._activation(node.input[0])
        sums = graph.fresh(f"{node.output[0]}_sums")
        self._node("MatMulInteger", [values, quantized, point], sums, f"{node.name}_integer")
        self._scaled(node, sums, own, scales, node.output[0])
        return True

    def convolution(self, node: Any, _positions: list[int]) -> bool:
        import onnx

        graph = self._graph
        if attribute(node, "group", 1) != 1 or any(name and name not in graph.constants for name in node.input[2:]):
            return False
        weight, result = graph.array(node.input[1]), node.output[0]
        scale, ones = weight_scale(weight, 0), [1] * (weight.ndim - 2)
        shifted = (quantized_weight(weight, scale, 0).astype(np.int16) + 128).astype(np.uint8)
        quantized = graph.add_constant(f"{node.name}_weight", shifted)
        middle = graph.add_constant(f"{node.name}_weight_point", np.array(128, np.uint8))
        scales = graph.add_constant(f"{node.name}_weight_scale", scale.reshape(1, -1, *ones))
        values, own, point = self._activation(node.input[0])
        sums = graph.fresh(f"{result}_sums")
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self._node("ConvInteger", [values, quantized, point, middle], sums, f"{node.name}_integer", **options)
        has_bias = len(node.input) > 2 and bool(node.input[2])
        product = graph.fresh(f"{result}_product") if has_bias else result
        self._scaled(node, sums, own, scales, product)
        if has_bias:
            bias = graph.array(node.input[2]).reshape(1, -1, *ones)
            added = graph.add_constant(f"{node.name}_bias", bias)
            self._node("Add", [product, added], result, f"{node.name}_biased")
        return True

    def lstm(self, node: Any, positions: list[int]) -> bool:
        import onnx

        graph = self._graph
        if positions != [1, 2] or attribute(node, "layout", 0):
            return False
        weights, scales = [], []
        for index in positions:
            weight = graph.array(node.input[index])  # [directions, 4 * hidden, inputs]
            directions, gates, _ = weight.shape
            scale = weight_scale(weight.reshape(directions * gates, -1), 0)
            values = quantized_weight(weight.reshape(directions * gates, -1), scale, 0).reshape(weight.shape)
            name = f"{node.name}_weight{index}"
            weights.append(graph.add_constant(name, np.ascontiguousarray(values.transpose(0, 2, 1))))
            parts = (scale.reshape(directions, gates), np.zeros((directions, gates), np.int8))
            kinds = zip(("scale", "point"), parts, strict=True)
            scales += [graph.add_constant(f"{name}_{kind}", part) for kind, part in kinds]
        rest = [*node.input[3:], *[""] * 5][:5]
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name != "layout"}
        node.CopyFrom(
            onnx.helper.make_node(
                "DynamicQuantizeLSTM",
                [node.input[0], *weights, *rest, *scales],
                list(node.output),
                name=node.name,
                domain="com.microsoft",
                **options,
            )
        )
        if not any(entry.domain == "com.microsoft" for entry in graph.model.opset_import):
            graph.model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
        return True

    def table(self, node: Any, _positions: list[int]) -> bool:
        write_table(self._graph, node)
        return True
