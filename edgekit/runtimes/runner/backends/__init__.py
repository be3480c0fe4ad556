"""Runtimes the runner can drive, by name.

A backend is a class `Backend` with: `import_runtime()` (imports the runtime's packages, nothing else),
`load(path, threads, delegate)`, `invoke(inputs) -> outputs` (numpy arrays, copies included), `names()` (input
and output names, or None where the runtime does not tell them) and `describe()` (what executes: the `runtime`
of a result). A delegate that was asked for and cannot be had raises.
"""

import importlib
import importlib.machinery
import types
from typing import Any, Optional

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
