"""The inputs and outputs of a `.tflite` file in the order of the model's arguments and results."""

from __future__ import annotations

from edgekit.converters.onnx_tf.names import BACKEND, input_name, output_name
from edgekit.errors import ConversionError

__all__ = ["in_order"]


def in_order(content: bytes, inputs: int) -> bytes:
    """The file with its lists of inputs and outputs put in order; TensorFlow sorts them otherwise.

    The lists are changed where they lie, so nothing else moves. The file's signature tells which tensor is which.
    Raises ConversionError when one of the model's inputs is not in the file, since it is used for nothing.
    """
    from ai_edge_litert import schema_py_generated as schema

    data = bytearray(content)
    model = schema.Model.GetRootAsModel(data, 0)
    graph, signature = model.Subgraphs(0), model.SignatureDefs(0)
    given = {_name(entry): entry.TensorIndex() for entry in map(signature.Inputs, range(signature.InputsLength()))}
    made = {_name(entry): entry.TensorIndex() for entry in map(signature.Outputs, range(signature.OutputsLength()))}
    missing = [input_name(index) for index in range(inputs) if input_name(index) not in given]
    if missing or graph.InputsLength() != inputs:
        raise ConversionError(
            f"TensorFlow left out inputs that the result does not depend on: {', '.join(missing)}",
            backend=BACKEND,
            stage="TensorFlow to TFLite",
            hint="remove them from forward, or convert to tflite",
        )
    graph.InputsAsNumpy()[:] = [given[input_name(index)] for index in range(inputs)]
    graph.OutputsAsNumpy()[:] = [made[output_name(index)] for index in range(graph.OutputsLength())]
    return bytes(data)


def _name(entry: object) -> str:
    return str(entry.Name().decode())  # type: ignore[attr-defined]
