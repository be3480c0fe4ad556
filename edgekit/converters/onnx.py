"""ONNX: torch.onnx (dynamo) writes the float file, onnxruntime quantizes it to QDQ.

Weights are int8 with one scale per channel, activations uint8: the pair onnxruntime's x86 (VNNI) and ARM kernels are
fastest with. A spatial ReduceMean is written as the GlobalAveragePool it is, since only that has an integer kernel.

The same program gives the same bytes. Everything is in one file: a model near protobuf's 2 GB limit is refused.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Artifact, Format, Scheme
from edgekit.converters.assembly import assemble
from edgekit.converters.base import Capability, ConversionRequest
from edgekit.converters.capabilities import capabilities_of
from edgekit.converters.lowerings import find_problems
from edgekit.errors import ConversionError, MissingDependencyError, Problem, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

__all__ = ["OnnxConverter"]

_TOOLS = ("onnx", "onnxscript", "onnxruntime")
MAX_WEIGHT_BYTES = 1_500_000_000
"""protobuf ends at 2 GB; above this a file would need external data, which runners would have to push too."""


class OnnxConverter:
    """Writes `.onnx`. One instance serves one program: the float file is made once and shared by its schemes."""

    format = Format.ONNX

    def __init__(self) -> None:
        self._float_model: Any = None

    def capabilities(self) -> tuple[Capability, ...]:
        """Every scheme; needs no toolchain installed."""
        return capabilities_of("onnx")

    def check(self, request: ConversionRequest) -> tuple[Problem, ...]:
        """Every op of the program that onnxscript's torch library has no translation for, and too large a model."""
        size = sum(value.numel() * value.element_size() for value in request.program.state_dict.values())
        problems = find_problems(request.program, "onnx")
        if size > MAX_WEIGHT_BYTES:
            message = f"its weights are {size} bytes; more than {MAX_WEIGHT_BYTES} do not fit into one .onnx file"
            problems += (Problem(backend="onnx", message=message, hint="make it smaller first, or use executorch"),)
        return problems

    def convert(self, request: ConversionRequest) -> Artifact:
        """Write `model.onnx` and its passport. Raises ConversionError."""
        import onnx

        if self._float_model is None:
            self._float_model = _translated(request.program)
        path = request.output_dir / f"model{Format.ONNX.suffix}"
        if request.scheme is Scheme.FP32:
            onnx.save_model(self._float_model, path)
        else:
            _quantize(self._float_model, path, request)
        return assemble(request, path, Format.ONNX, tools=_TOOLS)


def _translated(program: ExportedProgram) -> Any:
    """The float ModelProto: optimised, checked, all data inside."""
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx asks for it
        import torch
    except ImportError as e:
        raise MissingDependencyError("converting to ONNX", extra="onnx", package="onnx") from e
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        exported = torch.onnx.export(program, dynamo=True, optimize=True, verbose=False, external_data=False)
        if exported is None:
            raise UnsupportedError(())
        model = exported.model_proto
        _drop_traces(model)
        _pool_spatial_means(model, onnx)
        onnx.checker.check_model(model)
    except Exception as e:  # torch.onnx raises OnnxExporterError and what its passes meet
        raise ConversionError(f"{type(e).__name__}: {str(e)[:1000]}", backend="onnx", stage="translate") from e
    return model


def _drop_traces(model: Any) -> None:
    """Remove the Python stack traces torch writes into each node: they hold the user's paths and double the file."""
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


def _pool_spatial_means(model: Any, onnx: Any) -> None:
    """Write ReduceMean over the spatial axes of [N, C, H, W] as GlobalAveragePool (and a Reshape where the axes go).

    The two are the same sum. onnxruntime quantizes GlobalAveragePool and not ReduceMean.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*model.graph.value_info, *model.graph.input)}
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = {int(a) % 4 for a in onnx.numpy_helper.to_array(constants[node.input[1]]).reshape(-1)}
        keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if ranks.get(node.input[0]) == 4 and axes == {2, 3} and keeps:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
            del node.input[1:]
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


class _Samples:
    """Calibration samples as onnxruntime's CalibrationDataReader wants them."""

    def __init__(self, names: list[str], samples: tuple[tuple[np.ndarray, ...], ...]) -> None:
        self._feeds = iter([dict(zip(names, sample, strict=True)) for sample in samples])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _quantize(model: Any, path: Path, request: ConversionRequest) -> None:
    """Write the QDQ form of the float model to `path`."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    names = [value.name for value in model.graph.input]
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
        quantize_static(
            inferred,
            str(path),
            _Samples(names, request.calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_providers=["CPUExecutionProvider"],
        )
    except Exception as e:  # onnxruntime raises ValueError, RuntimeError, Fail, … by step
        raise ConversionError(
            f"{type(e).__name__}: {str(e)[:1000]}", backend="onnx", stage=f"quantize {request.scheme}"
        ) from e
