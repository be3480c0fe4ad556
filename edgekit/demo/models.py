"""The demo's teacher: a small residual CNN for gray images."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

__all__ = ["SmallResNet"]


def conv_bn(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution and batch norm, `[N, inputs, H, W]` to `[N, outputs, H/stride, W/stride]`."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016); shape kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn(channels, channels)
        self.second = conv_bn(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class SmallResNet(nn.Module):
    """Logits `[N, classes]` of gray images `[N, 1, H, W]`; 8.3 MMAC and 118 k parameters on 28x28.

    The stem halves the resolution at once: most of the time of a CNN on small images goes into its first layers.
    """

    def __init__(
        self, *, height: int = 28, width: int = 28, classes: int = 10, channels: tuple[int, int] = (32, 64)
    ) -> None:
        super().__init__()
        low, high = channels
        self.stem = conv_bn(1, low, kernel=5, stride=2)
        self.block1 = ResidualBlock(low)
        self.down = conv_bn(low, high, stride=2)
        self.block2 = ResidualBlock(high)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(high * _after_stages(height) * _after_stages(width), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(F.relu(self.stem(x)))
        x = self.block2(F.relu(self.down(x)))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


def _after_stages(extent: int) -> int:
    """The extent after two convolutions of stride 2 (rounding up) and a pooling by 2 (rounding down)."""
    halved = -(-extent // 2)
    return -(-halved // 2) // 2
