"""What onnxruntime makes of a file when it loads it: which nodes compute in integers, what is converted at every
inference, and how much memory activations take.

Asked of the runtime itself, by the graph it writes after its hardware-independent optimisations (fusions included):
what it has an integer kernel for depends on more than the kind of the op.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.converters.onnx_graph import OnnxGraph
from edgekit.converters.passports.facts import HYBRID, Lifetime, peak_bytes

__all__ = ["Execution", "executed", "peak_of", "with_shapes"]

_BOUNDARIES = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_ON_THE_FLY = ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "GatherBlockQuantized")
"""Take float activations and integer weights."""
_BYTES = {
    **dict.fromkeys(("float64", "int64", "uint64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One loaded file."""

    dtypes: Mapping[str, str]
    """What each node computes in, by its name in the file; nodes fused into others are not in it."""
    boundaries: int
    transposes: int
    peak_activation_bytes: int | None
    """None where an extent is free."""

    def is_integer(self, name: str) -> bool:
        """Whether a node that takes float activations multiplies in integers nevertheless."""
        return self.dtypes.get(name) == HYBRID


def executed(path: Path, known: Iterable[Any]) -> Execution | None:
    """What onnxruntime makes of the file; None where it is not installed or cannot load it.

    `known` are the ValueInfoProtos of the file's values: the graph onnxruntime writes has none, but keeps names.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory(prefix="edgekit-onnx-") as folder:
        written = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(written)
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            model = onnx.load_model_from_string(written.read_bytes())
        except Exception:  # noqa: BLE001 - onnxruntime raises Fail, NotImplemented, InvalidGraph, RuntimeError, ...
            return None  # told as a warning by the caller
    model.graph.value_info.extend(known)
    return _execution(OnnxGraph(with_shapes(model)))


def with_shapes(model: Any) -> Any:
    """A copy of the model with the types and shapes that can be inferred; as it is where inference fails on it.

    onnxruntime's own QuantizeLinear, which holds 16 bits in older opsets, is inferred as the standard's.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type in _BOUNDARIES:
            node.domain = ""
    for entry in copy.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, 21)
    try:
        inferred = onnx.shape_inference.infer_shapes(copy)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return model
    del inferred.graph.node[:]
    inferred.graph.node.extend(model.graph.node)
    del inferred.opset_import[:]
    inferred.opset_import.extend(model.opset_import)
    return inferred


def _execution(graph: OnnxGraph) -> Execution:
    nodes = list(graph.proto.node)
    moving = set(graph.inputs)
    for node in nodes:
        if any(name in moving for name in node.input):
            moving.update(node.output)
    working = Counter(node.op_type for node in nodes if node.input and node.input[0] in moving)
    return Execution(
        dtypes={node.name: _dtype(graph, node) for node in nodes if node.name},
        boundaries=sum(working[op] for op in _BOUNDARIES),
        transposes=working["Transpose"],
        peak_activation_bytes=peak_of(graph),
    )


def _dtype(graph: OnnxGraph, node: Any) -> str:
    if node.op_type in _ON_THE_FLY:
        return HYBRID
    moving = [name for name in node.input if name and name not in graph.constants]
    types = [dtype for name in moving if (dtype := graph.dtype(name)) is not None]
    given = graph.dtype(node.output[0]) if node.output else None
    is_integer = node.op_type.startswith(("QLinear", "QGemm", "MatMulInteger", "ConvInteger"))
    if is_integer:
        return next((dtype for dtype in types if dtype in ("uint8", "int8")), "int8")
    floats = [dtype for dtype in (*types, given) if dtype is not None and "float" in dtype]
    return floats[0] if floats else given or next(iter(types), "float32")


def peak_of(graph: OnnxGraph) -> int | None:
    """The most bytes of values alive at once, in the order of the graph; None where an extent is free or unknown."""
    nodes = list(graph.proto.node)
    last: dict[str, int] = {}
    for position, node in enumerate(nodes):
        for name in node.input:
            last[name] = position
    last.update(dict.fromkeys(graph.outputs, len(nodes)))
    lifetimes = []
    first = {name: 0 for name in graph.inputs}
    first.update({name: position for position, node in enumerate(nodes) for name in node.output if name})
    for name, begin in first.items():
        shape, dtype = graph.shape(name), graph.dtype(name)
        if shape is None or dtype is None or None in shape:
            return None
        size = math.prod(extent for extent in shape if extent is not None) * _BYTES.get(dtype, 1)
        lifetimes.append(Lifetime(size, begin, max(begin, last.get(name, begin))))
    return peak_bytes(lifetimes)
