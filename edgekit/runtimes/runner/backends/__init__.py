"""Runtimes the runner can drive, by name.

A backend is a class `Backend` with: `import_runtime()` (imports the runtime's packages, nothing else),
`load(path, threads, delegate)`, `invoke(inputs) -> outputs` (numpy arrays, copies included), `names()` (input
and output names, or None where the runtime does not tell them) and `describe()` (what executes: the `runtime`
of a result). A delegate that was asked for and cannot be had raises DelegateMissing.

Two methods may be left out. `bind(inputs) -> call` gives a call without arguments that infers on these inputs by the
runtime's cheapest interface; it is what is timed, and `call.outputs()` gives what it computed last. `profile(path,
threads, delegate, prepared, runs, prefix) -> [{"name", "type", "calls", "total_ns"}]` runs the model under the
runtime's own profiler.
"""

import importlib
import importlib.machinery
import types
from typing import Any, Optional


class DelegateMissing(RuntimeError):
    """The delegate that was asked for does not execute this model here."""


class NoProfile(Exception):
    """Why this runtime gives no profile here."""


class Call:
    """One inference through `invoke`, for a backend that binds nothing."""

    def __init__(self, backend: Any, inputs: list[Any]) -> None:
        self._backend = backend
        self._inputs = inputs

    def __call__(self) -> object:
        return self._backend.invoke(self._inputs)

    def outputs(self) -> list[Any]:
        """What the model gives for the inputs."""
        return list(self._backend.invoke(self._inputs))


def bound(backend: Any, inputs: list[Any]) -> Any:
    """The call to time: the backend's own, where it binds."""
    return backend.bind(inputs) if hasattr(backend, "bind") else Call(backend, inputs)


BACKENDS = {"litert": ".litert", "onnxruntime": ".onnx", "executorch": ".executorch"}


def make_backend(runtime: str, backend_file: Optional[str]) -> Any:
    """A new backend: of the table above, or the `Backend` of a third party's file."""
    if backend_file is not None:
        # The file lies under its hash, without a suffix, so its loader has to be named.
        loader = importlib.machinery.SourceFileLoader("edgekit_runner_backend", backend_file)
        module = types.ModuleType(loader.name)
        loader.exec_module(module)
        return module.Backend()
    if runtime not in BACKENDS:
        raise ValueError(f"runtime '{runtime}' is not one of {', '.join(sorted(BACKENDS))}")
    return importlib.import_module(BACKENDS[runtime], __name__).Backend()
