"""A graph from quantization-aware training, as the file's values and nodes know it.

The quantize and dequantize ops are taken out of the program, and the float program is translated as any other. Each
op's range goes to the value of the file it stood at, and weights keep the scales they were trained with, so that the
integers in the file are those of training, whichever PT2E quantizer trained them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Scheme
from edgekit.errors import MissingDependencyError, Problem, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    from edgekit.converters.base import ConversionRequest
    from edgekit.converters.onnx_program import FloatModel
    from edgekit.converters.ranges import Range

__all__ = ["FileTraining", "TrainedProgram", "as_file", "qat_quantizer", "without_training"]


@dataclass(slots=True, kw_only=True)
class TrainedProgram:
    """A float program and what was learned with it, by node name."""

    program: ExportedProgram
    ranges: dict[str, Range]
    scales: dict[str, np.ndarray]


@dataclass(slots=True, kw_only=True)
class FileTraining:
    """What was learned, by names of the file."""

    ranges: dict[str, Range] = field(default_factory=dict)
    """By value."""
    scales: dict[str, np.ndarray] = field(default_factory=dict)
    """Of the weights of a node."""


def qat_quantizer() -> Any:
    """The PT2E quantizer to train with for ONNX: 8-bit activations, one int8 weight scale a channel."""
    try:
        from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
    except ImportError as e:
        raise MissingDependencyError("training for ONNX", extra="onnx", package="torchao") from e
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_qat=True))


def without_training(request: ConversionRequest) -> TrainedProgram:
    """The float program of a trained one. Raises UnsupportedError for a program without trained ranges."""
    from edgekit.converters.trained_graph import without_quantization

    if request.scheme is not Scheme.STATIC_W8A8:
        raise _refused(f"a graph trained with 8-bit ranges becomes a static_w8a8 file, not {request.scheme}")
    try:
        found = without_quantization(request.program)
    except UnsupportedError as e:
        raise _refused("; ".join(problem.message for problem in e.problems)) from e
    if not found.ranges or not found.scales:
        raise _refused("the graph holds no quantize and dequantize ops with 8-bit ranges")
    originals = {node.name: node for node in request.program.graph.nodes}
    for node in found.program.graph.nodes:
        if node.name in originals and "nn_module_stack" in originals[node.name].meta:
            node.meta["nn_module_stack"] = originals[node.name].meta["nn_module_stack"]
    return TrainedProgram(program=found.program, ranges=dict(found.ranges), scales=dict(found.scales))


def _refused(message: str) -> UnsupportedError:
    hint = "give what torchao's convert_pt2e returned, or convert the float model"
    return UnsupportedError((Problem(backend="onnx", message=message, hint=hint),))


def as_file(trained: TrainedProgram, source: FloatModel) -> FileTraining:
    """What was learned, told of the values and nodes of the translated program."""
    found = FileTraining()
    last: dict[str, str] = {}
    for node in source.model.graph.node:
        origin = source.origins.get(node.name)
        for name in origin.nodes if origin is not None else ():
            if node.output:
                last[name] = node.output[0]
            if name in trained.scales and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
                found.scales[node.name] = trained.scales[name]
    for name, value in last.items():
        if name in trained.ranges:
            found.ranges[value] = trained.ranges[name]
    given = [name for name in trained.program.graph_signature.user_inputs if isinstance(name, str)]
    for name, value in zip(given, source.model.graph.input, strict=False):
        if name in trained.ranges:
            found.ranges[value.name] = trained.ranges[name]
    return found
