"""Writes a plan into an ONNX graph: Q and DQ nodes where onnxruntime makes integer kernels of what is between them.

Activations are uint8 with a zero point, weights int8 with one scale per output channel (symmetric), biases int32 with
the scale of the sums they are added to. The nodes are written once; `set_ranges` then only changes numbers, so that
many ranges can be tried on one graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.converters.onnx_plan import PRODUCTS, QuantizationPlan, activation_operands
from edgekit.converters.onnx_rewrites import attribute

if TYPE_CHECKING:
    from edgekit.converters.onnx_graph import OnnxGraph
    from edgekit.converters.ranges import Range

__all__ = ["QdqWriter", "output_axis", "quantized_weight", "weight_scale"]

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_LEAST_SCALE = 2.0**-100
_INT32_MOST = 2.0**31 - 256
_HEADROOM = 2.0
"""Of 16-bit ranges beyond what calibration saw: a bit of sixteen costs nothing, a value out of range costs much."""


def output_axis(graph: OnnxGraph, node: Any) -> int | None:
    """The axis of a product's constant weight that counts its outputs; None where there is no such axis."""
    rank = len(graph.shape(node.input[1]) or ())
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "MatMul" and rank == 2 else None


def weight_scale(weight: np.ndarray, axis: int | None, *, steps: int = 127) -> np.ndarray:
    """The symmetric scale that just holds each slice along `axis` (the whole of it for None)."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    most = np.abs(weight.astype(np.float64)).max(axis=others if axis is not None else None)
    return np.where(most > 0, np.maximum(most / steps, _LEAST_SCALE), 1.0).astype(np.float32)


def quantized_weight(weight: np.ndarray, scale: np.ndarray, axis: int | None, *, steps: int = 127) -> np.ndarray:
    """int8 values of a weight."""
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    values = np.rint(weight.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    # a scale of its own never makes -128; one from training may
    integers: np.ndarray = np.clip(values, -steps - 1, steps).astype(np.int8)
    return integers


@dataclass(slots=True, kw_only=True)
class _Weighted:
    """The weight and bias of one product as they are in the graph."""

    source: str
    """The value it reads."""
    weight: np.ndarray
    axis: int | None
    scale: np.ndarray
    names: tuple[str, str]
    """Of the weight and its scale."""
    bias: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Empty where no integer kernel adds one."""
    bias_names: tuple[str, str] = ("", "")


class QdqWriter:
    """The graph with a plan written into it.

    `wide` nodes compute in float and make values of 16 bits; with `wide_inputs` they read such values, too, which is
    `static_w8a16`.
    `weight_scales` holds scales that were trained, by node name.
    """

    def __init__(
        self,
        graph: OnnxGraph,
        plan: QuantizationPlan,
        *,
        wide: Collection[str] = (),
        wide_inputs: bool = False,
        weight_scales: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.graph = graph
        self.plan = plan
        self._wide = set(wide)
        self._wide_inputs = wide_inputs
        self._trained = weight_scales or {}
        self._params: dict[tuple[str, int], tuple[str, str]] = {}
        self._weighted: dict[str, _Weighted] = {}
        self._pairs: dict[tuple[str, int], str] = {}
        self._write()

    @property
    def quantized(self) -> dict[str, int]:
        """Bits of each value whose range must be set; of one that has two forms, the fewer."""
        return {name: min(b for n, b in self._params if n == name) for name, _ in self._params}

    def _write(self) -> None:
        for node in list(self.graph.proto.node):
            if node.name in self.plan.kernels:
                self._write_operands(node)
            elif node.name in self._wide:
                self._write_wide(node)
        self._write_results()
        self.graph.sort()
        self.graph.drop_unused_constants()

    def _write_operands(self, node: Any) -> None:
        source = node.input[0]
        constants = [] if node.op_type in ("Conv", "Gemm") else list(node.input)
        for name in dict.fromkeys(activation_operands(self.graph, node)):
            if name in self.plan.read:
                self._replace(node, name, self._pair(name, name, 8))
        for name in dict.fromkeys(constants):
            is_weight = node.op_type == "MatMul" and name == node.input[1]
            if name in self.graph.constants and self.graph.dtype(name) == "float32" and not is_weight:
                self._replace(node, name, self._constant(name))
        if node.op_type in PRODUCTS and node.input[1] in self.graph.constants:
            self._write_weight(node, source)

    def _write_wide(self, node: Any) -> None:
        if self._wide_inputs:
            for name in dict.fromkeys(activation_operands(self.graph, node)):
                if not self._is_wide(name):
                    self._replace(node, name, self._pair(name, name, 16))
        if node.op_type in PRODUCTS:
            self._write_weight(node, node.input[0])

    def _is_wide(self, name: str) -> bool:
        maker = self.graph.makers.get(name)
        return maker is not None and maker.name in self._wide

    @staticmethod
    def _replace(node: Any, old: str, new: str) -> None:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new

    def _pair(self, name: str, root: str, bits: int) -> str:
        """The dequantized form of a float value, quantized with the range of `root`; made once."""
        if (name, bits) not in self._pairs:
            quantized, result = self.graph.fresh(f"{name}_q{bits}"), self.graph.fresh(f"{name}_dq{bits}")
            self._quantize(name, quantized, root, bits)
            self._dequantize(quantized, result, root, bits)
            self._pairs[name, bits] = result
        return self._pairs[name, bits]

    def _quantize(self, source: str, result: str, root: str, bits: int) -> None:
        self._node(_QUANTIZE, [source, *self._parameters(root, bits)], result, bits)

    def _dequantize(self, source: str, result: str, root: str, bits: int) -> None:
        self._node(_DEQUANTIZE, [source, *self._parameters(root, bits)], result, bits)

    def _node(self, op: str, inputs: list[str], result: str, bits: int = 8, **attributes: Any) -> None:
        import onnx

        # 16 bits came to the standard's own op with opset 21; this one runs wherever onnxruntime 1.17 or newer does
        domain = "com.microsoft" if bits == 16 else ""
        node = onnx.helper.make_node(op, inputs, [result], name=f"{result}_{op[:1]}", domain=domain, **attributes)
        self.graph.proto.node.append(node)
        self.graph.makers[result] = node
        if domain and not any(entry.domain == domain for entry in self.graph.model.opset_import):
            self.graph.model.opset_import.append(onnx.helper.make_opsetid(domain, 1))

    def _parameters(self, root: str, bits: int) -> tuple[str, str]:
        """Names of the scale and zero point of a value."""
        if (root, bits) not in self._params:
            number = np.uint8 if bits == 8 else np.int16
            scale = self.graph.add_constant(f"{root}_scale{bits}", np.array(1.0, np.float32))
            point = self.graph.add_constant(f"{root}_point{bits}", np.array(0, number))
            self._params[root, bits] = (scale, point)
        return self._params[root, bits]

    def _constant(self, name: str) -> str:
        """The dequantized form of a constant operand: uint8, one scale and zero point."""
        if (name, 8) in self._pairs:
            return self._pairs[name, 8]
        values = self.graph.array(name)
        scale, point = _parameters_of((float(values.min()), float(values.max())), 8)
        integers = np.clip(np.rint(values.astype(np.float64) / scale) + point, 0, 255).astype(np.uint8)
        parts = [
            self.graph.add_constant(f"{name}_q8", integers),
            self.graph.add_constant(f"{name}_scale8", np.array(scale, np.float32)),
            self.graph.add_constant(f"{name}_point8", np.array(point, np.uint8)),
        ]
        self._pairs[name, 8] = self.graph.fresh(f"{name}_dq8")
        self._node(_DEQUANTIZE, parts, self._pairs[name, 8])
        return self._pairs[name, 8]

    def _write_weight(self, node: Any, source: str) -> None:
        """int8 weight, and int32 bias where an integer kernel adds it."""
        name = node.input[1]
        if name not in self.graph.constants or self.graph.dtype(name) != "float32":
            return
        axis, weight = output_axis(self.graph, node), self.graph.array(name)
        trained = self._trained.get(node.name)
        scale = trained.astype(np.float32) if trained is not None else weight_scale(weight, axis)
        parts = [
            self.graph.add_constant(f"{node.name}_weight", quantized_weight(weight, scale, axis)),
            self.graph.add_constant(f"{node.name}_weight_scale", scale),
            self.graph.add_constant(f"{node.name}_weight_point", np.zeros(scale.shape, np.int8)),
        ]
        result = self.graph.fresh(f"{node.name}_weight_dq")
        self._node(_DEQUANTIZE, parts, result, **({"axis": axis} if axis is not None else {}))
        node.input[1] = result
        kept = _Weighted(source=source, weight=weight, axis=axis, scale=scale.copy(), names=(parts[0], parts[1]))
        self._weighted[node.name] = kept
        if node.name in self.plan.kernels and len(node.input) > 2 and node.input[2]:
            self._write_bias(node, kept)

    def _write_bias(self, node: Any, kept: _Weighted) -> None:
        kept.bias = self.graph.array(node.input[2]).astype(np.float64).reshape(-1)
        zeros = np.zeros(kept.bias.shape, np.int32)
        parts = [
            self.graph.add_constant(f"{node.name}_bias", zeros),
            self.graph.add_constant(f"{node.name}_bias_scale", np.ones(kept.bias.shape, np.float32)),
            self.graph.add_constant(f"{node.name}_bias_point", zeros),
        ]
        kept.bias_names = (parts[0], parts[1])
        result = self.graph.fresh(f"{node.name}_bias_dq")
        self._node(_DEQUANTIZE, parts, result, axis=0)
        node.input[2] = result

    def _write_results(self) -> None:
        """What a kernel, or an op that moves integers, makes is quantized; the dequantized form takes its name."""
        renamed = {
            read: node.output[0]
            for node in self.graph.proto.node
            if node.name in self.plan.clamps
            for read in [node.input[0]]
        }
        gone = [node for node in self.graph.proto.node if node.name in self.plan.clamps]
        for node in list(self.graph.proto.node):
            for index, name in enumerate(node.output):
                if node.name in self._wide and self.graph.dtype(name) == "float32":
                    self._wrap(node, index, name, name, 16)
                elif name in self.plan.integer and (node.name in self.plan.kernels or node.name in self.plan.moves):
                    self._wrap(node, index, renamed.get(name, name), self.plan.integer[name], 8)
        self.graph.remove(gone)

    def _wrap(self, node: Any, index: int, name: str, root: str, bits: int) -> None:
        raw = self.graph.fresh(f"{name}_raw")
        node.output[index] = raw
        quantized = self.graph.fresh(f"{name}_q{bits}")
        self._quantize(raw, quantized, root, bits)
        self._dequantize(quantized, name, root, bits)

    def set_ranges(self, ranges: Mapping[str, Range]) -> None:
        """Write the scales and zero points of activations, and of the biases that follow from them."""
        scales: dict[str, float] = {}
        for (root, bits), (scale_name, point_name) in self._params.items():
            scale, point = _parameters_of(ranges[root], bits)
            scales[root] = scale if bits == 8 else scales.get(root, scale)
            self._set(scale_name, np.array(scale, np.float32))
            self._set(point_name, np.array(point, np.uint8 if bits == 8 else np.int16))
        for kept in self._weighted.values():
            if kept.bias.size:
                self._set_bias(kept, scales[self._root(kept.source)])

    def _root(self, name: str) -> str:
        return self.plan.integer.get(name, name)

    def _set_bias(self, kept: _Weighted, source_scale: float) -> None:
        """A bias that its scale cannot hold in int32 makes the weight's scale of that channel wider."""
        least = np.abs(kept.bias) / (_INT32_MOST * source_scale)
        scale = kept.scale.astype(np.float64)
        wider = np.maximum(scale, least if kept.axis is not None else least.max(initial=0.0)).astype(np.float32)
        if not np.array_equal(wider, self.graph.array(kept.names[1])):
            self._set(kept.names[1], wider)
            self._set(kept.names[0], quantized_weight(kept.weight, wider, kept.axis))
        product = np.broadcast_to(wider.astype(np.float64) * source_scale, kept.bias.shape).astype(np.float32)
        values = np.clip(np.rint(kept.bias / product.astype(np.float64)), -(2.0**31) + 1, 2.0**31 - 1)
        self._set(kept.bias_names[0], values.astype(np.int32))
        self._set(kept.bias_names[1], product)

    def _set(self, name: str, values: np.ndarray) -> None:
        self.graph.constants[name].raw_data = values.astype(values.dtype.newbyteorder("<")).tobytes()


def _parameters_of(value_range: Range, bits: int) -> tuple[float, int]:
    """(scale, zero point): uint8 over the range, int16 symmetric around zero and beyond it."""
    low, high = min(0.0, value_range[0]), max(0.0, value_range[1])
    if bits == 16:
        reach = _HEADROOM * max(-low, high)
        return float(np.float32(max(reach / 32767, _LEAST_SCALE))) if high > low else 1.0, 0
    if high <= low:
        return 1.0, 0
    scale = float(np.float32(max((high - low) / 255, _LEAST_SCALE)))
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))
