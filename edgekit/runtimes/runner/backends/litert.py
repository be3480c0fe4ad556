"""TensorFlow Lite files on LiteRT's interpreter (or tflite_runtime, where that is what the board has)."""

import importlib
import importlib.metadata
from typing import Any, Optional

from . import DelegateMissing


class Backend:
    """A .tflite file in one interpreter."""

    def import_runtime(self) -> None:
        try:
            from ai_edge_litert import interpreter as module

            self._package = "ai_edge_litert"
        except ModuleNotFoundError as missing:
            if missing.name != "ai_edge_litert":
                raise
            module = importlib.import_module("tflite_runtime.interpreter")

            self._package = "tflite_runtime"
        self._module: Any = module

    def load(self, path: str, threads: int, delegate: str) -> None:
        """Read the file and allocate its tensors. `none` leaves XNNPACK out; `xnnpack` insists on it."""
        resolver = self._module.OpResolverType.AUTO
        if delegate == "none":
            resolver = self._module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._interpreter = self._module.Interpreter(
            model_path=path, num_threads=threads, experimental_op_resolver_type=resolver
        )
        self._interpreter.allocate_tensors()
        self._threads = threads
        self._inputs = [int(d["index"]) for d in self._interpreter.get_input_details()]
        self._outputs = [int(d["index"]) for d in self._interpreter.get_output_details()]
        nodes, _ = self._delegated()
        if delegate == "xnnpack" and not nodes:
            raise DelegateMissing("the XNNPACK delegate was asked for and took no node of this model")

    def bind(self, inputs: list[Any]) -> "_Call":
        """`set_tensor`, `invoke`, `get_tensor`, with everything looked up beforehand."""
        return _Call(self._interpreter, list(zip(self._inputs, inputs)), self._outputs)

    def invoke(self, inputs: list[Any]) -> list[Any]:
        interpreter = self._interpreter
        for index, value in zip(self._inputs, inputs):
            interpreter.set_tensor(index, value)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in self._outputs]

    def names(self) -> tuple[Optional[list[str]], Optional[list[str]]]:
        return (
            [d["name"] for d in self._interpreter.get_input_details()],
            [d["name"] for d in self._interpreter.get_output_details()],
        )

    def describe(self) -> dict[str, Any]:
        nodes, total = self._delegated()
        return {
            "name": "litert" if self._package == "ai_edge_litert" else "tflite_runtime",
            "version": importlib.metadata.version(self._package.replace("_", "-")),
            "threads": self._threads,
            "delegate": "XNNPACK" if nodes else None,
            "delegate_nodes": nodes,
            "total_nodes": total,
            "interface": "set_tensor, invoke, get_tensor",
        }

    def _delegated(self) -> tuple[int, int]:
        """(nodes a delegate took, nodes of the model).

        The interpreter lists the model's nodes first and each delegate kernel after them; a kernel stands for
        every node on the way from its outputs back to its inputs.
        """
        listing = self._interpreter._get_ops_details()
        kernels = [op for op in listing if op["op_name"] == "DELEGATE"]
        nodes = [op for op in listing if op["op_name"] != "DELEGATE"]
        maker = {int(t): i for i, op in enumerate(nodes) for t in op["outputs"]}
        taken: set[int] = set()
        for kernel in kernels:
            inputs = {int(t) for t in kernel["inputs"]}
            waiting = [int(t) for t in kernel["outputs"]]
            while waiting:
                node = maker.get(waiting.pop())
                if node is None or node in taken:
                    continue
                taken.add(node)
                waiting += [int(t) for t in nodes[node]["inputs"] if int(t) not in inputs]
        return len(taken), len(nodes)


class _Call:
    """One inference: inputs in by `set_tensor`, all outputs out by `get_tensor` (copies)."""

    def __init__(self, interpreter: Any, inputs: list[tuple[int, Any]], outputs: list[int]) -> None:
        self._set, self._invoke, self._get = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor
        self._inputs = inputs
        self._output_indices = outputs

    def __call__(self) -> object:
        for index, value in self._inputs:
            self._set(index, value)
        self._invoke()
        return [self._get(index) for index in self._output_indices]

    def outputs(self) -> list[Any]:
        """What the model gives for the inputs."""
        return [self._get(index) for index in self._output_indices]
