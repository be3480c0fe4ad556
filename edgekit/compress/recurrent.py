"""Hidden units of nn.LSTM, nn.GRU and nn.RNN as prunable channels.

A layer has one hidden size for all its levels and directions, so unit i goes from each of them: its gates' rows, its
column in the recurrent weights, and its column in the next level's input weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["RecurrentPruner", "levels", "recurrent_modules", "traced_as_one"]


def recurrent_modules(module: nn.Module) -> list[nn.RNNBase]:
    """The recurrent layers of `module` whose hidden units can go: those without a projection (`proj_size`)."""
    return [m for m in module.modules() if isinstance(m, nn.RNNBase) and not m.proj_size]


def levels(layer: nn.RNNBase) -> list[tuple[int, str]]:
    """(level, name suffix) of every weight set: `(0, "l0")`, `(0, "l0_reverse")`, `(1, "l1")`, …"""
    endings = ("", "_reverse") if layer.bidirectional else ("",)
    return [(level, f"l{level}{ending}") for level in range(layer.num_layers) for ending in endings]


class RecurrentPruner:
    """torch-pruning's handler of a recurrent layer; output channels are `[forward units, backward units]`."""

    pruning_dim = -1

    def prune_out_channels(self, layer: nn.RNNBase, idxs: Sequence[int]) -> nn.Module:
        """Remove hidden units; raises ValueError unless both directions lose the same."""
        hidden, directions = layer.hidden_size, 2 if layer.bidirectional else 1
        gone = {i % hidden for i in idxs}
        if len(gone) * directions != len(set(idxs)):
            raise ValueError("a bidirectional layer loses the same hidden units in both directions")
        kept = torch.tensor([i for i in range(hidden) if i not in gone])
        gates = _weight(layer, "weight_hh_l0").shape[0] // hidden
        rows = torch.cat([kept + gate * hidden for gate in range(gates)])
        inputs = torch.cat([kept + direction * hidden for direction in range(directions)])
        for level, suffix in levels(layer):
            _keep(layer, f"weight_ih_{suffix}", rows, 0)
            if level:
                _keep(layer, f"weight_ih_{suffix}", inputs, 1)
            _keep(layer, f"weight_hh_{suffix}", rows, 0)
            _keep(layer, f"weight_hh_{suffix}", kept, 1)
            if layer.bias:
                _keep(layer, f"bias_ih_{suffix}", rows, 0)
                _keep(layer, f"bias_hh_{suffix}", rows, 0)
        layer.hidden_size = len(kept)
        return layer

    def prune_in_channels(self, layer: nn.RNNBase, idxs: Sequence[int]) -> nn.Module:
        """Remove input features."""
        gone = set(idxs)
        kept = torch.tensor([i for i in range(layer.input_size) if i not in gone])
        for level, suffix in levels(layer):
            if not level:
                _keep(layer, f"weight_ih_{suffix}", kept, 1)
        layer.input_size = len(kept)
        return layer

    def get_out_channels(self, layer: nn.RNNBase) -> int:
        return layer.hidden_size * (2 if layer.bidirectional else 1)

    def get_in_channels(self, layer: nn.RNNBase) -> int:
        return layer.input_size

    def get_out_channel_groups(self, layer: nn.RNNBase) -> int:
        """Directions: each loses the same units."""
        return 2 if layer.bidirectional else 1

    def get_in_channel_groups(self, layer: nn.RNNBase) -> int:
        return 1


def _weight(layer: nn.RNNBase, name: str) -> nn.Parameter:
    found: nn.Parameter = getattr(layer, name)
    return found


def _keep(layer: nn.RNNBase, name: str, kept: Tensor, dim: int) -> None:
    old = _weight(layer, name)
    setattr(layer, name, nn.Parameter(old.detach().index_select(dim, kept), requires_grad=old.requires_grad))


class _Opaque(torch.autograd.Function):
    """Gives `outputs` with one autograd node that `source` and `weight` lead into."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, weight: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.clone() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("only for tracing")


@contextlib.contextmanager
def traced_as_one(module: nn.Module) -> Iterator[None]:
    """Inside, each recurrent layer is one node of autograd's graph, as the dependency graph needs it."""
    patched = recurrent_modules(module)
    for layer in patched:
        layer.__dict__["forward"] = _as_one(layer, type(layer).forward)
    try:
        yield
    finally:
        for layer in patched:
            layer.__dict__.pop("forward", None)


def _as_one(layer: nn.RNNBase, original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(inputs: Any, state: Any = None, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            output, last = original(layer, inputs, state, *args, **kwargs)
        packed = isinstance(output, PackedSequence)
        states = last if isinstance(last, tuple) else (last,)
        source = inputs.data if packed else inputs
        made: Any = _Opaque.apply(  # type: ignore[no-untyped-call]
            source, layer.weight_hh_l0, output.data if packed else output, *states
        )
        output = output._replace(data=made[0]) if packed else made[0]
        return output, (tuple(made[1:]) if isinstance(last, tuple) else made[1])

    return forward
