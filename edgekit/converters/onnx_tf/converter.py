"""onnx-tf: a second opinion on TFLite, and the one way to a SavedModel that TensorFlow Serving takes.

onnx-tf keeps NCHW and puts a transpose around every convolution; the passport counts them. Activation ranges are the
minimum and maximum TensorFlow Lite's own calibrator saw, weights have one scale per channel of a convolution.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.artifact import Artifact, CalibrationFacts, ExtraFile, Format, RangeRule, Scheme
from edgekit.converters.assembly import assemble
from edgekit.converters.base import Capability, ConversionRequest
from edgekit.converters.calibration import input_specs
from edgekit.converters.capabilities import capabilities_of
from edgekit.converters.onnx_tf.environment import REQUIREMENTS, environment_problem
from edgekit.converters.onnx_tf.names import BACKEND
from edgekit.converters.onnx_tf.translation import translated
from edgekit.errors import Problem, UnsupportedError
from edgekit.schema import sha256_of

__all__ = ["OnnxTfConverter"]

_TOOLS = ("onnx", "onnxruntime", "ai-edge-litert")
_THERE = ("tensorflow-cpu", "onnx-tf", "tensorflow-addons")


class OnnxTfConverter:
    """Writes `model.tflite` and `saved_model/1/`. One instance serves one program: it is exported once."""

    format = Format.TFLITE

    def __init__(self) -> None:
        self._model: Any = None

    def capabilities(self) -> tuple[Capability, ...]:
        """Every scheme; needs no toolchain installed."""
        return capabilities_of(BACKEND)

    def check(self, request: ConversionRequest) -> tuple[Problem, ...]:
        """What this host lacks, what was asked for and cannot be, and an op ONNX opset 13 has no form of."""
        problems = [problem for problem in (environment_problem(),) if problem is not None]
        problems += _unfit(request)
        if not problems:
            try:
                self._exported(request)
            except UnsupportedError as e:
                problems += e.problems
        return tuple(problems)

    def convert(self, request: ConversionRequest) -> Artifact:
        """Write the files and their passport. Raises UnsupportedError, ConversionError."""
        problems = _unfit(request)
        if problems:
            raise UnsupportedError(problems)
        found = translated(self._exported(request), request)
        calibration = None
        if request.scheme.is_static:
            calibration = CalibrationFacts(samples=len(request.calibration), rule=RangeRule.MINMAX.value)
        made = assemble(request, found.path, Format.TFLITE, tools=_TOOLS, notes=found.notes, calibration=calibration)
        passport = made.passport.model_copy(
            update={
                "tool_versions": made.passport.tool_versions | _pinned(),
                "extra_files": _files_of(request.output_dir),
            }
        )
        artifact = Artifact(path=made.path, passport=passport)
        artifact.save_passport()
        return artifact

    def _exported(self, request: ConversionRequest) -> Any:
        from edgekit.converters.onnx_tf.export import exported_model  # numpy: not for a list of capabilities

        if self._model is None:
            self._model = exported_model(request.program)
        return self._model


def _unfit(request: ConversionRequest) -> list[Problem]:
    """Every option of the request this backend does not follow: none is ignored."""
    options, told = request.quantization, []
    if any(spec.bounds for spec in input_specs(request.program)):
        told.append(("an input has a free axis", "convert with fixed shapes; the SavedModel takes any batch"))
    if request.signatures:
        told.append(("the model has several entry points", "convert each input size on its own, or to tflite"))
    if request.is_trained:
        told.append(("ranges from quantization-aware training have no way through ONNX opset 13", "convert to tflite"))
    if request.scheme.is_static and options.ranges not in (RangeRule.AUTO, RangeRule.MINMAX):
        told.append((f"TensorFlow 2.15 calibrates by minimum and maximum, not {options.ranges}", "use ranges=minmax"))
    if options.bias_correction and request.scheme is not Scheme.FP32:
        told.append(("it has no bias correction", "leave it out, or convert to tflite"))
    if options.rules:
        told.append(("it has no exceptions for some ops", "leave the rules out, or convert to tflite"))
    return [Problem(backend=BACKEND, message=message, hint=hint) for message, hint in told]


def _pinned() -> dict[str, str]:
    """Versions of what made it, from the pins of its environment."""
    pins = dict(line.split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line)
    return {name: pins[name] for name in _THERE}


def _files_of(folder: Path) -> tuple[ExtraFile, ...]:
    """Every file of the SavedModel."""
    files = sorted(path for path in (folder / "saved_model").rglob("*") if path.is_file())
    return tuple(
        ExtraFile(path=path.relative_to(folder).as_posix(), sha256=sha256_of(path), size_bytes=path.stat().st_size)
        for path in files
    )
