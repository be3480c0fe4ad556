"""An artifact in its real runtime on this host, as a function from float arrays to float arrays.

Used inside the converting child to check what was just written. Integer inputs and outputs are quantized and
dequantized here with the scale and zero point in the file, as an application would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Format
from edgekit.errors import ConversionError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    from edgekit.converters.tflite_micro.interpreter import MicroInterpreter

__all__ = ["executorch_run", "load_runtime", "micro_run", "runtime_name", "tflite_entry", "tflite_run"]

Run = Callable[[Sequence["np.ndarray"]], "list[np.ndarray]"]

_PACKAGES = {Format.TFLITE: "ai-edge-litert", Format.EXECUTORCH: "executorch", Format.ONNX: "onnxruntime"}


def runtime_name(kind: Format) -> str:
    """Runtime and version, `ai-edge-litert 2.3.0` style."""
    from importlib.metadata import version

    return f"{_PACKAGES[kind]} {version(_PACKAGES[kind])}"


def load_runtime(path: Path, kind: Format, *, threads: int = 1) -> Run:
    """The model file loaded in its runtime; call it with one sample."""
    loaders = {Format.TFLITE: _load_tflite, Format.EXECUTORCH: _load_executorch, Format.ONNX: _load_onnx}
    if kind not in loaders:
        raise UnsupportedError((), hint=f"no host runtime for {kind}")
    return loaders[kind](path, threads)


def _load_tflite(path: Path, threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    try:
        return tflite_run(Interpreter(model_path=str(path), num_threads=threads))
    except (RuntimeError, ValueError) as e:
        raise ConversionError(
            f"the runtime does not take the file just written: {str(e).strip()[:600]}",
            backend="tflite",
            stage="load",
            hint="write this part of the model with other operations, or convert to ONNX",
        ) from e


def tflite_run(interpreter: Any) -> Run:
    """An interpreter as a function from float arrays to float arrays, in the order of the file's lists."""
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()

    def run(sample: Sequence[np.ndarray]) -> list[np.ndarray]:
        for array, detail in zip(sample, inputs, strict=True):
            interpreter.set_tensor(detail["index"], _quantized(array, detail))
        interpreter.invoke()
        return [_dequantized(interpreter.get_tensor(detail["index"]), detail) for detail in outputs]

    return run


def tflite_entry(path: Path, name: str, threads: int) -> Run:
    """One entry point of a `.tflite` file that has several; inputs `args_0`, … and outputs `output_0`, … by number."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path), num_threads=threads).get_signature_runner(name)
    given, made = runner.get_input_details(), runner.get_output_details()

    def run(sample: Sequence[np.ndarray]) -> list[np.ndarray]:
        named = {f"args_{i}": _quantized(array, given[f"args_{i}"]) for i, array in enumerate(sample)}
        answers = runner(**named)
        return [_dequantized(answers[f"output_{i}"], made[f"output_{i}"]) for i in range(len(answers))]

    return run


def micro_run(interpreter: MicroInterpreter) -> Run:
    """A model in TensorFlow Lite Micro, with floats in and out as of every runtime."""

    def run(sample: Sequence[np.ndarray]) -> list[np.ndarray]:
        given = [_quantized(array, detail) for array, detail in zip(sample, interpreter.inputs, strict=True)]
        return [
            _dequantized(array, detail)
            for array, detail in zip(interpreter.run(given), interpreter.outputs, strict=True)
        ]

    return run


def _quantized(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    import numpy as np

    scale, zero_point = detail["quantization"]
    if scale and np.issubdtype(array.dtype, np.floating) and np.issubdtype(detail["dtype"], np.integer):
        limits = np.iinfo(detail["dtype"])
        integers: np.ndarray = np.clip(np.rint(array / scale) + zero_point, limits.min, limits.max)
        return integers.astype(detail["dtype"])
    return array.astype(detail["dtype"])


def _dequantized(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    import numpy as np

    scale, zero_point = detail["quantization"]
    if scale and np.issubdtype(array.dtype, np.integer):
        real: np.ndarray = (array.astype(np.float32) - zero_point) * np.float32(scale)
        return real
    return array


def _load_executorch(path: Path, threads: int) -> Run:
    return executorch_run(path, threads)


def executorch_run(path: Path, threads: int, method: str = "forward") -> Run:
    """One entry point of a `.pte`; its outputs that are no tensors are left out, as of the PyTorch program."""
    import torch
    from executorch.runtime import Runtime, Verification

    torch.set_num_threads(threads)
    # by path: given bytes, the runtime reads them without keeping them alive
    program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
    loaded = program, program.load_method(method)

    def run(sample: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs = loaded[1].execute([torch.from_numpy(array.copy()) for array in sample])
        return [value.numpy().copy() for value in outputs if isinstance(value, torch.Tensor)]

    return run


def _load_onnx(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(sample: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = session.run(None, dict(zip(names, sample, strict=True)))
        return outputs

    return run
