"""The interpreter of the `tflite-micro` package."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from edgekit.errors import MissingDependencyError, Problem

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BACKEND", "MAX_ARENA_BYTES", "PACKAGE", "MicroInterpreter", "runtime_name", "wheel_problem"]

BACKEND = "tflite-micro"
PACKAGE = "tflite-micro"
NEWEST_PYTHON = (3, 13)
"""The package has wheels for Linux on x86-64, for Python 3.10 to 3.13, and no source distribution."""
MAX_ARENA_BYTES = 256 * 1024**2
"""Far above what any microcontroller has; the host pays only for the pages that are used."""


def wheel_problem() -> Problem | None:
    """Why this host cannot have the package at all, or None."""
    here = (sys.platform, platform.machine())
    if here == ("linux", "x86_64") and sys.version_info[:2] <= NEWEST_PYTHON:
        return None
    running = f"Python {platform.python_version()} on {' '.join(here)}"
    return Problem(
        backend=BACKEND,
        message=f"its interpreter exists for Linux on x86-64 with Python 3.10 to 3.13 only; this is {running}",
        hint="convert on such a machine, or in a container; the files it writes are for any target",
    )


def runtime_name() -> str:
    """`tflite-micro 0.dev…`."""
    return f"{PACKAGE} {version(PACKAGE)}"


class MicroInterpreter:
    """A model allocated in an arena. TFLM may end the process on an error: only for files a trial has passed."""

    def __init__(self, model: bytes, arena_bytes: int = MAX_ARENA_BYTES) -> None:
        try:
            from tflite_micro import runtime
        except ImportError as e:
            raise MissingDependencyError("running TensorFlow Lite Micro", extra="micro", package=PACKAGE) from e
        self._inner = runtime.Interpreter.from_bytes(model, arena_size=arena_bytes)
        graph = runtime.schema_fb.Model.GetRootAsModel(model, 0).Subgraphs(0)
        self.inputs = [_detail(self._inner.get_input_details(index)) for index in range(graph.InputsLength())]
        """dtype, shape and quantization of each, as ai-edge-litert's interpreter gives them."""
        self.outputs = [_detail(self._inner.get_output_details(index)) for index in range(graph.OutputsLength())]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Its outputs, in the types of the file as the inputs are."""
        for index, (array, detail) in enumerate(zip(arrays, self.inputs, strict=True)):
            self._inner.set_input(array.reshape(detail["shape"]), index)
        self._inner.invoke()
        return [self._inner.get_output(index) for index in range(len(self.outputs))]

    def print_allocations(self) -> None:
        """Write what the arena is used for to stderr."""
        self._inner.print_allocations()


def _detail(told: dict[str, Any]) -> dict[str, Any]:
    scales, points = (told["quantization_parameters"][key] for key in ("scales", "zero_points"))
    quantization = (float(scales[0]), int(points[0])) if len(scales) == 1 else (0.0, 0)
    return {"dtype": told["dtype"], "shape": told["shape"], "quantization": quantization}
