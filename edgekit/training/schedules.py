"""The optimizer and the learning rate over a run, from the options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

if TYPE_CHECKING:
    from edgekit.compress.options import TrainOptions

__all__ = ["make_optimizer", "make_schedule", "rate_factor"]


def make_optimizer(parameters: Iterable[nn.Parameter], options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum (Nesterov's on request), over the parameters."""
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=options.learning_rate,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
        )
    return torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)


def make_schedule(optimizer: torch.optim.Optimizer, options: TrainOptions, steps_per_epoch: int) -> LRScheduler:
    """The learning rate by step."""
    total = options.epochs * steps_per_epoch
    if options.schedule != "one_cycle":
        return LambdaLR(optimizer, rate_factor(options, steps_per_epoch))
    rise = options.warmup_epochs / options.epochs if options.warmup_epochs else 0.3
    is_cycling = options.optimizer == "adamw" or options.momentum > 0
    highest = 0.95 if options.optimizer == "adamw" else options.momentum
    return OneCycleLR(
        optimizer,
        max_lr=options.learning_rate,
        total_steps=max(total, 2),
        pct_start=rise,
        cycle_momentum=is_cycling,
        base_momentum=max(highest - 0.1, 0.0),
        max_momentum=highest,
    )


def rate_factor(options: TrainOptions, steps_per_epoch: int) -> Callable[[int], float]:
    """The share of `learning_rate` at a step, from 0; for every schedule but one_cycle.

    cosine: (1 + cos(π t)) / 2 over what the warm-up leaves (Loshchilov and Hutter 2017, eq. 5, no restarts).
    """
    total = options.epochs * steps_per_epoch
    warm = round(options.warmup_epochs * steps_per_epoch)
    every = (options.step_epochs or max(1, math.ceil(options.epochs / 4))) * steps_per_epoch

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        if options.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
        if options.schedule == "step":
            return options.step_factor ** (step // every)
        return 1.0

    return factor
