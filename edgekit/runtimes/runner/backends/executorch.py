"""ExecuTorch programs, on the torch-free `executorch_numpy_runtime` or on executorch's own bindings.

The first is preferred where it is installed: the second imports torch (seconds of start, hundreds of MB).
Both size their thread pool by the processor; it is set to the plan's number of threads before the program is
loaded, because XNNPACK keeps the pool it was created with.
"""

import ctypes
import importlib
import importlib.metadata
from typing import Any, Optional

from . import DelegateMissing

_POOL = "_ZN10executorch9extension10threadpool"
_GET = _POOL + "14get_threadpoolEv"
_RESET = _POOL + "10ThreadPool24_unsafe_reset_threadpoolEj"
_COUNT = "_ZNK10executorch9extension10threadpool10ThreadPool16get_thread_countEv"
_AT_CONVERSION = "at its conversion this program was"


class Backend:
    """The `forward` method of a .pte file."""

    def import_runtime(self) -> None:
        try:
            import executorch_numpy_runtime

            self._engine: Any = _NumpyEngine(executorch_numpy_runtime)
        except ModuleNotFoundError as missing:
            if missing.name != "executorch_numpy_runtime":
                raise
            self._engine = _TorchEngine()

    def load(self, path: str, threads: int, delegate: str) -> None:
        """Set the threads, read the program, load `forward`. A delegate is a fact of the file, fixed at conversion."""
        with open(path, "rb") as f:
            data = f.read()
        used = [name for name in self._engine.backends() if name.encode() in data]
        self._delegate = "XNNPACK" if "XnnpackBackend" in used else (used[0] if used else None)
        if delegate == "xnnpack" and self._delegate != "XNNPACK":
            raise DelegateMissing(
                "the XNNPACK delegate was asked for; this program was not lowered to it at conversion"
            )
        if delegate == "none" and self._delegate is not None:
            raise DelegateMissing(
                f"no delegate was asked for; this program was lowered to {self._delegate} at conversion"
            )
        self._threads = self._engine.set_threads(threads)
        self._engine.load(path)

    def invoke(self, inputs: list[Any]) -> list[Any]:
        outputs: list[Any] = self._engine.invoke(inputs)
        return outputs

    def names(self) -> tuple[Optional[list[str]], Optional[list[str]]]:
        return None, None

    def describe(self) -> dict[str, Any]:
        return {
            "name": "executorch",
            "version": self._engine.version(),
            "threads": self._threads,
            "delegate": self._delegate,
            "delegate_nodes": None,
            "total_nodes": None,
            "interface": "forward",
        }


class _NumpyEngine:
    """`executorch_numpy_runtime` 1.x; loads by Program::Verification as that wheel was built."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def backends(self) -> list[str]:
        return list(self._module.runtime_info()["backends"])

    def set_threads(self, threads: int) -> int:
        """The number of threads now in the pool. The wheel has no call for it, its library exports the C++ one."""
        library = ctypes.CDLL(self._module._core.__file__)
        try:
            get, reset, count = library[_GET], library[_RESET], library[_COUNT]
        except AttributeError as e:
            raise RuntimeError("this build of executorch_numpy_runtime does not let its threads be set") from e
        get.restype, get.argtypes = ctypes.c_void_p, []
        reset.restype, reset.argtypes = ctypes.c_bool, [ctypes.c_void_p, ctypes.c_uint32]
        count.restype, count.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
        pool = get()
        if count(pool) != threads:
            reset(pool, threads)
        return int(count(pool))

    def load(self, path: str) -> None:
        self._method = self._module.Runtime.get().load_program(path).load_method("forward")
        _ = self._method.metadata  # the program is read here, the method itself at its first run

    def invoke(self, inputs: list[Any]) -> list[Any]:
        return list(self._method(inputs))

    def version(self) -> str:
        return f"numpy-runtime {self._module.__version__} (executorch {self._module.__et_version__})"


class _TorchEngine:
    """executorch's own bindings, without `executorch.runtime`, which imports the whole exporter (5 s more)."""

    def __init__(self) -> None:
        import torch

        try:
            bindings = importlib.import_module("executorch.extension.pybindings._C")
        except ModuleNotFoundError:  # executorch before 1.4
            bindings = importlib.import_module("executorch.extension.pybindings._portable_lib")
        self._torch = torch
        self._bindings: Any = bindings
        torch.set_num_threads(1)

    def backends(self) -> list[str]:
        return list(self._bindings._get_registered_backend_names())

    def set_threads(self, threads: int) -> int:
        if self._bindings._threadpool_get_thread_count() != threads:
            self._bindings._unsafe_reset_threadpool(threads)
        return int(self._bindings._threadpool_get_thread_count())

    def load(self, path: str) -> None:
        self._program = self._bindings._load_program(
            path,
            enable_etdump=False,
            debug_buffer_size=0,
            program_verification=self._bindings.Verification.InternalConsistency,
        )
        self._method = self._program.load_method("forward")

    def invoke(self, inputs: list[Any]) -> list[Any]:
        from_numpy = self._torch.from_numpy
        return [output.numpy() for output in self._method([from_numpy(i) for i in inputs])]

    def version(self) -> str:
        return importlib.metadata.version("executorch")
