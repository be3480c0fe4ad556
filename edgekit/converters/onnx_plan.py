"""Which ops of a float ONNX graph are to run in integers, and which tensors that quantizes.

onnxruntime makes an integer kernel of an op whose inputs are dequantized and whose output is quantized right beside
it (its QDQ selectors); which ops it has kernels for was read from models it optimised (1.32). Products (convolution,
matrix product) are worth their quantization always. A light op (addition, concatenation, ...) is quantized where the
larger part of what it reads is in integers already and a quantized op reads its result: alone between float ops it
would cost two conversions and precision, and win nothing. Ops that only move values stay in integers where they are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.converters.onnx_rewrites import attribute

if TYPE_CHECKING:
    from edgekit.converters.onnx_graph import OnnxGraph

__all__ = ["PRODUCTS", "QuantizationPlan", "activation_operands", "plan_quantization", "plan_wide"]

PRODUCTS = ("Conv", "Gemm", "MatMul")
_LIGHT = ("Add", "Mul", "Sigmoid", "LeakyRelu", "Softmax", "GlobalAveragePool", "AveragePool", "Concat", "Where")
_POOLS = ("GlobalAveragePool", "AveragePool")
_MOVES = (
    *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Expand", "Tile"),
    *("MaxPool", "Slice", "Split", "Gather", "GatherElements", "DepthToSpace", "ReduceMax", "Resize"),
)
_CLAMPS = ("Relu", "Clip")


@dataclass(slots=True, kw_only=True)
class QuantizationPlan:
    """What is to be written."""

    kernels: set[str] = field(default_factory=set)
    """Names of nodes that get an integer kernel."""
    moves: set[str] = field(default_factory=set)
    """Names of nodes that move integers."""
    clamps: dict[str, str] = field(default_factory=dict)
    """Name of a Relu or Clip that saturation replaces: the value it reads."""
    integer: dict[str, str] = field(default_factory=dict)
    """A value made in integers: the value whose range it has."""
    read: set[str] = field(default_factory=set)
    """Values made in float that a kernel reads, to be quantized in front of it."""

    @property
    def observed(self) -> set[str]:
        """Values whose range must be known."""
        return {*self.integer.values(), *self.read}


def activation_operands(graph: OnnxGraph, node: Any) -> list[str]:
    """What a kernel reads in integers that is no constant."""
    names = list(node.input)
    if node.op_type in ("Conv", "Gemm"):
        names = names[:1]
    elif node.op_type == "Where":
        names = names[1:]
    elif node.op_type not in ("MatMul", "Add", "Mul", "Concat"):
        names = names[:1]
    return [name for name in names if graph.is_activation(name)]


def plan_quantization(graph: OnnxGraph, excluded: Collection[str] = ()) -> QuantizationPlan:
    """The plan for a graph, with the nodes of these names left in float."""
    return _Planner(graph, excluded).plan()


def plan_wide(graph: OnnxGraph, excluded: Collection[str] = ()) -> set[str]:
    """Names of the nodes that `static_w8a16` quantizes: every one there would be an 8-bit kernel for."""
    return set(_Planner(graph, excluded).kernels)


class _Planner:
    """`made` tells of a value whether it comes in integers (`int`), as its readers want it (`free`) or in float."""

    def __init__(self, graph: OnnxGraph, excluded: Collection[str]) -> None:
        self.graph = graph
        self.excluded = excluded
        self.nodes = list(graph.proto.node)
        self.kernels = {n.name for n in self.nodes if n.name not in excluded and self._has_kernel(n)}
        self.made: dict[str, str] = {}
        self.wanted: set[str] = set()

    def plan(self) -> QuantizationPlan:
        while True:
            self._flow()
            given_up = {n.name for n in self.nodes if n.name in self.kernels and not self._pays(n)}
            if not given_up:
                return self._written()
            self.kernels -= given_up

    def _has_kernel(self, node: Any) -> bool:
        graph = self.graph
        if node.domain or not node.output or graph.dtype(node.output[0]) != "float32":
            return False
        if node.op_type == "Conv":
            return all(name in graph.constants for name in node.input[1:] if name)
        if node.op_type == "Gemm":
            return self._is_dense(node)
        if node.op_type == "MatMul":
            ranks = [len(graph.shape(name) or ()) for name in node.input]
            return ranks[0] >= 2 and ranks[1] >= 2 and bool(activation_operands(graph, node))
        if node.op_type == "AveragePool" and any(n != 1 for n in attribute(node, "dilations", [])):
            return False
        if node.op_type == "GlobalAveragePool" and len(graph.shape(node.input[0]) or ()) != 4:
            return False
        return node.op_type in _LIGHT and bool(activation_operands(graph, node)) and self._constants_fit(node)

    def _is_dense(self, node: Any) -> bool:
        graph = self.graph
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        if not plain or attribute(node, "transA", 0) or node.input[1] not in graph.constants:
            return False
        if len(node.input) < 3 or not node.input[2]:
            return True
        columns = graph.array(node.input[1]).shape[0 if attribute(node, "transB", 0) else 1]
        return node.input[2] in graph.constants and graph.array(node.input[2]).size == columns

    def _constants_fit(self, node: Any) -> bool:
        """Whether the constants a light op reads can be quantized: finite, and not the -1e9 of a mask."""
        import numpy as np

        names = node.input[1:] if node.op_type == "Where" else node.input
        arrays = [self.graph.array(name) for name in names if name in self.graph.constants]
        return all(array.size and np.isfinite(array).all() and np.abs(array).max() < 1e4 for array in arrays)

    def _flow(self) -> None:
        """Fill `made` from the inputs down and `wanted` from the outputs up."""
        self.made, self.wanted = {}, set()
        for node in self.nodes:
            kind = self._kind(node)
            for name in node.output:
                self.made[name] = kind
        for node in reversed(self.nodes):
            if node.name in self.kernels:
                self.wanted.update(activation_operands(self.graph, node))
            elif any(name in self.wanted for name in node.output) and (self._is_move(node) or self._is_clamp(node)):
                self.wanted.add(node.input[0])

    def _kind(self, node: Any) -> str:
        if node.name in self.kernels:
            return "free" if node.op_type in ("Gemm", "MatMul") else "int"
        if self._is_move(node) or self._is_clamp(node):
            return self.made.get(node.input[0], "float")
        return "float"

    def _is_move(self, node: Any) -> bool:
        if node.op_type not in _MOVES or node.domain or not node.input or node.name in self.excluded:
            return False
        if node.op_type == "Resize" and attribute(node, "mode", b"nearest") != b"nearest":
            return False
        if node.op_type == "MaxPool" and (len(node.output) > 1 and node.output[1]):
            return False
        return self.graph.is_activation(node.input[0]) and self.graph.dtype(node.output[0]) == "float32"

    def _is_clamp(self, node: Any) -> bool:
        """Whether a Relu or Clip can be left to the saturation of the quantized value in front of it."""
        if node.op_type not in _CLAMPS or node.name in self.excluded or self.graph.dtype(node.output[0]) != "float32":
            return False
        if node.op_type == "Clip" and not self._clips_around_zero(node):
            return False
        name = node.input[0]
        while True:
            if len(self.graph.readers_of(name)) != 1 or self.graph.is_output(name):
                return False
            maker = self.graph.makers.get(name)
            if maker is None or (maker.name not in self.kernels and not self._is_move(maker)):
                return False
            if maker.name in self.kernels:
                return True
            if len(maker.output) > 1:
                return False
            name = maker.input[0]

    def _clips_around_zero(self, node: Any) -> bool:
        bounds = [*node.input[1:], "", ""][:2]
        if any(name and name not in self.graph.constants for name in bounds):
            return False
        low, high = (float(self.graph.array(name).reshape(-1)[0]) if name else None for name in bounds)
        return (low is None or low <= 0) and (high is None or high >= 0)

    def _pays(self, node: Any) -> bool:
        """Whether a kernel is worth it, as things stand."""
        if node.op_type in PRODUCTS:
            return True
        kinds = {name: self.made.get(name, "float") for name in activation_operands(self.graph, node)}
        if node.op_type in _POOLS:
            return "int" in kinds.values()
        if node.op_type == "Softmax" and "int" not in kinds.values():
            return False  # behind a matrix product, whose int32 sums are worth more than 8 bits of them
        if not any(name in self.wanted for name in node.output):
            return False
        sizes = {name: self._size(name) for name in kinds}
        integers = sum(size for name, size in sizes.items() if kinds[name] != "float")
        floats = sum(size for name, size in sizes.items() if kinds[name] == "float")
        return integers > 0 if node.op_type in ("Concat", "Where") else integers > floats

    def _size(self, name: str) -> int:
        size = 1
        for extent in self.graph.shape(name) or ():
            size *= extent or 1
        return size

    def _written(self) -> QuantizationPlan:
        plan = QuantizationPlan(kernels=set(self.kernels))
        for node in self.nodes:
            if node.name in self.kernels:
                self._write_kernel(plan, node)
            elif node.input and node.input[0] in plan.integer and self._is_move(node):
                plan.moves.add(node.name)
                plan.integer.update({name: plan.integer[node.input[0]] for name in node.output if name})
            elif node.input and node.input[0] in plan.integer and self._is_clamp(node):
                root, result = plan.integer[node.input[0]], node.output[0]
                plan.clamps[node.name] = node.input[0]
                plan.integer[result] = result
                for name, source in plan.integer.items():
                    if source == root:
                        plan.integer[name] = result
        return plan

    def _write_kernel(self, plan: QuantizationPlan, node: Any) -> None:
        plan.read.update(n for n in activation_operands(self.graph, node) if n not in plan.integer)
        name = node.output[0]
        if node.op_type not in ("Gemm", "MatMul") or name in self.wanted:
            plan.integer[name] = name
