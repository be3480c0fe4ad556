"""The tensor arena a file needs, and which of its ops TensorFlow Lite Micro does not run: asked of a child process."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.converters.tflite_micro.interpreter import BACKEND
from edgekit.converters.tflite_micro.kernels import KERNELS, advice
from edgekit.converters.tflite_micro.ops import OpFailure
from edgekit.converters.tflite_micro.trial import TrialAnswer, TrialRequest
from edgekit.converters.toolchain_process import run_program
from edgekit.converters.wire import save_samples
from edgekit.errors import ConversionError, Problem, UnsupportedError
from edgekit.isolation import child_environment
from edgekit.schema import read_record, write_atomically

if TYPE_CHECKING:
    import numpy as np

__all__ = ["measured_arena"]


def measured_arena(path: Path, sample: Sequence[np.ndarray]) -> int:
    """The smallest arena in which the file ran, bytes.

    Raises UnsupportedError that names every op TFLM does not run, or ConversionError with what it said.
    """
    answer = _tried(path, sample)
    if answer.stage is None:
        return answer.arena_bytes
    if answer.failures:
        raise UnsupportedError([_problem(failure) for failure in answer.failures])
    raise ConversionError(
        f"TensorFlow Lite Micro stopped: {answer.said or 'it wrote no reason'}",
        backend=BACKEND,
        stage=answer.stage,
        hint="each op runs alone, so it is what they are together; convert to tflite, or divide the model",
    )


def _tried(path: Path, sample: Sequence[np.ndarray]) -> TrialAnswer:
    with tempfile.TemporaryDirectory(prefix="edgekit-micro-") as name:
        folder = Path(name)
        write_atomically(folder / "request.json", TrialRequest(model=str(path.resolve())).model_dump_json())
        save_samples(folder / "sample.npz", (tuple(sample),))
        run_program(
            [sys.executable, "-P", "-m", "edgekit.converters.tflite_micro.trial", str(folder)],
            folder,
            environment=child_environment(),
            backend=BACKEND,
            stage="run in TensorFlow Lite Micro",
        )
        return read_record(TrialAnswer, folder / "answer.json")


def _problem(failure: OpFailure) -> Problem:
    said = f": {failure.said}" if failure.said else ""
    lacking = "does not take these" if failure.op in KERNELS else "is not in TensorFlow Lite Micro"
    return Problem(
        backend=BACKEND,
        message=f"{failure.op} version {failure.version} on {' '.join(failure.types)} (tensor '{failure.where}'): "
        f"the kernel {lacking}{said}",
        op=failure.op,
        available_in=("tflite",),
        hint=advice(failure.op),
    )
