"""Where in a model the representation is, and reading it: a submodule's output or input, as channels over a grid."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import WorkloadError
from edgekit.schema import near_miss
from edgekit.training.batches import generators_kept

__all__ = [
    "Representation",
    "dense_representation",
    "find_representation",
    "frozen",
    "pooled",
    "run_model",
    "token_embedding",
    "trained_by",
]

OUTPUT = "output"
"""The name of the model's own output 0."""
_INPUT = ":input"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CHANNELS_FIRST = (
    *_CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.modules.batchnorm._BatchNorm, nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
)  # fmt: skip
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.RNNBase, nn.Embedding)


@dataclass(frozen=True, slots=True, kw_only=True)
class Representation:
    """The place of a feature: output 0 of the submodule `module`, or its first input; the latest call counts."""

    module: str
    is_input: bool = False
    channels_last: bool = False
    """`[B, …, D]` rather than `[B, D, …]`."""

    def __str__(self) -> str:
        """The name that finds it again: `avgpool`, `head:input`, `output`."""
        return f"{self.module or OUTPUT}{_INPUT if self.is_input else ''}"

    def read(self, model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
        """The feature for a batch as `[B, D, *grid]`, with its gradients; the model's own output is not used."""
        seen: list[Tensor] = []

        def keep_input(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            seen[:] = [_first_tensor((*arguments, *keywords.values()), str(self))]

        def keep_output(_module: nn.Module, _arguments: Any, output: Any) -> None:
            seen[:] = [_first_tensor(output, str(self))]

        place = model.get_submodule(self.module)
        handle = (
            place.register_forward_pre_hook(keep_input, with_kwargs=True)
            if self.is_input
            else place.register_forward_hook(keep_output)
        )
        try:
            run_model(model, inputs)
        finally:
            handle.remove()
        if not seen:
            raise WorkloadError(
                f"features '{self}' did not run in the model's forward pass",
                hint="name a submodule whose own forward() is called",
            )
        return self._arranged(seen[0], len(inputs[0]))

    def _arranged(self, value: Tensor, batch: int) -> Tensor:
        if value.ndim < 2 or value.shape[0] != batch or not value.is_floating_point():
            raise WorkloadError(
                f"features '{self}' are {str(value.dtype).removeprefix('torch.')} {list(value.shape)} for a batch of "
                f"{batch}; a representation is float with the batch as its first axis",
                hint="a recurrent layer needs batch_first=True, or name a later submodule",
            )
        return value.movedim(-1, 1) if self.channels_last else value


def run_model(model: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """The model's own answer; raises WorkloadError, with the shapes, for inputs that it cannot take."""
    try:
        return model(*inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as e:
        shapes = ", ".join(f"{str(v.dtype).removeprefix('torch.')}{tuple(v.shape)}" for v in inputs)
        said = str(e).strip().splitlines()
        raise WorkloadError(
            f"the model cannot take a batch of {shapes}: {said[0] if said else type(e).__name__}",
            hint="an item's input must have the model's input shape without the batch axis",
        ) from e


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in eval mode and without gradients; every submodule gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode


def pooled(feature: Tensor) -> Tensor:
    """`[B, D]`: the mean over the grid of `[B, D, *grid]`."""
    return feature.flatten(2).mean(dim=2) if feature.ndim > 2 else feature


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a submodule without children, in the order of the forward pass."""

    name: str
    module: nn.Module
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    """Of its first input and output 0; () for what is no tensor."""


def find_representation(model: nn.Module, inputs: Sequence[Tensor], name: str | None = None) -> Representation:
    """The representation called `name`, or the input of the last linear or convolutional layer that runs.

    `inputs` are a small batch (two samples). Raises WorkloadError for a name there is none of, or a model without
    such a layer.
    """
    calls = _calls(model, inputs)
    if name is None:
        layers = [call for call in calls if isinstance(call.module, (nn.Linear, *_CONVOLUTIONS))]
        if not layers:
            raise WorkloadError(
                "no linear or convolutional layer runs in the model, so the representation must be named",
                hint=f"features: a submodule's name, or '{OUTPUT}'",
            )
        head = layers[-1]
        last = isinstance(head.module, nn.Linear)
        return Representation(module=head.name, is_input=True, channels_last=last)
    path, is_input = (name.removesuffix(_INPUT), True) if name.endswith(_INPUT) else (name, False)
    path = "" if path == OUTPUT else path
    known = [known for known, _ in model.named_modules()]
    if path not in known:
        raise WorkloadError(
            f"features: the model has no submodule '{path}'; {near_miss(path, [k for k in known if k])}",
            hint="names are those of named_modules(); ':input' behind one means what goes into it",
        )
    return Representation(module=path, is_input=is_input, channels_last=_is_channels_last(calls, path, is_input))


def dense_representation(model: nn.Module, inputs: Sequence[Tensor], within: Representation) -> Representation | None:
    """The last output of a layer, before `within`, that still has a grid of positions; None where there is none."""
    calls = _calls(model, inputs)
    names = [call.name for call in calls]
    before = calls[: len(names) - names[::-1].index(within.module) - 1] if within.module in names else calls
    for number in range(len(before) - 1, -1, -1):
        shape = before[number].shapes[1]
        if len(shape) < 3 or shape[0] != len(inputs[0]):
            continue
        last = _is_channels_last(before[: number + 1], before[number].name, False)
        grid = shape[1:-1] if last else shape[2:]
        if torch.Size(grid).numel() > 1:
            return Representation(module=before[number].name, channels_last=last)
    return None


def trained_by(model: nn.Module, inputs: Sequence[Tensor], place: Representation) -> set[str]:
    """Names of the parameters that the feature at `place` depends on."""
    replica = _replica(model)
    named = [(n, p) for n, p in replica.named_parameters() if p.requires_grad]
    with generators_kept(), torch.enable_grad():
        feature = place.read(replica, inputs)
        if not feature.requires_grad:
            return set()
        gradients = torch.autograd.grad(feature.sum(), [p for _, p in named], allow_unused=True)
    return {name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is not None}


def token_embedding(model: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """The name of the first nn.Embedding that looks up the first input, None where there is none."""
    shape = tuple(inputs[0].shape)
    for call in _calls(model, inputs):
        if isinstance(call.module, nn.Embedding) and call.shapes[0] == shape:
            return call.name
    return None


def _replica(model: nn.Module) -> nn.Module:
    # Training mode: in eval mode torch's transformer layers take a fast path that calls no submodule.
    return copy.deepcopy(model).train()


def _calls(model: nn.Module, inputs: Sequence[Tensor]) -> list[_Call]:
    replica = _replica(model)
    calls: list[_Call] = []
    for name, module in replica.named_modules():
        if not list(module.children()):

            def note(module: nn.Module, arguments: tuple[Any, ...], output: Any, name: str = name) -> None:
                calls.append(_Call(name, module, (_shape(arguments), _shape(output))))

            module.register_forward_hook(note)
    with generators_kept(), torch.no_grad():
        run_model(replica, inputs)
    return calls


def _shape(value: Any) -> tuple[int, ...]:
    value = value[0] if isinstance(value, tuple | list) and value else value
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _is_channels_last(calls: Sequence[_Call], path: str, is_input: bool) -> bool:
    """Whether the layers that ran until then, the latest that tells, put channels last."""
    mine = [i for i, call in enumerate(calls) if call.name == path or not path or call.name.startswith(path + ".")]
    if mine and is_input:
        module = calls[mine[0]].module
        if isinstance(module, (*_CHANNELS_FIRST, *_CHANNELS_LAST)):
            return isinstance(module, _CHANNELS_LAST)
        upto = calls[: mine[0]]
    else:
        upto = calls[: mine[-1] + 1] if mine else calls
    for call in reversed(upto):
        if isinstance(call.module, (*_CHANNELS_FIRST, *_CHANNELS_LAST)):
            return isinstance(call.module, _CHANNELS_LAST)
    return False


def _first_tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, dict):
        value = list(value.values())
    value = value[0] if isinstance(value, tuple | list) and value else value
    if not isinstance(value, Tensor):
        raise WorkloadError(f"features '{name}' are a {type(value).__name__}, not a tensor")
    return value
