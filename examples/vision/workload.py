"""Clothes or digits on small gray images: a depthwise separable network as teacher (Howard et al. 2017)."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgekit import Workload
from edgekit.demo.data import ImageData, load_images

DIGITS_SOURCE = "package scikit-learn, BSD-3-Clause; digits of Alpaydin and Kaynak 1998"


class SeparableNet(nn.Module):
    """Logits `[N, classes]` of gray images `[N, 1, H, W]`."""

    def __init__(self, *, classes: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            separable(width, 2 * width, stride=1),
            separable(2 * width, 4 * width, stride=2),
            separable(4 * width, 4 * width, stride=1),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def separable(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    """A 3x3 convolution of each channel, then a 1x1 convolution over them."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


def digits() -> ImageData:
    """scikit-learn's 1,797 digits of 8x8, every fifth held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = (bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)
    held_out = np.arange(len(images)) % 5 == 4
    return ImageData(
        train_images=images[~held_out], train_labels=labels[~held_out],
        test_images=images[held_out], test_labels=labels[held_out],
        classes=tuple("0123456789"), name="digits 8x8", source=DIGITS_SOURCE,
    )  # fmt: skip


def tensors(images: np.ndarray, labels: np.ndarray, limit: int) -> TensorDataset:
    """`[N, 1, H, W]` in 0 to 1, and labels `[N]`; at most `limit`, evenly spaced."""
    chosen = np.linspace(0, len(images) - 1, num=min(limit, len(images))).astype(np.int64)
    return TensorDataset(torch.from_numpy(images[chosen]).float().div(255)[:, None], torch.from_numpy(labels[chosen]))


def workload(data: str = "auto", limit: int = 12000) -> Workload:
    """`data`: `digits`, or what `edgekit.demo.data` takes (`auto`, `fashion-mnist`, `mnist-5k`, a path)."""
    images = digits() if data == "digits" else load_images(data)
    height, width = images.train_images.shape[1:]
    return Workload(
        name="separable-net",
        model=functools.partial(SeparableNet, classes=len(images.classes)),
        example_inputs=(torch.zeros(1, 1, height, width),),
        train=tensors(images.train_images, images.train_labels, limit),
        evaluation=tensors(images.test_images, images.test_labels, limit),
        classes=images.classes,
        data_name=images.name,
        data_source=images.source,
        input_layouts=("NCHW",),
    )
