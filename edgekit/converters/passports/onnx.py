"""Facts of an `.onnx` file. What a node computes in is asked of onnxruntime, which tells by the graph it makes of the
file (`onnx_execution`); where it cannot load the file, it is told from the file alone, and that is a warning.

Files with external data are refused: their paths can point anywhere. Only ever called in a child process.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgekit.artifact import Scheme, TensorSpec, UnquantizedOp
from edgekit.converters.onnx_graph import OnnxGraph
from edgekit.converters.onnx_weights import weight_inputs
from edgekit.converters.passports.facts import BOUNDARY, HYBRID, FileFacts, Node, count_ops
from edgekit.converters.passports.onnx_execution import Execution, executed, peak_of, with_shapes
from edgekit.errors import ArtifactError, MissingDependencyError

__all__ = ["read_onnx"]

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_BOUNDARIES = (_QUANTIZE, _DEQUANTIZE, "DynamicQuantizeLinear")
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_FUSED = frozenset(
    [
        *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Where", "Sigmoid", "LeakyRelu", "Softmax"),
        *("AveragePool", "GlobalAveragePool", "MaxPool", "Resize", "Pad", "Split", "Slice", "Gather"),
        *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Tile", "Identity"),
        *("DepthToSpace", "SpaceToDepth"),
    ]
)
"""Ops that onnxruntime's CPU provider computes (or moves) in 8 bits between Q and DQ: its qdq_transformer's selectors.
Asked only about nodes that onnxruntime's graph no longer names: it fuses some of them into others."""
_INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger")
_REASON = "onnxruntime has no integer kernel for it here: it computes in float"
_HYBRID_REASON = "its weights are integers; onnxruntime has no integer kernel for it here: it computes in float"
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
_UNLOADED = "onnxruntime on this host cannot load the file: what each op computes in is told from the file alone"


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
    return _facts(path, model, onnx)


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


def _facts(path: Path, model: Any, onnx: Any) -> FileFacts:
    model = with_shapes(model)
    graph, run = _Graph(model, onnx), executed(path, model.graph.value_info)
    nodes = [graph.node(node, run) for node in model.graph.node if node.op_type != "Constant"]
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    domains = {node.name: node.domain for node in model.graph.node}
    return FileFacts(
        inputs=tuple(graph.spec(value) for value in model.graph.input if value.name not in graph.index.constants),
        outputs=tuple(graph.spec(value) for value in model.graph.output),
        ops=count_ops(node._replace(version=versions.get(domains.get(node.where, ""), opset)) for node in nodes),
        float_ops=_float_ops(nodes, graph, run),
        float_weights=graph.float_weights(),
        per_channel_weights=graph.per_channel_weights(),
        minimum_runtime=_minimum_runtime(opset, model.ir_version),
        transposes=run.transposes if run is not None else graph.count("Transpose"),
        boundaries=run.boundaries if run is not None else graph.count(*_BOUNDARIES),
        peak_activation_bytes=(run.peak_activation_bytes if run is not None else None) or peak_of(graph.index),
        scheme=graph.scheme(),
        warnings=() if run is not None else (_UNLOADED,),
    )


def _float_ops(nodes: list[Node], graph: _Graph, run: Execution | None) -> tuple[UnquantizedOp, ...]:
    """The ops that compute in float, those whose weights are integers included."""
    found = []
    for node in nodes:
        if node.dtype in _FLOATS and not graph.is_constant_work(node.where):
            found.append(UnquantizedOp(op=node.op, where=node.where, reason=_REASON))
        elif node.dtype == HYBRID and not (run is not None and run.is_integer(node.where)):
            found.append(UnquantizedOp(op=node.op, where=node.where, reason=_HYBRID_REASON))
    return tuple(found)


def _minimum_runtime(opset: int, ir: int) -> dict[str, str]:
    first, first_for_ir = _FIRST_ONNXRUNTIME.get(opset), _FIRST_ONNXRUNTIME_FOR_IR.get(ir)
    if first is None or first_for_ir is None:
        return {}
    newest = max(first, first_for_ir, key=lambda version: tuple(int(part) for part in version.split(".")))
    return {"onnxruntime": newest}


class _Graph:
    """An ONNX graph asked for facts."""

    def __init__(self, model: Any, onnx: Any) -> None:
        self._onnx = onnx
        self.index = OnnxGraph(model)
        self._nodes = model.graph.node
        self._by_name = {_name(node): node for node in self._nodes}

    def node(self, node: Any, run: Execution | None) -> Node:
        measured = run.dtypes.get(node.name) if run is not None and node.name else None
        return Node(node.op_type, self._dtype(node, measured), _name(node))

    def _dtype(self, node: Any, measured: str | None) -> str:
        if node.op_type in _BOUNDARIES:
            return BOUNDARY
        if node.op_type == "Cast" and self._reads(node, "float16"):
            return "float16"
        if measured is not None:
            is_float = measured in _FLOATS
            return HYBRID if is_float and self._has_integer_weights(node) else measured
        if node.op_type in _INTEGER_OPS:
            return "int8"
        return self._told(node)

    def _told(self, node: Any) -> str:
        """The type as the file alone tells it."""
        taken = [name for name in node.input if self._is_moving(name)]
        from_integers = [name for name in taken if self._made_by(name, _DEQUANTIZE)]
        to_integers = bool(node.output) and all(self._only_quantized(name) for name in node.output if name)
        if node.op_type in _FUSED and taken and len(from_integers) == len(taken) and to_integers:
            return self._integer_type(from_integers[0])
        if self._has_integer_weights(node):
            return HYBRID
        given = self.index.dtype(node.output[0]) if node.output else None
        return given or "float32"

    def _reads(self, node: Any, dtype: str) -> bool:
        return bool(node.input) and node.input[0] in self.index.constants and self.index.dtype(node.input[0]) == dtype

    def _is_moving(self, name: str) -> bool:
        """Whether a value is an activation: no constant, nor the dequantized or widened form of one."""
        if not name or name in self.index.constants:
            return False
        maker = self.index.makers.get(name)
        if maker is None:
            return True
        if maker.op_type == "Constant":
            return False
        return maker.op_type not in (_DEQUANTIZE, "Cast", "Reshape") or self._is_moving(maker.input[0])

    def _has_integer_weights(self, node: Any) -> bool:
        """Whether an operand is an integer constant, dequantized in front of the op."""
        for name in node.input:
            maker = self.index.makers.get(name)
            while maker is not None and maker.op_type in ("Reshape", "Cast"):
                maker = self.index.makers.get(maker.input[0])
            if maker is not None and maker.op_type == _DEQUANTIZE and not self._is_moving(maker.output[0]):
                return True
        return False

    def is_constant_work(self, where: str) -> bool:
        """Whether a node only prepares constants, which the runtime does once."""
        node = self._by_name[where]
        return bool(node.input) and not any(self._is_moving(name) for name in node.input)

    def _made_by(self, name: str, op: str) -> bool:
        maker = self.index.makers.get(name)
        return maker is not None and maker.op_type == op

    def _only_quantized(self, name: str) -> bool:
        users = self.index.readers_of(name)
        return bool(users) and all(user.op_type == _QUANTIZE for user in users)

    def _integer_type(self, name: str) -> str:
        maker = self.index.makers[name]
        point = maker.input[2] if len(maker.input) > 2 else ""
        return self.index.dtype(point) or "uint8"

    def count(self, *ops: str) -> int:
        """Nodes of these kinds that work on activations."""
        return sum(node.op_type in ops and self._is_moving(node.input[0]) for node in self._nodes)

    def spec(self, value: Any) -> TensorSpec:
        tensor = value.type.tensor_type
        shape = tuple(
            int(d.dim_value) if d.HasField("dim_value") else (d.dim_param or f"d{axis}")
            for axis, d in enumerate(tensor.shape.dim)
        )
        return TensorSpec(
            name=value.name, shape=shape, dtype=str(self._onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name)
        )

    def float_weights(self) -> tuple[UnquantizedOp, ...]:
        reason = "its weights are float32 constants in the file"
        return tuple(
            UnquantizedOp(op=node.op_type, where=_name(node), reason=reason)
            for node in self._nodes
            if any(True for _ in weight_inputs(self.index, node))
        )

    def per_channel_weights(self) -> int:
        count = 0
        for node in self._nodes:
            if node.op_type == _DEQUANTIZE and len(node.input) > 1 and node.input[0] in self.index.constants:
                is_narrow = self.index.dtype(node.input[0]) in ("int8", "int4", "uint4")
                count += is_narrow and math.prod(n or 1 for n in self.index.shape(node.input[1]) or ()) > 1
        return count

    def scheme(self) -> Scheme | None:
        """A scheme that the types of its ops alone would not tell."""
        ops = {node.op_type for node in self._nodes}
        if "DynamicQuantizeLinear" in ops or "DynamicQuantizeLSTM" in ops:
            return Scheme.DYNAMIC_W8
        quantized = [node for node in self._nodes if node.op_type == _DEQUANTIZE]
        moving = {self.index.dtype(node.input[2]) for node in quantized if self._is_moving(node.output[0])}
        if moving == {"int16"}:
            return Scheme.STATIC_W8A16
        if moving or not quantized:
            return None
        narrow = {self.index.dtype(node.input[0]) for node in quantized}
        return Scheme.WEIGHT_W4 if narrow & {"int4", "uint4"} else Scheme.WEIGHT_W8


def _name(node: Any) -> str:
    return str(node.name or (node.output[0] if node.output else node.op_type))
