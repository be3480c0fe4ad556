"""Facts of an `.onnx` file. A node computes in integers when it stands between DequantizeLinear and QuantizeLinear
and the runtime has an integer kernel that takes the place of the three. Files with external data are refused: their
paths can point anywhere. Only ever called in a child process.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgekit.artifact import TensorSpec
from edgekit.converters.passports.facts import BOUNDARY, HYBRID, FileFacts, Node, count_ops, unquantized
from edgekit.errors import ArtifactError, MissingDependencyError

__all__ = ["read_onnx"]

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FUSED = frozenset(
    [
        *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Where", "Sigmoid", "LeakyRelu", "Softmax"),
        *("AveragePool", "GlobalAveragePool", "MaxPool", "Resize", "Pad", "Split", "Slice", "Gather"),
        *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Tile", "Identity"),
        *("DepthToSpace", "SpaceToDepth"),
    ]
)
"""Ops that onnxruntime's CPU provider computes (or moves) in 8 bits between Q and DQ: its qdq_transformer's selectors.
Any other op there still runs in float, between a DequantizeLinear and a QuantizeLinear that really execute."""
_INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger")
_REASON = "onnxruntime has no integer kernel for it here: it runs in float between dequantize and quantize"
_FIRST_ONNXRUNTIME = {
    13: "1.6",
    14: "1.8",
    15: "1.10",
    16: "1.11",
    17: "1.12",
    18: "1.14",
    19: "1.16",
    20: "1.17",
    21: "1.18",
}
_FIRST_ONNXRUNTIME_FOR_IR = {7: "1.6", 8: "1.10", 9: "1.15", 10: "1.18"}
"""onnxruntime's own table: docs/reference/compatibility."""


def read_onnx(path: Path) -> FileFacts:
    """What the file says. Raises ArtifactError when it is no sound, self-contained `.onnx`."""
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as e:
        raise MissingDependencyError("reading .onnx files", extra="onnx", package="onnx") from e
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError, MemoryError) as e:
        raise ArtifactError(f"{path}: corrupt or truncated .onnx file: {e}", hint="copy or convert it again") from e
    _refuse_unsound(path, model, onnx)
    return _facts(model, onnx)


def _refuse_unsound(path: Path, model: Any, onnx: Any) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ArtifactError(
                f"{path}: tensor '{tensor.name}' is stored outside the file; such files are not opened, since "
                "their paths can point anywhere",
                hint="save it with all data inside: onnx.save(model, path, save_as_external_data=False)",
            )
        _check_size(path, tensor, onnx)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as e:
        raise ArtifactError(
            f"{path}: corrupt or truncated .onnx file: {str(e).splitlines()[0][:200]}", hint="convert it again"
        ) from e


def _check_size(path: Path, tensor: Any, onnx: Any) -> None:
    """A tensor must hold the bytes its shape promises (onnx's checker accepts 2^31 x 2^31 over a few bytes)."""
    if not tensor.HasField("raw_data"):
        return
    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError, TypeError) as e:
        raise ArtifactError(f"{path}: tensor '{tensor.name}' has an unknown type") from e
    packed = tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    values = math.prod(tensor.dims)
    expected = (values + 1) // 2 if packed else values * width
    if expected != len(tensor.raw_data):
        raise ArtifactError(f"{path}: tensor '{tensor.name}' holds {len(tensor.raw_data)} bytes, not {expected}")


def _facts(model: Any, onnx: Any) -> FileFacts:
    graph = _Graph(model.graph, onnx)
    nodes = [graph.node(node) for node in model.graph.node if node.op_type != "Constant"]
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    initializers = {tensor.name for tensor in model.graph.initializer}
    return FileFacts(
        inputs=tuple(graph.spec(value) for value in model.graph.input if value.name not in initializers),
        outputs=tuple(graph.spec(value) for value in model.graph.output),
        ops=count_ops(node._replace(version=opset) for node in nodes),
        float_ops=unquantized(nodes, _REASON),
        per_channel_weights=graph.per_channel_weights(),
        minimum_runtime=_minimum_runtime(opset, model.ir_version),
    )


def _minimum_runtime(opset: int, ir: int) -> dict[str, str]:
    first, first_for_ir = _FIRST_ONNXRUNTIME.get(opset), _FIRST_ONNXRUNTIME_FOR_IR.get(ir)
    if first is None or first_for_ir is None:
        return {}
    newest = max(first, first_for_ir, key=lambda version: tuple(int(part) for part in version.split(".")))
    return {"onnxruntime": newest}


class _Graph:
    """An ONNX graph with who makes and who uses each value."""

    def __init__(self, graph: Any, onnx: Any) -> None:
        self._onnx = onnx
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._maker = {name: node for node in graph.node for name in node.output}
        self._users: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._types = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
        self._nodes = graph.node

    def node(self, node: Any) -> Node:
        where = node.name or (node.output[0] if node.output else node.op_type)
        return Node(node.op_type, self._dtype(node), where)

    def _dtype(self, node: Any) -> str:
        if node.op_type in (_QUANTIZE, _DEQUANTIZE):
            return BOUNDARY
        if node.op_type in _INTEGER_OPS:
            return "int8"
        given = self._value_type(node.output[0]) if node.output else "none"
        taken = [name for name in node.input if name and name not in self._initializers and not self._is_constant(name)]
        from_integers = [name for name in taken if self._made_by(name, _DEQUANTIZE)]
        activations = [name for name in from_integers if not self._is_weight(name)]
        to_integers = bool(node.output) and all(self._only_quantized(name) for name in node.output if name)
        if node.op_type in _FUSED and taken and len(from_integers) == len(taken) and to_integers:
            return self._integer_type(activations[0] if activations else from_integers[0])
        if from_integers and not activations:
            return HYBRID
        return given if given != "none" else "float32"

    def _is_constant(self, name: str) -> bool:
        return self._made_by(name, "Constant")

    def _made_by(self, name: str, op: str) -> bool:
        maker = self._maker.get(name)
        return maker is not None and maker.op_type == op

    def _is_weight(self, name: str) -> bool:
        return self._maker[name].input[0] in self._initializers

    def _only_quantized(self, name: str) -> bool:
        users = self._users.get(name, [])
        return bool(users) and all(user.op_type == _QUANTIZE for user in users)

    def _integer_type(self, name: str) -> str:
        maker = self._maker[name]
        point = self._initializers.get(maker.input[2]) if len(maker.input) > 2 else None
        return self._name(point.data_type) if point is not None else "uint8"

    def _value_type(self, name: str) -> str:
        value = self._types.get(name)
        number = value.type.tensor_type.elem_type if value is not None else 0
        return self._name(number) if number else "none"

    def _name(self, number: int) -> str:
        return str(self._onnx.helper.tensor_dtype_to_np_dtype(number).name)

    def spec(self, value: Any) -> TensorSpec:
        tensor = value.type.tensor_type
        shape = tuple(
            int(d.dim_value) if d.HasField("dim_value") else (d.dim_param or f"d{axis}")
            for axis, d in enumerate(tensor.shape.dim)
        )
        return TensorSpec(name=value.name, shape=shape, dtype=self._name(tensor.elem_type))

    def per_channel_weights(self) -> int:
        count = 0
        for node in self._nodes:
            scale = self._initializers.get(node.input[1]) if node.op_type == _DEQUANTIZE else None
            weight = self._initializers.get(node.input[0]) if scale is not None else None
            is_int8 = weight is not None and weight.data_type == self._onnx.TensorProto.INT8
            count += bool(is_int8 and scale is not None and math.prod(scale.dims) > 1)
        return count
