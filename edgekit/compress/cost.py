"""What a module costs: multiply-accumulates, parameters, bytes of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["count_macs", "count_parameters", "weight_bytes"]


def count_macs(module: nn.Module, example_inputs: Sequence[Tensor]) -> int:
    """Multiply-accumulates of one forward pass on `example_inputs` (the whole batch).

    Counted where they happen, op by op as torch's FlopCounterMode sees them (convolutions, matrix products,
    attention; two of its flops are one MAC), so functional calls count too; additions and activations do not.
    """
    from torch.utils.flop_counter import FlopCounterMode

    training = module.training
    module.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(*example_inputs)
    finally:
        module.train(training)
    return int(counter.get_total_flops()) // 2


def count_parameters(module: nn.Module) -> int:
    """Parameters of the module, one that is shared counted once."""
    return sum(p.numel() for p in module.parameters())


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the module's parameters and floating-point buffers as fp32, what an fp32 model file has to hold."""
    state = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    return sum(4 * value.numel() for value in state)
