"""Facts of a `.tflite` file, read with the schema that ai-edge-litert brings.

Only ever called in a child process: flatbuffers are read without bounds checks until the interpreter, whose
native verifier sees the file first, has accepted it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.artifact import Delegate, QuantizationParams, Signature, TensorSpec, UnquantizedOp
from edgekit.converters.passports.facts import (
    BOUNDARY,
    HYBRID,
    FileFacts,
    Lifetime,
    Node,
    count_ops,
    peak_bytes,
    unquantized,
)
from edgekit.errors import ArtifactError, MissingDependencyError

__all__ = ["read_tflite"]

_FLOATS = ("float32", "float16", "bfloat16", "float64")
_SMALL = ("int8", "int4", "int2")
_MOVES_WEIGHTS = "DEQUANTIZE"
_WEIGHTED = (
    *("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "CONV_3D_TRANSPOSE"),
    *("FULLY_CONNECTED", "BATCH_MATMUL", "EMBEDDING_LOOKUP", "GATHER"),
)
_WEIGHT_RANK = 2
_WIDTH = {"int8": 1, "uint8": 1, "bool": 1, "int4": 1, "int16": 2, "float16": 2, "int64": 8, "float64": 8}
_FLOAT_WEIGHTS = "its weights are float constants in the file: the quantizer has no integer form of them"
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
    delegates, warnings = _delegated(path)
    return _facts(model, schema, delegates, warnings)


def _delegated(path: Path) -> tuple[tuple[Delegate, ...], tuple[str, ...]]:
    """How many nodes XNNPACK takes on this host, counted in the interpreter; a warning where it does not load."""
    from edgekit.runtimes.runner.backends.litert import Backend

    backend = Backend()
    backend.import_runtime()
    try:
        backend.load(str(path), 1, "auto")
        told = backend.describe()
    except (ValueError, RuntimeError) as e:
        return (), (f"the host's runtime cannot prepare it: {' '.join(str(e).split())[:300]}",)
    if told["delegate"] is None:
        return (Delegate(name="XNNPACK", nodes=0, total=told["total_nodes"]),), ()
    return (Delegate(name=told["delegate"], nodes=told["delegate_nodes"], total=told["total_nodes"]),), ()


def _facts(model: Any, schema: Any, delegates: tuple[Delegate, ...], warnings: tuple[str, ...]) -> FileFacts:
    types = _names(schema.TensorType)
    graphs = [_Graph(model, graph, schema, types) for graph in model.subgraphs]
    nodes = [node for graph in graphs for node in graph.nodes()]
    main = graphs[0]
    scaled_dense = _has_per_channel_dense(model, schema)
    return FileFacts(
        inputs=main.inputs(),
        outputs=main.outputs(),
        ops=count_ops(nodes),
        float_ops=unquantized(nodes, _REASON),
        float_weights=tuple(op for graph in graphs for op in graph.float_weights()),
        delegates=delegates,
        per_channel_weights=sum(_is_per_channel(t, types) for graph in model.subgraphs for t in graph.tensors),
        minimum_runtime={} if scaled_dense else _minimum_runtime(model),
        transposes=main.count_moving("TRANSPOSE"),
        boundaries=main.count_moving("QUANTIZE") + main.count_moving("DEQUANTIZE"),
        peak_activation_bytes=peak_bytes(main.lifetimes()),
        signatures=_signatures(model, graphs),
        warnings=(*warnings, *((_DENSE_WARNING,) if scaled_dense else ())),
    )


def _signatures(model: Any, graphs: list[_Graph]) -> tuple[Signature, ...]:
    """Every entry point, where there are several."""
    entries = model.signatureDefs or ()
    if len(entries) < 2:
        return ()
    return tuple(
        Signature(
            name=_text(entry.signatureKey),
            inputs=graphs[entry.subgraphIndex].inputs(),
            outputs=graphs[entry.subgraphIndex].outputs(),
        )
        for entry in entries
    )


class _Graph:
    """One subgraph of a file: its ops, and which of its tensors are constants or made of constants alone."""

    def __init__(self, model: Any, graph: Any, schema: Any, types: dict[int, str]) -> None:
        self._model = model
        self._graph = graph
        self._types = types
        self._builtin = _names(schema.BuiltinOperator)
        self._custom = schema.BuiltinOperator.CUSTOM
        self._fixed = {i for i, tensor in enumerate(graph.tensors) if _is_constant(model, tensor)}
        self._widened: dict[int, int] = {}
        for operator in graph.operators:
            sources = [i for i in operator.inputs if i >= 0]
            if sources and all(i in self._fixed for i in sources):
                self._fixed.update(int(i) for i in operator.outputs)
                if self._name(operator) == _MOVES_WEIGHTS:
                    self._widened[int(operator.outputs[0])] = int(sources[0])

    def _name(self, operator: Any) -> str:
        code = self._model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return self._builtin.get(number, str(number)) if number != self._custom else _text(code.customCode)

    def _dtype(self, index: int) -> str:
        """numpy name; of a constant that is widened before use, the type it is stored in."""
        return _numpy_name(self._graph.tensors[self._widened.get(int(index), int(index))], self._types)

    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(self._graph.tensors[i], self._types) for i in self._graph.inputs)

    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(self._graph.tensors[i], self._types) for i in self._graph.outputs)

    def nodes(self) -> list[Node]:
        """Every op with the type it computes in."""
        return [
            Node(
                self._name(operator),
                self._computes_in(operator),
                self._where(operator),
                self._model.operatorCodes[operator.opcodeIndex].version,
            )
            for operator in self._graph.operators
        ]

    def _where(self, operator: Any) -> str:
        made = [i for i in operator.outputs if i >= 0]
        return _text(self._graph.tensors[made[0]].name) if made else self._name(operator)

    def _computes_in(self, operator: Any) -> str:
        """The type of the op's activations (constants are weights, shapes and biases)."""
        op = self._name(operator)
        sources = [int(i) for i in operator.inputs if i >= 0]
        if op == _MOVES_WEIGHTS and sources[0] in self._fixed:
            stored = self._dtype(sources[0])
            return stored if stored in _FLOATS else HYBRID
        constant = [self._dtype(i) for i in sources if i in self._fixed]
        moving = [self._dtype(i) for i in sources if i not in self._fixed]
        given = [self._dtype(i) for i in operator.outputs if i >= 0]
        is_float = [name in _FLOATS for name in (*moving, *given)]
        if op in ("QUANTIZE", _MOVES_WEIGHTS):
            whole = not any(is_float) and op == "QUANTIZE"
            return given[0] if whole else BOUNDARY
        if any(is_float):
            has_integer_weights = any(name in _SMALL for name in constant)
            return HYBRID if has_integer_weights else next(n for n in (*given, *moving) if n in _FLOATS)
        return next((name for name in (*moving, *given)), "none")

    def float_weights(self) -> list[UnquantizedOp]:
        """Ops that have weights, and have them in float."""
        return [
            UnquantizedOp(op=self._name(operator), where=self._where(operator), reason=_FLOAT_WEIGHTS)
            for operator in self._graph.operators
            if self._name(operator) in _WEIGHTED
            and any(
                i in self._fixed and self._dtype(i) == "float32" and _rank(self._graph.tensors[i]) >= _WEIGHT_RANK
                for i in map(int, operator.inputs)
                if i >= 0
            )
        ]

    def count_moving(self, op: str) -> int:
        """Ops of one kind that run on activations."""
        return sum(
            self._name(operator) == op and int(operator.inputs[0]) not in self._fixed
            for operator in self._graph.operators
        )

    def lifetimes(self) -> list[Lifetime]:
        """Of every activation: from the op that makes it to the last that takes it; inputs and outputs throughout."""
        last = len(self._graph.operators)
        born = {int(i): 0 for i in self._graph.inputs}
        dies: dict[int, int] = {}
        for position, operator in enumerate(self._graph.operators):
            for i in operator.outputs:
                born.setdefault(int(i), position)
            for i in (*operator.inputs, *operator.outputs):
                dies[int(i)] = position
        dies.update((int(i), last) for i in (*self._graph.outputs, *self._graph.inputs))
        return [
            Lifetime(_bytes_of(self._graph.tensors[i], self._types), first, dies.get(i, last))
            for i, first in born.items()
            if i not in self._fixed
        ]


def _rank(tensor: Any) -> int:
    return len(tensor.shape) if tensor.shape is not None else 0


def _bytes_of(tensor: Any, types: dict[int, str]) -> int:
    """Size of an activation; 0 where the extent is free."""
    elements = 1
    for extent in tensor.shape if tensor.shape is not None else ():
        elements *= max(0, int(extent))
    return elements * _WIDTH.get(_numpy_name(tensor, types), 4)


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


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
