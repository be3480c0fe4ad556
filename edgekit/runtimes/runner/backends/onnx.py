"""ONNX files on ONNX Runtime."""

from typing import Any, Optional


class Backend:
    """A .onnx file in one session."""

    def import_runtime(self) -> None:
        import numpy  # noqa: F401  (onnxruntime imports it late; its cost belongs to the import)
        import onnxruntime

        self._module: Any = onnxruntime

    def load(self, path: str, threads: int, delegate: str) -> None:
        """Open a session on the CPU; `xnnpack` asks for the XNNPACK execution provider."""
        providers = ["CPUExecutionProvider"]
        if delegate == "xnnpack":
            if "XnnpackExecutionProvider" not in self._module.get_available_providers():
                raise RuntimeError(
                    "the XNNPACK delegate was asked for, and this build of onnxruntime has only "
                    + ", ".join(self._module.get_available_providers())
                )
            providers.insert(0, "XnnpackExecutionProvider")
        options = self._module.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = self._module.InferenceSession(path, options, providers=providers)
        if delegate == "xnnpack" and "XnnpackExecutionProvider" not in self._session.get_providers():
            raise RuntimeError("the XNNPACK delegate was asked for, and the session did not take it")
        self._threads = threads
        self._input_names = [i.name for i in self._session.get_inputs()]
        self._output_names = [o.name for o in self._session.get_outputs()]

    def invoke(self, inputs: list[Any]) -> list[Any]:
        outputs: list[Any] = self._session.run(self._output_names, dict(zip(self._input_names, inputs)))
        return outputs

    def names(self) -> tuple[Optional[list[str]], Optional[list[str]]]:
        return list(self._input_names), list(self._output_names)

    def describe(self) -> dict[str, Any]:
        used = self._session.get_providers()
        return {
            "name": "onnxruntime",
            "version": self._module.__version__,
            "threads": self._threads,
            "delegate": "XNNPACK" if "XnnpackExecutionProvider" in used else None,
            "delegate_nodes": None,
            "total_nodes": None,
        }
