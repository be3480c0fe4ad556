"""A program that computes in half precision between float32 inputs and outputs.

XNNPACK has half-precision kernels for most of its ops; the rest runs in executorch's own. Weights take half the bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgekit.converters.executorch_graphs import exported_again

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

__all__ = ["halved"]

_LARGEST = 65504.0
"""Of the finite float16 numbers."""


def halved(program: ExportedProgram) -> ExportedProgram:
    """The program with float16 weights and activations; inputs and outputs keep their types."""
    import torch
    from torch import nn
    from torch.utils import _pytree as pytree

    def cast(value: Any, source: torch.dtype, target: torch.dtype) -> Any:
        is_it = isinstance(value, torch.Tensor) and value.dtype is source
        return value.to(target) if is_it else value

    inner: GraphModule = program.module(check_guards=False)
    _make_half(inner)

    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any) -> Any:
            given = pytree.tree_map(lambda v: cast(v, torch.float32, torch.float16), args)
            return pytree.tree_map(lambda v: cast(v, torch.float16, torch.float32), self.inner(*given))

    return exported_again(Halved(), program)


def _make_half(module: GraphModule) -> None:
    """Turn every float32 constant, and every op that asks for float32, to float16. The constants are copies."""
    import torch
    from torch import fx, nn

    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.dtype is torch.float32:
                setattr(owner, name, nn.Parameter(_as_half(parameter.detach()), requires_grad=False))
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.dtype is torch.float32:
                setattr(owner, name, _as_half(buffer))
        for name, value in list(vars(owner).items()):
            if isinstance(value, torch.Tensor) and value.dtype is torch.float32:
                setattr(owner, name, _as_half(value))
        if isinstance(owner, fx.GraphModule):
            for node in owner.graph.nodes:
                node.args = fx.node.map_aggregate(node.args, _half_type)
                node.kwargs = fx.node.map_aggregate(node.kwargs, _half_type)
            owner.recompile()


def _as_half(value: Tensor) -> Tensor:
    """The tensor in half precision; a finite value too large for it (a mask's) becomes the largest there is."""
    import torch

    kept = value.clamp(-_LARGEST, _LARGEST).half()
    return torch.where(value.isinf(), value.half(), kept)


def _half_type(argument: Any) -> Any:
    import torch

    if isinstance(argument, float) and math.isfinite(argument) and abs(argument) > _LARGEST:
        return math.copysign(_LARGEST, argument)
    return torch.float16 if argument is torch.float32 else argument
