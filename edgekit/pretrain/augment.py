"""Augmentations: random changes of a batch that leave its meaning, on the tensor, seeded.

    views = augmentation_for(Modality.IMAGE)          # SimCLR's crop, flip, colours and blur
    first, second = views(batch), views(batch)
    Compose((TimeShift(share=0.1), Jitter()))(batch, torch.Generator().manual_seed(0))

Each is a function of (batch, generator) that draws every sample for itself, on the batch's device, and keeps shape and
dtype; without a generator it draws from torch's own. Images: `augment_images`; signals: `augment_signals`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

from edgekit.errors import UserError
from edgekit.pretrain.augment_images import (
    ColorJitter,
    GaussianBlur,
    HorizontalFlip,
    RandomAffine,
    RandomGrayscale,
    RandomResizedCrop,
)
from edgekit.pretrain.augment_signals import (
    ChannelDrop,
    FrequencyMask,
    Gain,
    Jitter,
    Noise,
    Permutation,
    Scaling,
    TimeCrop,
    TimeMask,
    TimeShift,
)
from edgekit.pretrain.options import Modality
from edgekit.schema import near_miss

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "ChannelDrop",
    "ColorJitter",
    "Compose",
    "FrequencyMask",
    "Gain",
    "GaussianBlur",
    "HorizontalFlip",
    "Jitter",
    "Noise",
    "Permutation",
    "RandomAffine",
    "RandomGrayscale",
    "RandomResizedCrop",
    "Scaling",
    "TimeCrop",
    "TimeMask",
    "TimeShift",
    "augmentation_for",
    "augmentation_named",
]

Augmentation = Callable[..., Tensor]
"""Of (batch `[B, …]`, generator or None), giving a tensor of the batch's shape."""

AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "random_resized_crop": RandomResizedCrop,
    "random_affine": RandomAffine,
    "horizontal_flip": HorizontalFlip,
    "color_jitter": ColorJitter,
    "random_grayscale": RandomGrayscale,
    "gaussian_blur": GaussianBlur,
    "time_shift": TimeShift,
    "time_crop": TimeCrop,
    "time_mask": TimeMask,
    "frequency_mask": FrequencyMask,
    "permutation": Permutation,
    "jitter": Jitter,
    "noise": Noise,
    "gain": Gain,
    "scaling": Scaling,
    "channel_drop": ChannelDrop,
}
"""Every augmentation by its name in a recipe."""

_DEFAULTS: dict[Modality, tuple[str, ...]] = {
    Modality.IMAGE: ("random_resized_crop", "horizontal_flip", "color_jitter", "random_grayscale", "gaussian_blur"),
    Modality.AUDIO: ("time_crop", "time_shift", "gain", "noise", "time_mask"),
    Modality.SPECTROGRAM: ("time_crop", "time_shift", "time_mask", "frequency_mask", "jitter"),
    Modality.SENSOR: ("time_crop", "permutation", "scaling", "jitter", "channel_drop"),
}


@dataclass(frozen=True, slots=True)
class Compose:
    """Augmentations one after the other."""

    steps: tuple[Augmentation, ...]

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        for step in self.steps:
            x = step(x, generator)
        return x


def augmentation_named(name: str, parameters: Mapping[str, Any] | None = None, *, time_axis: int = -1) -> Augmentation:
    """The augmentation `name` with its parameters; raises UserError for a name or parameter there is none of."""
    if name not in AUGMENTATIONS:
        raise UserError(f"unknown augmentation '{name}'; {near_miss(name, list(AUGMENTATIONS))}")
    known = list(inspect.signature(AUGMENTATIONS[name]).parameters)
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in (parameters or {}).items()}
    for key in given:
        if key not in known:
            raise UserError(f"augmentation '{name}' takes no '{key}'; {near_miss(key, known)}")
    if "time_axis" in known:
        given.setdefault("time_axis", time_axis)
    try:
        return AUGMENTATIONS[name](**given)
    except (TypeError, IndexError) as e:
        raise UserError(f"augmentation '{name}': {given} are not its parameters ({e})") from e


def augmentation_for(
    modality: Modality | str,
    names: Sequence[str | Mapping[str, Mapping[str, Any]]] | None = None,
    *,
    time_axis: int = -1,
) -> Compose:
    """The named augmentations in their order, or the modality's own set when `names` is None.

    `names` are as in a recipe: `["time_shift", {"jitter": {"deviation": 0.1}}]`.
    """
    modality = Modality(modality)
    if names is None:
        if modality not in _DEFAULTS:
            raise UserError(f"there are no augmentations for {modality} batches", hint="use method: masked")
        names = _DEFAULTS[modality]
    chosen: list[Augmentation] = []
    for entry in names:
        pairs = {entry: {}} if isinstance(entry, str) else dict(entry)
        chosen.extend(augmentation_named(name, given, time_axis=time_axis) for name, given in pairs.items())
    return Compose(tuple(chosen))


def described(augmentation: Augmentation) -> str:
    """What tells two augmentations apart, for the key of a run."""
    if dataclasses.is_dataclass(augmentation):
        return repr(augmentation)
    return f"{getattr(augmentation, '__module__', '')}.{getattr(augmentation, '__qualname__', type(augmentation))}"
