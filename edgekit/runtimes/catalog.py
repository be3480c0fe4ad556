"""Which runtime executes which format, and what it takes to have it on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.artifact import Format
from edgekit.plugins import Registry

__all__ = ["EXECUTORCH", "LITERT", "ONNXRUNTIME", "RUNTIMES", "RuntimeSpec", "Wheel", "runtime_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One pinned package a device needs, for Python versions in [`since`, `before`) and `machines` (None: any)."""

    name: str
    version: str
    since: tuple[int, int] = (3, 9)
    before: tuple[int, int] = (4, 0)
    machines: tuple[str, ...] | None = None
    """As `uname -m` says it."""

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSpec:
    """A runtime: its name in `job.json`, the formats it runs, and where it comes from.

    `backend_file` is None for runtimes the runner brings; a third party (entry points `edgekit.runtimes`) gives
    a Python file with a class `Backend` (see `edgekit.runtimes.runner.backends`).
    """

    name: str
    formats: tuple[Format, ...]
    imports: tuple[tuple[str, str], ...]
    """(module, distribution) pairs; the first that is installed on `local` serves."""
    wheels: tuple[Wheel, ...]
    """For a device that has only Python and libstdc++."""
    check: str
    """Python that imports all the runtime needs; proves the wheels work on the device."""
    extra: str
    """The extra of edgekit that brings it to this host."""
    backend_file: Path | None = None

    def wheels_for(self, machine: str | None) -> tuple[Wheel, ...]:
        """Those that a device of this machine needs; empty where the runtime is not published for it."""
        return tuple(w for w in self.wheels if w.machines is None or machine in w.machines)


# The shortest lists with which each runtime imported and ran on a Debian 13 tree with nothing but python3 and
# libstdc++6. The wheels' own metadata ask for more (protobuf, tqdm, ml_dtypes, packaging), which only their
# converters and tools use.
_64_BIT = ("x86_64", "aarch64")
_NUMPY = (
    Wheel(name="numpy", version="2.5.5", since=(3, 12), machines=_64_BIT),
    Wheel(name="numpy", version="2.2.6", since=(3, 10), before=(3, 12), machines=_64_BIT),
)
# 32-bit ARM: the last runtime that is published for it; there is no numpy wheel, the system's (before 2) serves.
_TFLITE_RUNTIME = Wheel(name="tflite-runtime", version="2.14.0", before=(3, 12), machines=("armv7l",))

LITERT = RuntimeSpec(
    name="litert",
    formats=(Format.TFLITE,),
    imports=(("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime")),
    wheels=(*_NUMPY, Wheel(name="ai-edge-litert", version="2.3.0", since=(3, 10), machines=_64_BIT), _TFLITE_RUNTIME),
    check="import importlib.util, numpy; "
    "name = 'ai_edge_litert' if importlib.util.find_spec('ai_edge_litert') else 'tflite_runtime'; "
    "__import__(name + '.interpreter')",
    extra="tflite",
)
ONNXRUNTIME = RuntimeSpec(
    name="onnxruntime",
    formats=(Format.ONNX,),
    imports=(("onnxruntime", "onnxruntime"),),
    wheels=(*_NUMPY, Wheel(name="onnxruntime", version="1.32.0", since=(3, 11), machines=_64_BIT)),
    check="import numpy, onnxruntime",
    extra="onnx",
)
EXECUTORCH = RuntimeSpec(
    name="executorch",
    formats=(Format.EXECUTORCH,),
    imports=(("executorch_numpy_runtime", "executorch-numpy-runtime"), ("executorch", "executorch")),
    wheels=(*_NUMPY, Wheel(name="executorch-numpy-runtime", version="1.4.0", since=(3, 12), machines=_64_BIT)),
    check="import executorch_numpy_runtime",
    extra="executorch",
)

RUNTIMES = Registry(
    "runtime",
    "edgekit.runtimes",
    {
        "litert": "edgekit.runtimes.catalog:LITERT",
        "onnxruntime": "edgekit.runtimes.catalog:ONNXRUNTIME",
        "executorch": "edgekit.runtimes.catalog:EXECUTORCH",
    },
)

_DEFAULT = {Format.TFLITE: "litert", Format.ONNX: "onnxruntime", Format.EXECUTORCH: "executorch"}


def runtime_for(format: Format) -> RuntimeSpec:
    """The runtime that executes files of `format`."""
    spec: RuntimeSpec = RUNTIMES.load(_DEFAULT[format])
    return spec
