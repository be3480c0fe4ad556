"""Facts of a `.tflite` file, read with the schema that ai-edge-litert brings.

Only ever called in a child process: flatbuffers are read without bounds checks until the interpreter, whose
native verifier sees the file first, has accepted it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.artifact import QuantizationParams, TensorSpec
from edgekit.converters.passports.facts import BOUNDARY, HYBRID, FileFacts, Node, count_ops, unquantized
from edgekit.errors import ArtifactError, MissingDependencyError

__all__ = ["read_tflite"]

_FLOATS = ("float32", "float16", "bfloat16", "float64")
_MOVES_WEIGHTS = "DEQUANTIZE"
_DENSE_WARNING = (
    "FULLY_CONNECTED has one weight scale per channel, which its version number does not say: an old runtime may "
    "read the first scale only, so check its outputs there (right with ai-edge-litert 2.3)"
)
_REASON = "its activations are float in the file: the quantizer has no integer form of this op here"


def read_tflite(path: Path) -> FileFacts:
    """What the file says. Raises ArtifactError when it is no sound `.tflite`."""
    try:
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as e:
        raise MissingDependencyError("reading .tflite files", extra="tflite", package="ai-edge-litert") from e
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise ArtifactError(f"{path}: not a TensorFlow Lite file (no TFL3 mark)")
    try:
        Interpreter(model_content=data, num_threads=1)
        model = schema.ModelT.InitFromPackedBuf(data, 0)
    except (ValueError, RuntimeError, TypeError, IndexError) as e:
        raise ArtifactError(
            f"{path}: corrupt or truncated .tflite file: {str(e).splitlines()[0][:200] if str(e) else e!r}",
            hint="copy or convert it again",
        ) from e
    return _facts(model, schema)


def _facts(model: Any, schema: Any) -> FileFacts:
    types = _names(schema.TensorType)
    nodes = [node for graph in model.subgraphs for node in _nodes(model, graph, schema, types)]
    main = model.subgraphs[0]
    scaled_dense = _has_per_channel_dense(model, schema)
    return FileFacts(
        inputs=tuple(_spec(main.tensors[i], types) for i in main.inputs),
        outputs=tuple(_spec(main.tensors[i], types) for i in main.outputs),
        ops=count_ops(nodes),
        float_ops=unquantized(nodes, _REASON),
        per_channel_weights=sum(_is_per_channel(t, types) for graph in model.subgraphs for t in graph.tensors),
        minimum_runtime={} if scaled_dense else _minimum_runtime(model),
        warnings=(_DENSE_WARNING,) if scaled_dense else (),
    )


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _nodes(model: Any, graph: Any, schema: Any, types: dict[int, str]) -> list[Node]:
    builtin = _names(schema.BuiltinOperator)
    nodes = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        op = builtin.get(number, str(number)) if number != schema.BuiltinOperator.CUSTOM else _text(code.customCode)
        inputs = [graph.tensors[i] for i in operator.inputs if i >= 0]
        outputs = [graph.tensors[i] for i in operator.outputs if i >= 0]
        where = _text(outputs[0].name) if outputs else op
        nodes.append(Node(op, _dtype(model, op, inputs, outputs, types), where, code.version))
    return nodes


def _dtype(model: Any, op: str, inputs: list[Any], outputs: list[Any], types: dict[int, str]) -> str:
    """The type the op computes in, from its activations (constants are weights, shapes and biases)."""
    constant = [t for t in inputs if _is_constant(model, t)]
    moving = [_numpy_name(t, types) for t in inputs if not _is_constant(model, t)]
    given = [_numpy_name(t, types) for t in outputs]
    is_float = [name in _FLOATS for name in (*moving, *given)]
    if op in ("QUANTIZE", _MOVES_WEIGHTS):
        whole = not any(is_float) and op == "QUANTIZE"
        return given[0] if whole else BOUNDARY
    if any(is_float):
        has_integer_weights = any(_numpy_name(t, types) in ("int8", "int4", "int2") for t in constant)
        return HYBRID if has_integer_weights else next(n for n in (*given, *moving) if n in _FLOATS)
    return next((name for name in (*moving, *given)), "none")


def _is_constant(model: Any, tensor: Any) -> bool:
    buffer = model.buffers[tensor.buffer]
    return (buffer.data is not None and len(buffer.data) > 0) or bool(getattr(buffer, "size", 0))


def _numpy_name(tensor: Any, types: dict[int, str]) -> str:
    return types.get(tensor.type, f"type{tensor.type}").lower()


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def _spec(tensor: Any, types: dict[int, str]) -> TensorSpec:
    signature = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    shape = tuple(
        int(n) if int(n) >= 0 else f"d{axis}" for axis, n in enumerate(signature if signature is not None else ())
    )
    return TensorSpec(
        name=_text(tensor.name), shape=shape, dtype=_numpy_name(tensor, types), quantization=_quantization(tensor)
    )


def _quantization(tensor: Any) -> QuantizationParams | None:
    q = tensor.quantization
    if q is None or q.scale is None or len(q.scale) == 0:
        return None
    points = q.zeroPoint if q.zeroPoint is not None and len(q.zeroPoint) else [0] * len(q.scale)
    return QuantizationParams(
        scale=tuple(float(s) for s in q.scale),
        zero_point=tuple(int(z) for z in points),
        axis=int(q.quantizedDimension) if len(q.scale) > 1 else None,
    )


def _is_per_channel(tensor: Any, types: dict[int, str]) -> bool:
    q = tensor.quantization
    many = q is not None and q.scale is not None and len(q.scale) > 1
    return many and _numpy_name(tensor, types) in ("int8", "int4", "int2")


def _has_per_channel_dense(model: Any, schema: Any) -> bool:
    for graph in model.subgraphs:
        for operator in graph.operators:
            if model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.FULLY_CONNECTED:
                quantization = graph.tensors[operator.inputs[1]].quantization
                if quantization is not None and quantization.scale is not None and len(quantization.scale) > 1:
                    return True
    return False


def _minimum_runtime(model: Any) -> dict[str, str]:
    """From the `min_runtime_version` the converter writes: the first TensorFlow Lite with every op version used."""
    for entry in model.metadata or ():
        if _text(entry.name) == "min_runtime_version":
            version = bytes(model.buffers[entry.buffer].data).rstrip(b"\0").decode("ascii", errors="replace")
            if version:
                return {"tflite-runtime": version}
    return {}
