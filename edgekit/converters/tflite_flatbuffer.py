"""A `.tflite` file as an object that can be changed: names, order of inputs and outputs, constants, 16-bit weights.

Uses the schema that ai-edge-litert brings. Only ever given files that edgekit's own toolchain wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekit.errors import ConversionError, MissingDependencyError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "FloatTensor",
    "constant_of",
    "float_tensors",
    "has_half_weights",
    "nodes_of",
    "op_name",
    "read_model",
    "schema",
    "text",
    "tidied",
    "with_half_weights",
    "write_model",
]

HALF_MAX = 65504.0
MIN_ELEMENTS = 16
"""Constants below this size stay float32: the op that widens them would take more bytes than they save."""


class FloatTensor(NamedTuple):
    """A float32 tensor of a subgraph: its name, and its values where it is a constant."""

    position: int
    name: str
    values: np.ndarray | None


def schema() -> Any:
    """The schema module."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as e:
        raise MissingDependencyError("reading .tflite files", extra="tflite", package="ai-edge-litert") from e
    return schema_py_generated


def read_model(content: bytes) -> Any:
    """The file as a `ModelT`."""
    return schema().ModelT.InitFromPackedBuf(content, 0)


def write_model(model: Any) -> bytes:
    """The file of a `ModelT`, its buffers 16-byte aligned as the schema asks (the generated code forgets it)."""
    import flatbuffers

    _drop_unused_buffers(model)
    aligned = [_AlignedBuffer(buffer) for buffer in model.buffers]
    buffers, model.buffers = model.buffers, aligned
    builder = flatbuffers.Builder(1024 + sum(len(b.data) + 64 for b in buffers if b.data is not None))
    try:
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    finally:
        model.buffers = buffers
    return bytes(builder.Output())


def _drop_unused_buffers(model: Any) -> None:
    """Renumber the buffers, without those no tensor and no metadata uses; the first stays, it is the empty one."""
    users = [tensor for graph in model.subgraphs for tensor in graph.tensors] + list(model.metadata or ())
    used = sorted({0, *(int(user.buffer) for user in users), *(int(i) for i in model.metadataBuffer or ())})
    numbers = {old: new for new, old in enumerate(used)}
    model.buffers = [model.buffers[old] for old in used]
    for user in users:
        user.buffer = numbers[int(user.buffer)]
    if model.metadataBuffer is not None:
        model.metadataBuffer = [numbers[int(i)] for i in model.metadataBuffer]


class _AlignedBuffer:
    """A `BufferT` that packs itself at a multiple of 16 bytes."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer

    def Pack(self, builder: Any) -> Any:  # noqa: N802 - the name flatbuffers calls
        import numpy as np

        tables = schema()
        data = self._buffer.data
        vector = None
        if data is not None and len(data):
            raw = np.asarray(data, np.uint8).tobytes()
            builder.StartVector(1, len(raw), 16)
            builder.head = builder.head - len(raw)
            builder.Bytes[builder.head : builder.head + len(raw)] = raw
            vector = builder.EndVector()
        tables.BufferStart(builder)
        if vector is not None:
            tables.BufferAddData(builder, vector)
        return tables.BufferEnd(builder)


def text(value: Any) -> str:
    """A flatbuffer string as str."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def op_name(model: Any, operator: Any) -> str:
    """`CONV_2D`, …; a custom op's own name."""
    tables = schema()
    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    if number == tables.BuiltinOperator.CUSTOM:
        return text(code.customCode)
    return _op_names(tables).get(number, str(number))


def _op_names(tables: Any) -> dict[int, str]:
    return {value: name for name, value in vars(tables.BuiltinOperator).items() if isinstance(value, int)}


def constant_of(model: Any, tensor: Any) -> np.ndarray | None:
    """The values of a constant float32 or integer tensor; None for an activation."""
    import numpy as np

    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
        return None
    kinds: dict[int, Any] = {
        schema().TensorType.FLOAT32: np.float32,
        schema().TensorType.FLOAT16: np.float16,
        schema().TensorType.INT32: np.int32,
        schema().TensorType.INT64: np.int64,
        schema().TensorType.INT8: np.int8,
        schema().TensorType.BOOL: np.bool_,
    }
    kind = kinds.get(tensor.type)
    if kind is None:
        return None
    shape = tensor.shape if tensor.shape is not None else []
    values: np.ndarray = np.asarray(data, np.uint8).view(kind).reshape([int(n) for n in shape])
    return values


def float_tensors(model: Any, graph: Any) -> Iterator[FloatTensor]:
    """Every float32 tensor of a subgraph."""
    for index, tensor in enumerate(graph.tensors):
        if tensor.type == schema().TensorType.FLOAT32:
            yield FloatTensor(index, text(tensor.name), constant_of(model, tensor))


def nodes_of(name: str) -> tuple[str, ...]:
    """The program's nodes a tensor's name tells of: `relu+conv2d#1` is of `relu` and `conv2d`."""
    return tuple(part for part in name.partition("#")[0].split("+") if part)


def tidied(content: bytes) -> bytes:
    """The file with inputs and outputs in the order of the program, and every tensor's name its own.

    litert-torch 0.10 keeps the order by itself; a file in another one is put right, one that lacks an input or
    output is refused.
    """
    model = read_model(content)
    for signature in model.signatureDefs or ():
        graph = model.subgraphs[signature.subgraphIndex]
        graph.inputs = _in_order(signature.inputs, graph.inputs, "args_")
        graph.outputs = _in_order(signature.outputs, graph.outputs, "output_")
    _name_apart(model)
    return write_model(model)


def _in_order(entries: Any, present: Any, prefix: str) -> list[int]:
    """Tensor indices by the numbers in the signature's names."""
    ordered = sorted(entries or (), key=lambda entry: int(text(entry.name).removeprefix(prefix)))
    wanted = [int(entry.tensorIndex) for entry in ordered]
    if sorted(wanted) != sorted(int(i) for i in present):
        raise ConversionError(
            f"the file has {len(present)} tensors where its signature names {len(wanted)} ({prefix}…)",
            backend="tflite",
            stage="order",
        )
    return wanted


def _name_apart(model: Any) -> None:
    """`relu;;conv2d;3` becomes `relu+conv2d`, with `#1`, … where several tensors come from the same nodes."""
    seen: dict[str, int] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            parts = [part for part in text(tensor.name).split(";") if part and not re.fullmatch(r"\d+", part)]
            name = "+".join(dict.fromkeys(parts)) or "tensor"
            count = seen.get(name, 0)
            seen[name] = count + 1
            tensor.name = (f"{name}#{count}" if count else name).encode()


def has_half_weights(content: bytes) -> bool:
    """Whether any constant is float16."""
    model = read_model(content)
    return any(t.type == schema().TensorType.FLOAT16 for graph in model.subgraphs for t in graph.tensors)


def with_half_weights(content: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The file with its weights in float16, each widened by a DEQUANTIZE that runtimes evaluate once; and the
    constants that stay float32 because float16 cannot hold them."""
    import numpy as np

    model = read_model(content)
    tables = schema()
    code = _code_of_dequantize(model, tables)
    halves: dict[int, int] = {}
    kept = []
    for graph in model.subgraphs:
        outputs = {int(i) for i in graph.outputs}
        added = []
        for tensor in list(float_tensors(model, graph)):
            if tensor.values is None or tensor.values.ndim < 2 or tensor.values.size < MIN_ELEMENTS:
                continue
            users = [o for o in graph.operators if tensor.position in o.inputs]
            if tensor.position in outputs or not users:
                continue
            if np.abs(tensor.values).max() > HALF_MAX:
                kept.append(tensor.name)
                continue
            half = _half_of(model, graph.tensors[tensor.position], tensor.values, halves)
            added.append(_widened(graph, tensor.position, half, code))
        graph.operators = added + list(graph.operators)
    return write_model(model), tuple(kept)


def _half_of(model: Any, tensor: Any, values: np.ndarray, halves: dict[int, int]) -> Any:
    """A float16 tensor with the constant's values; tensors that shared a buffer share the new one."""
    import numpy as np

    tables = schema()
    if tensor.buffer not in halves:
        data = tables.BufferT()
        data.data = values.astype(np.float16).reshape(-1).view(np.uint8)
        model.buffers.append(data)
        halves[tensor.buffer] = len(model.buffers) - 1
    half = tables.TensorT()
    half.name = f"{text(tensor.name)}.half".encode()
    half.shape, half.type, half.buffer = tensor.shape, tables.TensorType.FLOAT16, halves[tensor.buffer]
    half.shapeSignature, half.hasRank = tensor.shapeSignature, tensor.hasRank
    return half


def _widened(graph: Any, position: int, half: Any, code: int) -> Any:
    """A DEQUANTIZE from a new float16 tensor to the tensor that was the constant."""
    graph.tensors.append(half)
    graph.tensors[position].buffer = 0  # the empty one: now an activation
    operator = schema().OperatorT()
    operator.opcodeIndex = code
    operator.inputs, operator.outputs = [len(graph.tensors) - 1], [position]
    return operator


def _code_of_dequantize(model: Any, tables: Any) -> int:
    """Index of a DEQUANTIZE of version 3, the first that takes float16."""
    code = tables.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = tables.BuiltinOperator.DEQUANTIZE
    code.version = 3
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
