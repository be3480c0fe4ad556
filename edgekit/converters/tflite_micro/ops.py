"""The ops of a `.tflite` file, each run alone in TensorFlow Lite Micro, so that all that fail are named at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.converters.tflite_micro.attempts import attempt, reason
from edgekit.converters.tflite_micro.interpreter import MicroInterpreter
from edgekit.schema import Record

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OpFailure", "failing_ops"]

_TAKES_SUBGRAPHS = ("IF", "WHILE", "CALL_ONCE", "STABLEHLO_COMPOSITE")
"""Not tried alone: what they call would have to come along."""


class OpFailure(Record):
    """An op that TFLM does not run, tried alone with the types and constants it has in the file."""

    op: str
    version: int
    types: tuple[str, ...]
    """Of its inputs, then `->`, then of its outputs."""
    where: str
    """Name of its output tensor."""
    said: str
    """What TFLM wrote to stderr."""


def failing_ops(content: bytes) -> tuple[OpFailure, ...]:
    """Every kind of op of the file that fails alone, once for each version and combination of types."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    tried: dict[tuple[Any, ...], OpFailure | None] = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            facts = _facts(model, graph, operator, schema)
            key = (facts.op, facts.version, facts.types)
            if tried.get(key) is None:  # the same kind may fail in one place only
                tried[key] = _tried(model, graph, operator, facts, schema)
    return tuple(failure for failure in tried.values() if failure is not None)


def _facts(model: Any, graph: Any, operator: Any, schema: Any) -> OpFailure:
    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    builtin = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}

    def names(indices: Any) -> list[str]:
        return [types[graph.tensors[i].type].lower() for i in indices if i >= 0]

    custom = code.customCode.decode() if isinstance(code.customCode, bytes) else code.customCode
    first = graph.tensors[operator.outputs[0]].name if len(operator.outputs) else b""
    return OpFailure(
        op=custom if number == schema.BuiltinOperator.CUSTOM else builtin.get(number, str(number)),
        version=code.version,
        types=(*names(operator.inputs), "->", *names(operator.outputs)),
        where=first.decode(errors="replace") if isinstance(first, bytes) else str(first),
        said="",
    )


def _tried(model: Any, graph: Any, operator: Any, facts: OpFailure, schema: Any) -> OpFailure | None:
    """The failure of this op, or None where it ran (or cannot be tried alone)."""
    if facts.op in _TAKES_SUBGRAPHS:
        return None
    ended = attempt(_alone(model, graph, operator, schema), _feed_ones)
    return None if ended.stage is None else facts.model_copy(update={"said": reason(ended.said)})


def _feed_ones(interpreter: MicroInterpreter) -> None:
    """Ones: no division by zero, and a valid index nearly everywhere."""
    import numpy as np

    interpreter.run([np.ones(detail["shape"], detail["dtype"]) for detail in interpreter.inputs])


def _alone(model: Any, graph: Any, operator: Any, schema: Any) -> bytes:
    """A file of this one op, its constants within."""
    import copy

    import flatbuffers

    used = [i for i in dict.fromkeys((*operator.inputs, *operator.outputs)) if i >= 0]
    place = {old: new for new, old in enumerate(used)}
    single = schema.ModelT()
    single.version = 3
    single.operatorCodes = [model.operatorCodes[operator.opcodeIndex]]
    single.buffers = [schema.BufferT(), *(model.buffers[graph.tensors[i].buffer] for i in used)]
    alone = schema.SubGraphT()
    alone.tensors = [copy.copy(graph.tensors[i]) for i in used]
    for new, tensor in enumerate(alone.tensors):
        tensor.buffer = new + 1
    alone.operators = [copy.copy(operator)]
    alone.operators[0].opcodeIndex = 0
    alone.operators[0].inputs = [place.get(i, -1) for i in operator.inputs]
    alone.operators[0].outputs = [place[i] for i in operator.outputs]
    alone.inputs = [place[i] for i in dict.fromkeys(operator.inputs) if i >= 0 and not _is_kept(model, graph, i)]
    alone.outputs = [place[i] for i in operator.outputs]
    single.subgraphs = [alone]
    builder = flatbuffers.Builder(1024)
    builder.Finish(single.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _is_kept(model: Any, graph: Any, index: int) -> bool:
    """Whether the tensor is no activation: a constant, or state."""
    tensor = graph.tensors[index]
    data: np.ndarray | None = model.buffers[tensor.buffer].data
    return bool(tensor.isVariable) or (data is not None and len(data) > 0)
