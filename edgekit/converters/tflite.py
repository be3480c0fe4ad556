"""TFLite: litert-torch writes the float file, ai-edge-quantizer the integer ones from it.

Calibration keeps the exact minimum and maximum of every activation. The quantizer's own default, a moving
average over samples, cost 16 to 21 dB of SQNR on ResNet-18 and MobileNetV2 (measured), because the average
clips what the largest samples reach.

The same program gives the same bytes: nothing in the toolchain draws random numbers or writes a date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.artifact import Artifact, Format, Scheme
from edgekit.converters.assembly import assemble
from edgekit.converters.base import Capability, ConversionRequest
from edgekit.converters.capabilities import capabilities_of
from edgekit.converters.lowerings import find_problems
from edgekit.errors import ConversionError, MissingDependencyError, Problem

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

__all__ = ["TFLiteConverter"]

_TOOLS = ("litert-torch", "ai-edge-quantizer", "ai-edge-litert")


class TFLiteConverter:
    """Writes `.tflite`. One instance serves one program: the float file is made once and shared by its schemes."""

    format = Format.TFLITE

    def __init__(self) -> None:
        self._float_model: bytes | None = None

    def capabilities(self) -> tuple[Capability, ...]:
        """Every scheme; needs no toolchain installed."""
        return capabilities_of("tflite")

    def check(self, request: ConversionRequest) -> tuple[Problem, ...]:
        """Every op of the program that litert-torch has no lowering for."""
        return find_problems(request.program, "tflite")

    def convert(self, request: ConversionRequest) -> Artifact:
        """Write `model.tflite` and its passport. Raises ConversionError."""
        content = self._float_content(request.program)
        if request.scheme is not Scheme.FP32:
            content = _quantized(content, request)
        path = request.output_dir / f"model{Format.TFLITE.suffix}"
        path.write_bytes(content)
        return assemble(request, path, Format.TFLITE, tools=_TOOLS)

    def _float_content(self, program: ExportedProgram) -> bytes:
        if self._float_model is None:
            self._float_model = _lowered(program)
        return self._float_model


def _lowered(program: ExportedProgram) -> bytes:
    try:
        import litert_torch
    except ImportError as e:
        raise MissingDependencyError("converting to TFLite", extra="tflite", package="litert-torch") from e
    if program.example_inputs is None:
        raise ConversionError("the program carries no example inputs", backend="tflite", stage="lower")
    args, _ = program.example_inputs
    try:
        model = litert_torch.convert(program.module(), args)
        return bytes(model.model_content())
    except Exception as e:  # litert-torch raises RuntimeError, ValueError, MLIR's own errors, …
        raise ConversionError(
            f"{type(e).__name__}: {str(e)[:1000]}", backend="tflite", stage="lower", hint="ONNX may take this model"
        ) from e


def _recipe(scheme: Scheme, io_dtype: str) -> Any:
    """The ai-edge-quantizer recipe of a scheme."""
    from ai_edge_quantizer import qtyping, recipe, recipe_manager

    if scheme is Scheme.DYNAMIC_W8:
        return recipe.dynamic_wi8_afp32()
    if scheme is Scheme.WEIGHT_W8:
        return recipe.weight_only_wi8_afp32()
    manager = recipe_manager.RecipeManager()
    bits = 16 if scheme is Scheme.STATIC_W8A16 else 8
    everything = qtyping.TFLOperationName.ALL_SUPPORTED
    manager.add_static_config(regex=".*", operation_name=everything, activation_num_bits=bits, weight_num_bits=8)
    if io_dtype == "float32":
        for boundary in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            manager.add_quantization_config(".*", boundary, algorithm_key="no_quantize")
    return manager.get_quantization_recipe()


def _quantized(content: bytes, request: ConversionRequest) -> bytes:
    """The integer file made from the float one."""
    try:
        from ai_edge_quantizer import quantizer
    except ImportError as e:
        raise MissingDependencyError("quantizing TFLite files", extra="tflite", package="ai-edge-quantizer") from e
    try:
        worker = quantizer.Quantizer(content)
        worker.load_quantization_recipe(_recipe(request.scheme, request.quantization.io_dtype))
        ranges = _exact_ranges(content, request, worker) if worker.need_calibration else None
        result = worker.quantize(ranges)
    except Exception as e:  # the quantizer raises ValueError, RuntimeError, KeyError, … by case
        raise ConversionError(
            f"{type(e).__name__}: {str(e)[:1000]}", backend="tflite", stage=f"quantize {request.scheme}"
        ) from e
    return bytes(result.quantized_model)


def _exact_ranges(content: bytes, request: ConversionRequest, worker: Any) -> dict[str, Any]:
    """Minimum and maximum of every tensor over all calibration samples, single-threaded by default."""
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    observer = calibrator.Calibrator(content, num_threads=request.threads, qsv_update_func=qsv_utils.min_max_update)
    signature = next(iter(observer.get_signature_list()))
    samples = [_named(sample) for sample in request.calibration]
    observer.calibrate({signature: samples}, worker._recipe_manager)
    return dict(observer.get_model_qsvs())


def _named(sample: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """A sample by litert-torch's argument names; its 64-bit integers are 32-bit in the file."""
    import numpy as np

    narrow = {"int64": np.int32, "float64": np.float32}
    return {
        f"args_{index}": array.astype(narrow.get(array.dtype.name, array.dtype)) for index, array in enumerate(sample)
    }
