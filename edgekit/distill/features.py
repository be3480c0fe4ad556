"""The features that distillation looks at: which modules, of what shape, and where their channels are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgekit.errors import WorkloadError
from edgekit.training.features import captured_features

__all__ = ["channels_first", "evaluating", "feature", "has_channels_last", "probed"]

_CHANNELS_FIRST = (
    nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.MaxPool1d, nn.AvgPool1d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d,
)  # fmt: skip
_CHANNELS_LAST = (nn.LayerNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode and without gradients; every submodule gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def feature(found: Mapping[str, Tensor], name: str, *, who: str) -> Tensor:
    """What `name` gave in the latest pass; raises WorkloadError when it did not run in it."""
    if name not in found:
        raise WorkloadError(
            f"the {who}'s module '{name}' did not run when the model did: it has no feature to compare",
            hint="name a module whose forward is called",
        )
    return found[name]


def probed(model: nn.Module, names: Sequence[str], inputs: Sequence[Tensor], *, who: str) -> dict[str, Tensor]:
    """What each named module gives on `inputs`, in eval mode; raises WorkloadError for a name that gives nothing."""
    if not names:
        return {}
    with captured_features(model, names, who=who) as found, evaluating(model):
        model(*inputs)
    return {name: feature(found, name, who=who) for name in names}


def channels_first(value: Tensor, *, is_last: bool) -> Tensor:
    """The feature as `[B, C, …]`."""
    return value.movedim(-1, 1) if is_last and value.ndim > 2 else value


def has_channels_last(model: nn.Module, name: str, value: Tensor) -> bool:
    """Whether the last axis of the feature `name` holds the channels (`[B, L, C]`), else axis 1 (`[B, C, …]`).

    Only three axes are in doubt: the last layer within the module that tells decides, then the whole model's, and a
    linear layer tells only within.
    """
    if value.ndim != 3:
        return False
    inner = model.get_submodule(name)
    for scope, telling in ((inner, (*_CHANNELS_LAST, nn.Linear)), (model, _CHANNELS_LAST)):
        for module in reversed(list(scope.modules())):
            if isinstance(module, _CHANNELS_FIRST):
                return False
            if isinstance(module, telling):
                return True
    return True
