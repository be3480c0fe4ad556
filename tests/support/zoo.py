"""Small models of every kind the converters must take, with inputs that look like data.

`ZOO` maps a name to a `ZooModel`. Weights are random and seeded; batch statistics are those of the model's own inputs
and no two channels are scaled alike, so that the ranges quantization meets are realistic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from support import zoo_images as images
from support import zoo_sequences as sequences
from torch import nn
from torch.nn import functional as F

__all__ = ["ZOO", "Sample", "ZooModel"]

Sample = tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooModel:
    """One kind of model."""

    build: Callable[[], nn.Module]
    """A new copy, always the same, in eval mode."""
    example_inputs: tuple[torch.Tensor, ...]
    samples: Callable[[int, int], tuple[Sample, ...]]
    """`(count, seed)` -> samples, each batched as the example is."""
    note: str
    input_layouts: tuple[str | None, ...] = ()


def _picture(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Blobs at two scales with a contrast and brightness of their own: `[N, C, H, W]`, standardized as photos are."""
    batch, channels, height, width = shape
    coarse, fine = (
        F.interpolate(
            torch.from_numpy(rng.standard_normal((batch, channels, side, side)).astype(np.float32)),
            (height, width),
            mode="bilinear",
        ).numpy()
        for side in (4, 12)
    )
    contrast, brightness = rng.uniform(0.4, 1.6), rng.normal(0.0, 0.5, (batch, channels, 1, 1))
    noise = 0.1 * rng.standard_normal(shape)
    return (contrast * (coarse + 0.5 * fine) + brightness + noise).astype(np.float32)


def _wave(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth steps along the time axis, the last but one: `[N, frames, features]`."""
    return (0.4 * np.cumsum(rng.standard_normal(shape), axis=-2)).astype(np.float32)


def _numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _below(limit: int) -> Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]:
    """Integers from 0 to `limit - 1`."""
    return lambda rng, shape: rng.integers(0, limit, shape)


def _mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Ones, then zeros from a random length on; at least three ones."""
    lengths = rng.integers(3, shape[1] + 1, (shape[0], 1))
    return (np.arange(shape[1]) < lengths).astype(np.int64)


Part = tuple[Callable[[np.random.Generator, tuple[int, ...]], np.ndarray], tuple[int, ...]]


def _model(make: Callable[[], nn.Module], *parts: Part, note: str) -> ZooModel:
    def samples(count: int, seed: int) -> tuple[Sample, ...]:
        rng = np.random.default_rng(seed)
        return tuple(tuple(draw(rng, shape) for draw, shape in parts) for _ in range(count))

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return settle(make(), samples(16, 12345))

    layouts = tuple("NCHW" if draw is _picture else None for draw, _ in parts)
    example = tuple(torch.from_numpy(array) for array in samples(1, 0)[0])
    return ZooModel(build=build, example_inputs=example, samples=samples, note=note, input_layouts=layouts)


def settle(model: nn.Module, samples: tuple[Sample, ...]) -> nn.Module:
    """The model in eval mode, its batch normalization as after training on such samples."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0.0, 0.3)
            norm.momentum = None  # a plain mean over what it sees
        if norms:
            model.train()
            model(*(torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*samples, strict=True)))
    return model.eval()


_IMAGE: Part = (_picture, (1, 3, 32, 32))
_SMALL: Part = (_picture, (1, 3, 16, 16))
_CACHE: Part = (_numbers, (2, 1, 4, 16, 8))

ZOO: dict[str, ZooModel] = {
    "resnet18": _model(images.ResNet, _IMAGE, note="residual blocks"),
    "mobilenet_v2": _model(images.MobileNetV2, _IMAGE, note="inverted residuals, ReLU6"),
    "mobilenet_v3": _model(images.MobileNetV3, _IMAGE, note="hard-swish, hard-sigmoid, squeeze-excite"),
    "efficientnet": _model(images.EfficientNet, _IMAGE, note="swish, squeeze-excite"),
    "unet_transposed": _model(lambda: images.UNet("transposed"), _SMALL, note="transposed convolution, skips"),
    "unet_bilinear": _model(lambda: images.UNet("bilinear"), _SMALL, note="bilinear upsampling, skips"),
    "unet_nearest": _model(lambda: images.UNet("nearest"), _SMALL, note="nearest upsampling, skips"),
    "vit": _model(images.VisionTransformer, _IMAGE, note="plain torch, scaled_dot_product_attention"),
    "vit_transformers": _model(sequences.HuggingFaceVit, _IMAGE, note="transformers ViTForImageClassification"),
    "bert": _model(
        sequences.HuggingFaceBert,
        (_below(96), (1, 16)),
        (_mask, (1, 16)),
        note="transformers BertModel: int64 ids and mask",
    ),
    "gpt_step": _model(
        sequences.DecoderStep,
        (_below(64), (1, 1)),
        (_below(16), (1,)),
        _CACHE,
        _CACHE,
        note="one decoder step, KV cache in and out",
    ),
    "dscnn": _model(sequences.DsCnn, (_picture, (1, 1, 49, 10)), note="keyword spotting"),
    "crnn": _model(sequences.Crnn, (_picture, (1, 1, 20, 16)), note="convolution, bidirectional GRU"),
    "lstm": _model(sequences.LstmNet, (_wave, (1, 12, 8)), note="two-layer LSTM, two outputs"),
    "gru": _model(sequences.GruNet, (_wave, (1, 12, 8)), (_numbers, (1, 1, 16)), note="GRU, state in and out"),
    "tcn": _model(sequences.Tcn, (_numbers, (1, 4, 32)), note="dilated causal 1-D convolution"),
    "depthwise_multiplier": _model(images.DepthwiseMultiplier, _IMAGE, note="depthwise with multipliers 2 and 3"),
    "multi_io": _model(
        sequences.MultiInputOutput,
        _SMALL,
        (_numbers, (1, 6)),
        (_below(7), (1,)),
        note="three inputs, nested dict and tuple out, an integer output",
    ),
    "prelu": _model(images.PReluNet, _SMALL, note="PReLU, one slope and one a channel"),
    "groupnorm": _model(images.GroupNormNet, _SMALL, note="group and instance normalization"),
    "pixel_shuffle": _model(images.PixelShuffleNet, _SMALL, note="sub-pixel convolution"),
    "densenet": _model(images.DenseNet, _SMALL, note="dense connections, pre-activation"),
    "same_padding": _model(images.SamePaddingNet, _SMALL, note="padding='same', dilation, stride"),
}
