"""Tapped `.onnx` files: values added to the outputs of the graph; of a value that is quantized, what it becomes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.artifact import QuantizationParams
from edgekit.diagnosis.taps.values import TapOutput, TappedFile
from edgekit.errors import MissingDependencyError

__all__ = ["input_names", "open_all", "open_chosen"]

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def input_names(path: Path) -> tuple[str, ...]:
    """The names of the graph's inputs."""
    _, model = _read(path)
    return tuple(value.name for value in model.graph.input)


def open_all(path: Path) -> TappedFile:
    """The file with every value its nodes compute added to its outputs, as far as its type is known and a tensor's."""
    onnx, model = _read(path)
    infos = _infos(onnx, model)
    names = [name for node in model.graph.node for name in node.output if name in infos]
    return _tapped(onnx, model, {name: name for name in names}, infos)


def open_chosen(path: Path, names: Sequence[str]) -> TappedFile:
    """The file with the values of these names, dequantized where it quantizes them."""
    onnx, model = _read(path)
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    known = {name for node in model.graph.node for name in node.output}
    known |= {value.name for value in model.graph.input}
    chosen = {}
    for name in names:
        if name in known and (carried := _dequantized_form(name, readers)) is not None:
            chosen[name] = carried
    return _tapped(onnx, model, chosen, _infos(onnx, model))


def _read(path: Path) -> tuple[Any, Any]:
    try:
        import onnx
    except ImportError as e:
        raise MissingDependencyError("looking into .onnx files", extra="onnx", package="onnx") from e
    return onnx, onnx.load_model_from_string(path.read_bytes())


def _infos(onnx: Any, model: Any) -> dict[str, Any]:
    """Type and shape of each value that is a tensor, as far as they can be inferred."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*model.graph.value_info, *inferred.value_info, *model.graph.input, *model.graph.output)
    return {value.name: value for value in values if value.type.tensor_type.elem_type}


def _dequantized_form(name: str, readers: dict[str, list[Any]]) -> str | None:
    """The output of the DequantizeLinear behind a value that is only quantized; else the value itself."""
    following = readers[name]
    if not following or any(node.op_type != _QUANTIZE for node in following):
        return name
    behind = [node for node in readers[following[0].output[0]] if node.op_type == _DEQUANTIZE]
    return str(behind[0].output[0]) if behind else None


def _tapped(onnx: Any, model: Any, chosen: dict[str, str], infos: dict[str, Any]) -> TappedFile:
    own = [value.name for value in model.graph.output]
    given = {value.name for value in model.graph.input}
    added = [name for name in dict.fromkeys(chosen.values()) if name not in own and name not in given]
    for name in added:
        unknown = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        model.graph.output.append(infos.get(name, unknown))
    outputs = own + added
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    writers = {name: node for node in model.graph.node for name in node.output}
    taps = []
    for name, carried in chosen.items():
        if carried in outputs:
            number = infos[carried].type.tensor_type.elem_type if carried in infos else onnx.TensorProto.FLOAT
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(number))
            dtype, quantization = _storage(onnx, writers.get(carried), constants, dtype)
            position = outputs.index(carried)
            taps.append(TapOutput(position=position, name=name, dtype=dtype, quantization=quantization))
    return TappedFile(content=model.SerializeToString(), taps=tuple(taps), own_outputs=len(own))


def _storage(onnx: Any, writer: Any, constants: dict[str, Any], dtype: str) -> tuple[str, QuantizationParams | None]:
    """The integer type and parameters of what a DequantizeLinear reads; a float's own type and None otherwise."""
    if writer is None or writer.op_type != _DEQUANTIZE or writer.input[1] not in constants:
        return dtype, None
    scale = onnx.numpy_helper.to_array(constants[writer.input[1]]).reshape(-1)
    if len(writer.input) < 3 or writer.input[2] not in constants or scale.size != 1:
        return dtype, None
    point = onnx.numpy_helper.to_array(constants[writer.input[2]]).reshape(-1)
    params = QuantizationParams(scale=(float(scale[0]),), zero_point=(int(point[0]),))
    return point.dtype.name, params
