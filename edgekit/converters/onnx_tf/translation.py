"""An ONNX model given to onnx-tf's environment, and what came back."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.converters.base import ConversionRequest
from edgekit.converters.calibration import input_specs
from edgekit.converters.fidelity import Samples, compare, probe_inputs, reference_outputs
from edgekit.converters.onnx_tf.border import in_order
from edgekit.converters.onnx_tf.environment import ready_python
from edgekit.converters.onnx_tf.names import BACKEND, OPSET, input_name
from edgekit.converters.toolchain_process import run_program
from edgekit.converters.wire import load_samples, save_samples
from edgekit.errors import ConversionError, Problem, UnsupportedError
from edgekit.isolation import child_environment, stderr_tail
from edgekit.schema import parse_json, write_atomically

__all__ = ["Translation", "translated"]

PROGRAM = Path(__file__).with_name("program.py")
FLOOR_DB = 60.0
"""Of the SavedModel, which is float."""
MAX_CHECKED = 16
MAX_SAID = 700
_FLEX = re.compile(r"tf\.(\w+)\(|(?:error: )'(tfl?\.\w+)' op")


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """The TFLite file in the output folder, `saved_model/1/` beside it, and how it was made."""

    path: Path
    notes: tuple[str, ...]


def translated(model: Any, request: ConversionRequest) -> Translation:
    """Run onnx-tf and TensorFlow on `model`. Raises UnsupportedError naming ops, ConversionError."""
    with tempfile.TemporaryDirectory(prefix="edgekit-onnx-tf-") as name:
        folder = Path(name)
        samples = (request.verification or request.calibration or probe_inputs(request.program))[:MAX_CHECKED]
        _write_request(folder, model, request, samples)
        python = ready_python(request.note)
        request.note("onnx-tf")
        environment = child_environment(threads=request.threads)
        environment.pop("PYTHONPATH", None)
        environment.update(TF_ENABLE_ONEDNN_OPTS="0", CUDA_VISIBLE_DEVICES="")
        run_program(
            [str(python), "-P", str(PROGRAM), str(folder)],
            folder,
            environment=environment,
            backend=BACKEND,
            stage="TensorFlow",
        )
        batched = _judged(parse_json((folder / "answer.json").read_bytes()), folder)
        worst = _saved_model_sqnr(request, samples, load_samples(folder / "outputs.npz"), model)
        shutil.move(folder / "saved_model", request.output_dir / "saved_model")
        path = request.output_dir / "model.tflite"
        path.write_bytes(in_order((folder / "model.tflite").read_bytes(), len(input_specs(request.program))))
    serves = "takes any batch" if batched else "has the fixed shapes of the model, whose first axes are no batch of 1"
    notes = [f"SavedModel in TensorFlow 2.15.1 against PyTorch: {worst:.1f} dB SQNR; serving_default {serves}"]
    if model.doc_string:
        notes.append(model.doc_string)
    if request.scheme.is_static and any(spec.dtype != "float32" for spec in input_specs(request.program)):
        notes.append("its float inputs stay float32: TensorFlow Lite 2.15 gives all inputs one type")
    if request.scheme.is_static:
        notes.append("activation ranges: minimum and maximum over the calibration samples, by TensorFlow Lite 2.15")
    return Translation(path=path, notes=tuple(notes))


def _write_request(folder: Path, model: Any, request: ConversionRequest, samples: Samples) -> None:
    import onnx

    onnx.save_model(model, folder / "model.onnx")
    specs = input_specs(request.program)
    given = {
        "inputs": [input_name(index) for index in range(len(specs))],
        "outputs": [value.name for value in model.graph.output],
        "shapes": [list(spec.shape) for spec in specs],
        "dtypes": [spec.dtype for spec in specs],
        "scheme": request.scheme.value,
        "io_dtype": request.quantization.io_dtype,
        "threads": request.threads,
    }
    write_atomically(folder / "request.json", json.dumps(given))
    save_samples(folder / "sample.npz", tuple(tuple(sample) for sample in samples))
    if request.scheme.is_static:
        save_samples(folder / "calibration.npz", request.calibration)


def _judged(answer: dict[str, Any], folder: Path) -> bool:
    """Whether the SavedModel takes any batch; raises what the answer says."""
    if answer.get("unsupported"):
        raise UnsupportedError(
            [
                Problem(
                    backend=BACKEND,
                    message=f"onnx-tf 1.10 has no form of ONNX {op} version {version} (opset {OPSET})",
                    op=op,
                    available_in=("onnx",),
                    hint="convert to tflite or onnx, or write this part of the model with other operations",
                )
                for op, version in answer["unsupported"]
            ]
        )
    if "error" in answer:
        said = str(answer["error"])
        found = _FLEX.search(said)
        op = next((group for group in found.groups() if group), None) if found else None
        raise ConversionError(
            f"TFLite has no kernel for {op}" if op and "FLEX" in said else " ".join(said.split())[-MAX_SAID:],
            backend=BACKEND,
            stage=str(answer["stage"]),
            op=op,
            stderr=stderr_tail(folder),
            hint="convert to tflite, which takes another way",
        )
    return bool(answer["batched"])


def _saved_model_sqnr(request: ConversionRequest, samples: Samples, found: Samples, model: Any) -> float:
    """The lowest SQNR of its outputs, dB. Raises ConversionError when it is not the model."""
    names = [value.name for value in model.graph.output]
    outputs = [list(sample) for sample in found]
    expected = reference_outputs(request.program, samples)
    fidelity = compare(expected, outputs, names=names, source="", runtime="TensorFlow 2.15.1")
    worst = min((output.sqnr_db for output in fidelity.outputs if output.sqnr_db is not None), default=200.0)
    if worst < FLOOR_DB or any(output.non_finite for output in fidelity.outputs):
        raise ConversionError(
            f"the SavedModel has {worst:.1f} dB SQNR against PyTorch, below {FLOOR_DB:g}",
            backend=BACKEND,
            stage="check the SavedModel",
            hint="convert to tflite or onnx, which take another way",
        )
    return worst
