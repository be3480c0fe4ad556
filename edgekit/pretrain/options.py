"""The options of self-supervised pretraining, as a recipe writes them under `teacher: {pretrain: …}`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, field_validator

from edgekit.compress.options import TrainOptions
from edgekit.schema import near_miss

__all__ = ["AUGMENTATION_NAMES", "Modality", "PretrainMethod", "PretrainOptions"]


class PretrainMethod(StrEnum):
    """What is learned without labels."""

    SIMCLR = "simclr"
    """Two views of a sample are nearer to each other than to the rest of the batch (Chen et al. 2020)."""
    SIMSIAM = "simsiam"
    """One view predicts the other, without negatives (Chen and He 2021)."""
    BYOL = "byol"
    """One view predicts a slow copy's projection of the other (Grill et al. 2020)."""
    MASKED = "masked"
    """Hidden patches, time steps or tokens are told from the rest (Xie et al. 2022; Devlin et al. 2019)."""


class Modality(StrEnum):
    """What the first input is, and so how it is augmented or masked."""

    IMAGE = "image"
    """float `[B, C, H, W]`"""
    AUDIO = "audio"
    """waveforms, float `[B, T]` or `[B, C, T]`"""
    SPECTROGRAM = "spectrogram"
    """float `[B, F, T]` or `[B, C, F, T]`"""
    SENSOR = "sensor"
    """float `[B, C, T]`, or `[B, T, C]` with `time_axis: 1`"""
    TOKENS = "tokens"
    """integers `[B, T]`"""


AUGMENTATION_NAMES = (
    "random_resized_crop", "random_affine", "horizontal_flip", "color_jitter", "random_grayscale", "gaussian_blur",
    "time_shift", "time_crop", "time_mask", "frequency_mask", "permutation", "jitter", "noise", "gain", "scaling",
    "channel_drop",
)  # fmt: skip
"""The names of `augment.AUGMENTATIONS`, which a recipe is checked by before torch is loaded."""


class PretrainOptions(TrainOptions):
    """Pretraining without labels; the head it trains beside the encoder is thrown away."""

    method: PretrainMethod = PretrainMethod.SIMCLR
    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Two at least; contrast needs hundreds: every other sample of the batch is a negative."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    features: str | None = None
    """The representation: the output of the submodule of this name, or with `:input` behind it its input. None is the
    input of the last linear layer."""
    modality: Modality | None = None
    """None tells images, sensor channels and tokens by shape and dtype."""
    time_axis: int | None = None
    """Of sensor and audio batches, counted with the batch axis; None is the longest."""
    augmentations: tuple[str | dict[str, dict[str, Any]], ...] | None = None
    """In order, `[random_resized_crop, {gaussian_blur: {p: 0.2}}]`; None is the modality's own set."""
    hidden: Annotated[int, Field(ge=1)] = 256
    """Width of the hidden layer of projector and predictor."""
    projection: Annotated[int, Field(ge=2)] = 128
    """Width of what the loss compares."""
    temperature: Annotated[float, Field(gt=0)] = 0.2
    """SimCLR's tau."""
    target_momentum: Annotated[float, Field(ge=0, le=1)] = 0.99
    """BYOL's tau at the first step; it rises to 1 on a cosine."""
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share that is hidden; None is 0.6 of patches (SimMIM), 0.5 of time steps, 0.15 of tokens (BERT)."""
    patch: Annotated[int, Field(ge=1)] | None = None
    """Side of a hidden patch in pixels, or length in time steps; None is an eighth of the shorter side, or a sixteenth
    of the length."""
    mask_token: Annotated[int, Field(ge=0)] | None = None
    """The token that stands for a hidden one; None puts a learned vector in place of its embedding."""
    pad_token: Annotated[int, Field(ge=0)] | None = None
    """Never hidden; None takes the embedding's `padding_idx`."""
    probe_head: bool = True
    """In a recipe: the model's own head starts `train` as the linear probe's (LP-FT, Kumar et al. 2022)."""

    @field_validator("augmentations")
    @classmethod
    def _known(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        for entry in value or ():
            for name in [entry] if isinstance(entry, str) else entry:
                if name not in AUGMENTATION_NAMES:
                    raise ValueError(f"unknown augmentation '{name}'; {near_miss(name, AUGMENTATION_NAMES)}")
        return value
