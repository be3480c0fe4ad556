"""What the structured part measures on: CIFAR ResNet-56 with its data, and the two networks of bench_networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from compression_bench._shared import moved

__all__ = ["CifarResNet", "Split", "cifar_split", "jittered", "pretrained_resnet56", "shifted"]


class CifarBlock(nn.Module):
    """He et al. 2016's block for CIFAR; option A: the way around is subsampled and padded with zero channels."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.stride, self.missing = stride, (outer - inner) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.missing, self.missing))
        return functional.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet of `6 * blocks + 2` layers for 32x32 images; the names of akamaster/pytorch_resnet_cifar10's weights."""

    def __init__(self, blocks: int = 9, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                *(CifarBlock(inner if not b else outer, outer, stride if not b else 1) for b in range(blocks))
            )
            for inner, outer, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def pretrained_resnet56(models: Path) -> nn.Module:
    """ResNet-56 with the weights of shared/models, in channels-last memory, where torch trains it faster."""
    module = CifarResNet()
    module.load_state_dict(load_file(models / "cifar10_resnet56.safetensors"))
    return module.to(memory_format=torch.channels_last).eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Images `float32 [N, 3, 32, 32]` with labels, as edgekit's data sets."""

    train: TensorDataset
    test: TensorDataset


def cifar_split(data: Path, train: int) -> Split:
    """The first `train` training images of CIFAR-10 (the file is shuffled), and all test images."""
    from bench_networks import load_images

    images = load_images(data / "cifar10")
    return Split(
        train=dataset(images.train[:train], images.train_labels[:train]), test=dataset(images.test, images.test_labels)
    )


def dataset(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    """A TensorDataset in channels-last memory."""
    values = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    return TensorDataset(values, torch.from_numpy(np.ascontiguousarray(labels)).long())


def jittered(images: Tensor) -> Tensor:
    """Shifted by up to 4 pixels (zeros come in) and half of them mirrored: He et al. 2016's augmentation, by batch."""
    shifted = moved(images, 4)
    mirrored = torch.rand(len(images)) < 0.5
    shifted = torch.where(mirrored[:, None, None, None], shifted.flip(3), shifted)
    return shifted.contiguous(memory_format=torch.channels_last)


def shifted(images: Tensor) -> Tensor:
    """Shifted by up to 2 pixels, one shift a batch; the border's value comes in (digits must not be mirrored)."""
    return moved(images, 2, mode="replicate").contiguous(memory_format=torch.channels_last)
