"""ONNX files on ONNX Runtime."""

import json
import os
from typing import Any, Optional

from . import DelegateMissing

_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_XNNPACK = "XnnpackExecutionProvider"


class Backend:
    """A .onnx file in one session."""

    def import_runtime(self) -> None:
        import numpy  # (onnxruntime imports it late; its cost belongs to the import)
        import onnxruntime

        self._np: Any = numpy
        self._module: Any = onnxruntime

    def load(self, path: str, threads: int, delegate: str) -> None:
        """Open a session on the CPU; `xnnpack` asks for the XNNPACK execution provider."""
        self._session = self._open(path, threads, delegate, self._options(threads))
        self._threads = threads
        self._input_names = [i.name for i in self._session.get_inputs()]
        self._output_names = [o.name for o in self._session.get_outputs()]
        self._nodes = self._assigned()
        if delegate == "xnnpack" and self._nodes is not None and not self._nodes[0]:
            raise DelegateMissing("the XNNPACK delegate was asked for and took no node of this model")

    def _options(self, threads: int) -> Any:
        options = self._module.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if hasattr(self._module.InferenceSession, "get_provider_graph_assignment_info"):
            options.add_session_config_entry(_ASSIGNMENT, "1")
        return options

    def _open(self, path: str, threads: int, delegate: str, options: Any) -> Any:
        providers = ["CPUExecutionProvider"]
        if delegate == "xnnpack":
            if _XNNPACK not in self._module.get_available_providers():
                raise DelegateMissing(
                    "the XNNPACK delegate was asked for, and this build of onnxruntime has only "
                    + ", ".join(self._module.get_available_providers())
                )
            providers.insert(0, _XNNPACK)
        session = self._module.InferenceSession(path, options, providers=providers)
        if delegate == "xnnpack" and _XNNPACK not in session.get_providers():
            raise DelegateMissing("the XNNPACK delegate was asked for, and the session did not take it")
        return session

    def _assigned(self) -> Optional[tuple[int, int]]:
        """(nodes another provider than the CPU's executes, nodes), as the session assigned them; None if it is old."""
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            return None
        graphs = [(g.ep_name, len(g.get_nodes())) for g in self._session.get_provider_graph_assignment_info()]
        return sum(n for name, n in graphs if name != "CPUExecutionProvider"), sum(n for _, n in graphs)

    def bind(self, inputs: list[Any]) -> "_Call":
        """I/O binding: inputs read where they lie, outputs written to arrays made once where the shapes are fixed."""
        return _Call(self._session, self._module, self._np, self._input_names, inputs)

    def invoke(self, inputs: list[Any]) -> list[Any]:
        outputs: list[Any] = self._session.run(self._output_names, dict(zip(self._input_names, inputs)))
        return outputs

    def names(self) -> tuple[Optional[list[str]], Optional[list[str]]]:
        return list(self._input_names), list(self._output_names)

    def describe(self) -> dict[str, Any]:
        used = self._session.get_providers()
        taken, total = self._nodes or (None, None)
        return {
            "name": "onnxruntime",
            "version": self._module.__version__,
            "threads": self._threads,
            "delegate": "XNNPACK" if _XNNPACK in used else None,
            "delegate_nodes": taken,
            "total_nodes": total,
            "interface": "run_with_iobinding",
        }

    def profile(
        self, path: str, threads: int, delegate: str, prepared: list[list[Any]], runs: int, prefix: str
    ) -> list[dict[str, Any]]:
        """`runs` inferences in a session of their own with ONNX Runtime's profiler on."""
        options = self._options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = prefix
        session = self._open(path, threads, delegate, options)
        for run in range(runs):
            session.run(self._output_names, dict(zip(self._input_names, prepared[run % len(prepared)])))
        written = session.end_profiling()
        try:
            with open(written, encoding="utf-8") as f:
                return _operators(json.load(f))
        finally:
            os.unlink(written)


def _operators(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls and time of each node, from the events of ONNX Runtime's profile (durations there are microseconds)."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        node = name[: -len("_kernel_time")]
        kind = event.get("args", {}).get("op_name", "")
        entry = found.setdefault(node, {"name": node, "type": kind, "calls": 0, "total_ns": 0})
        entry["calls"] += 1
        entry["total_ns"] += int(event.get("dur", 0)) * 1000
    return list(found.values())


class _Call:
    """One inference through an I/O binding of its own."""

    def __init__(self, session: Any, module: Any, np: Any, names: list[str], inputs: list[Any]) -> None:
        self._binding = session.io_binding()
        self._inputs = inputs  # the binding points into them
        for name, value in zip(names, inputs):
            self._binding.bind_cpu_input(name, value)
        self._held = []
        for output in session.get_outputs():
            dtype = _NUMPY_TYPES.get(output.type)
            if dtype is None or not all(isinstance(n, int) for n in output.shape):
                self._binding.bind_output(output.name, "cpu")  # ONNX Runtime allocates it anew each time
                continue
            value = module.OrtValue.ortvalue_from_numpy(np.zeros(output.shape, dtype))
            self._binding.bind_ortvalue_output(output.name, value)
            self._held.append(value)
        self._run = session.run_with_iobinding

    def __call__(self) -> object:
        return self._run(self._binding)

    def outputs(self) -> list[Any]:
        """What the last call computed."""
        values: list[Any] = self._binding.copy_outputs_to_cpu()
        return values


_NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
