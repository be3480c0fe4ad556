"""What a module costs: multiply-accumulates, parameters, bytes of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["count_macs", "count_parameters", "macs_by_module", "weight_bytes"]


def count_macs(module: nn.Module, example_inputs: Sequence[Tensor]) -> int:
    """Multiply-accumulates of one forward pass on `example_inputs` (the whole batch).

    Counted where they happen, op by op as torch's FlopCounterMode sees them (convolutions, matrix products,
    attention; two of its flops are one MAC), so functional calls count too; additions and activations do not.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _run(module, example_inputs)
    return int(counter.get_total_flops()) // 2


def _run(module: nn.Module, example_inputs: Sequence[Tensor]) -> None:
    """One forward pass in eval mode, of ops that are counted: oneDNN's fused LSTM is none."""
    training = module.training
    module.eval()
    before: Any = torch.backends.mkldnn.enabled
    if any(isinstance(m, nn.RNNBase) for m in module.modules()):
        _fuse(False)
    try:
        with torch.no_grad():
            module(*example_inputs)
    finally:
        if torch.backends.mkldnn.enabled != before:
            _fuse(before)
        module.train(training)


def _fuse(is_fused: Any) -> None:
    # `flags()` would change, and warn of, more than this
    torch.backends.mkldnn.enabled = is_fused


def macs_by_module(module: nn.Module, example_inputs: Sequence[Tensor]) -> dict[str, float]:
    """As `count_macs`, by the innermost module that did them; modules without any are not there."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _run(module, example_inputs)
    root = type(module).__name__
    counts = {
        name.removeprefix(f"{root}."): sum(by_op.values()) / 2
        for name, by_op in counter.get_flop_counts().items()
        if name not in ("Global", root)
    }
    inner = {name: count - _within(name, counts) for name, count in counts.items()}
    return {name: count for name, count in inner.items() if count > 0}


def _within(name: str, counts: dict[str, float]) -> float:
    """What the direct children of `name` that are counted did."""
    below = [other for other in counts if other.startswith(f"{name}.")]
    return sum(counts[o] for o in below if not any(o.startswith(f"{p}.") for p in below if p != o))


def count_parameters(module: nn.Module) -> int:
    """Parameters of the module, one that is shared counted once."""
    return sum(p.numel() for p in module.parameters())


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the module's parameters and floating-point buffers as fp32, what an fp32 model file has to hold."""
    state = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    return sum(4 * value.numel() for value in state)
