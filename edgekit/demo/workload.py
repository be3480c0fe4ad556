"""The demo's workload: a small CNN on real images from a package (see `edgekit.demo.data`)."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch.utils.data import TensorDataset

from edgekit.demo.data import ImageData, load_images
from edgekit.demo.models import SmallResNet
from edgekit.errors import WorkloadError
from edgekit.workload import Workload

__all__ = ["workload"]

SMALLEST = 8
"""Pixels a side that survive the network's three halvings."""


def workload(data: str = "auto", limit: int | None = None) -> Workload:
    """The demo's Workload on `data` (`auto`, `fashion-mnist`, `mnist-5k`, or a path); `limit` caps both splits."""
    images = load_images(data)
    height, width = images.train_images.shape[1:]
    if min(height, width) < SMALLEST:
        raise WorkloadError(f"{images.name}: images of {height}x{width}; the demo's model needs {SMALLEST}x{SMALLEST}")
    if limit is not None and limit < 1:
        raise WorkloadError(f"limit is {limit}; give at least 1 sample")
    mean, deviation = _statistics(images)
    model = functools.partial(SmallResNet, height=height, width=width, classes=len(images.classes))
    return Workload(
        name="small-resnet",
        model=model,
        example_inputs=(torch.zeros(1, 1, height, width),),
        train=_tensors(images.train_images, images.train_labels, mean, deviation, limit),
        evaluation=_tensors(images.test_images, images.test_labels, mean, deviation, limit),
        classes=images.classes,
        data_name=images.name,
        data_source=images.source,
        input_layouts=("NCHW",),
    )


def _statistics(images: ImageData) -> tuple[float, float]:
    """Mean and standard deviation of the training pixels, in 0 to 1."""
    pixels = images.train_images.astype(np.float32) / 255
    return float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64)) or 1.0


def _tensors(
    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    mean: float,
    deviation: float,
    limit: int | None,
) -> TensorDataset:
    """`[N, 1, H, W]` float32 with zero mean and unit deviation, and labels `[N]`; evenly spaced when limited."""
    chosen = np.arange(len(images))
    if limit is not None and limit < len(images):
        chosen = np.linspace(0, len(images) - 1, num=limit).astype(np.int64)
    pixels = torch.from_numpy(images[chosen]).float().div_(255).sub_(mean).div_(deviation)
    return TensorDataset(pixels.unsqueeze(1), torch.from_numpy(labels[chosen]))
