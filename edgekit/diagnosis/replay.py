"""The program run in PyTorch with what a file has put in its place: whose error is whose.

*Forced*: every layer gets the file's own inputs, so that what is left between PyTorch's result and the file's is the
error the layer itself adds. *Replayed*: these errors are added back, all or some. With all of them the replay gives
the file's values exactly, by induction over the graph; with some, the model as it were if the other layers were in
float. An error that depends on its input (a clipped value) is replayed as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.converters.alignment import graph_arguments

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["Replay"]

Arrays = Mapping[str, np.ndarray]


class Replay:
    """One program; the three ways to run it on a sample."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program

    def reference(self, sample: Sequence[np.ndarray], names: Collection[str]) -> dict[str, np.ndarray]:
        """PyTorch's own value of each node named."""
        kept: dict[str, np.ndarray] = {}

        def keep(name: str, value: torch.Tensor) -> torch.Tensor:
            if name in names:
                kept[name] = value.detach().float().numpy().copy()
            return value

        self._run(sample, keep)
        return kept

    def forced(self, sample: Sequence[np.ndarray], held: Arrays) -> dict[str, np.ndarray]:
        """The error each layer adds: the file's value less PyTorch's result from the file's inputs."""
        import torch

        errors: dict[str, np.ndarray] = {}

        def force(name: str, value: torch.Tensor) -> torch.Tensor:
            if name not in held:
                return value
            errors[name] = held[name] - value.detach().float().numpy()
            return torch.from_numpy(held[name].copy()).to(value.dtype)

        self._run(sample, force)
        return errors

    def replayed(self, sample: Sequence[np.ndarray], errors: Arrays) -> list[np.ndarray]:
        """The model's outputs with these errors added where they arise."""
        import torch

        def disturb(name: str, value: torch.Tensor) -> torch.Tensor:
            return value + torch.from_numpy(errors[name]).to(value.dtype) if name in errors else value

        return self._run(sample, disturb)

    def _run(
        self, sample: Sequence[np.ndarray], at_node: Callable[[str, torch.Tensor], torch.Tensor]
    ) -> list[np.ndarray]:
        import torch
        from torch import fx
        from torch.utils import _pytree as pytree

        given = set(self._program.graph_signature.user_inputs)

        class Visitor(fx.Interpreter):
            def run_node(self, n: Node) -> Any:
                value = super().run_node(n)
                is_value = n.op == "call_function" or (n.op == "placeholder" and n.name in given)
                return at_node(n.name, value) if is_value and isinstance(value, torch.Tensor) else value

        with torch.no_grad():
            outputs = Visitor(self._program.graph_module).run(*graph_arguments(self._program, sample))
        own = pytree.tree_leaves(outputs)[len(self._program.graph_signature.buffers_to_mutate) :]
        return [value.detach().float().numpy() for value in own if isinstance(value, torch.Tensor)]
