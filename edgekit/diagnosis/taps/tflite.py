"""Tapped `.tflite` files: tensors added to the outputs of the first subgraph and of its signature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.artifact import QuantizationParams
from edgekit.diagnosis.taps.values import TapOutput, TappedFile
from edgekit.errors import ArtifactError, MissingDependencyError

__all__ = ["input_names", "open_all", "open_chosen"]


def input_names(path: Path) -> tuple[str, ...]:
    """The names of the first subgraph's inputs."""
    model, _ = _read(path)
    graph = model.subgraphs[0]
    return tuple(_text(graph.tensors[int(index)].name) for index in graph.inputs)


def open_all(path: Path) -> TappedFile:
    """The file with every tensor its ops compute added to its outputs."""
    model, schema = _read(path)
    names = _names(model.subgraphs[0])
    return _tapped(model, schema, {names[index]: index for index in _computed(model, schema) if index in names})


def open_chosen(path: Path, names: Sequence[str]) -> TappedFile:
    """The file with the tensors of these names, and their integer forms where they are only quantized further on."""
    model, schema = _read(path)
    known = {name: index for index, name in _names(model.subgraphs[0]).items()}
    computed = set(_computed(model, schema))
    integer = _quantized_forms(model, schema)
    chosen = {}
    for name in names:
        index = known.get(name)
        if index is not None:
            index = integer.get(index, index)
            if index in computed:
                chosen[name] = index
    return _tapped(model, schema, chosen)


def _read(path: Path) -> tuple[Any, Any]:
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as e:
        raise MissingDependencyError("looking into .tflite files", extra="tflite", package="ai-edge-litert") from e
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    if any(getattr(buffer, "size", 0) for buffer in model.buffers):
        raise ArtifactError(f"{path}: keeps weights outside its flatbuffer (over 2 GB), and cannot be looked into")
    return model, schema


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value or "")


def _names(graph: Any) -> dict[int, str]:
    """Tensor index to name, of the tensors whose name is theirs alone."""
    names = [_text(tensor.name) for tensor in graph.tensors]
    count = Counter(names)
    return {index: name for index, name in enumerate(names) if name and count[name] == 1}


def _computed(model: Any, schema: Any) -> list[int]:
    """Tensors that ops of the first subgraph write and that have a type an output can have, in order."""
    graph = model.subgraphs[0]
    types = schema.TensorType
    usable = {types.FLOAT32, types.INT8, types.INT16, types.UINT8, types.INT32, types.INT64, types.BOOL}
    written = [int(index) for operator in graph.operators for index in operator.outputs if index >= 0]
    return [index for index in dict.fromkeys(written) if graph.tensors[index].type in usable]


def _quantized_forms(model: Any, schema: Any) -> dict[int, int]:
    """A float tensor to the integer tensor it becomes, where a QUANTIZE op is all that reads it."""
    graph = model.subgraphs[0]
    readers: Counter[int] = Counter(int(i) for operator in graph.operators for i in operator.inputs)
    readers.update(int(i) for i in graph.outputs)
    forms = {}
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) == schema.BuiltinOperator.QUANTIZE:
            source, result = int(operator.inputs[0]), int(operator.outputs[0])
            if readers[source] == 1 and graph.tensors[source].type == schema.TensorType.FLOAT32:
                forms[source] = result
    return forms


def _tapped(model: Any, schema: Any, chosen: dict[str, int]) -> TappedFile:
    import flatbuffers

    graph = model.subgraphs[0]
    own = [int(index) for index in graph.outputs]
    added = [index for index in dict.fromkeys(chosen.values()) if index not in own]
    graph.outputs = own + added
    taps = [_output(name, index, graph, schema) for name, index in chosen.items()]
    signature = next((s for s in model.signatureDefs or () if s.subgraphIndex == 0), None)
    for position, index in enumerate(added):
        if signature is not None:
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = f"tap_{position}".encode(), index
            signature.outputs.append(entry)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return TappedFile(content=bytes(builder.Output()), taps=tuple(taps), own_outputs=len(own))


def _output(name: str, index: int, graph: Any, schema: Any) -> TapOutput:
    tensor = graph.tensors[index]
    types = {value: key.lower() for key, value in vars(schema.TensorType).items() if isinstance(value, int)}
    q = tensor.quantization
    quantization = None
    if q is not None and q.scale is not None and len(q.scale):
        points = q.zeroPoint if q.zeroPoint is not None and len(q.zeroPoint) else [0] * len(q.scale)
        quantization = QuantizationParams(
            scale=tuple(float(s) for s in q.scale),
            zero_point=tuple(int(z) for z in points),
            axis=int(q.quantizedDimension) if len(q.scale) > 1 else None,
        )
    return TapOutput(
        position=graph.outputs.index(index), name=name, dtype=types[tensor.type], quantization=quantization
    )
