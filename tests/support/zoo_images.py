"""Image networks of the kinds users bring, at widths that convert in seconds; random weights, plain torch.

Every one takes `[N, C, H, W]` float32. `width` scales the channels, so that a benchmark can ask for a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "DenseNet",
    "DepthwiseMultiplier",
    "EfficientNet",
    "GroupNormNet",
    "MobileNetV2",
    "MobileNetV3",
    "PReluNet",
    "PixelShuffleNet",
    "ResNet",
    "SamePaddingNet",
    "UNet",
    "VisionTransformer",
]


def conv_bn(inner: int, outer: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias and batch normalization."""
    convolution = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outer)]


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions, with a 1x1 on the way around where the shape changes."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(inner, outer, 3, stride=stride), nn.ReLU(), *conv_bn(outer, outer, 3))
        is_same = inner == outer and stride == 1
        self.shortcut = nn.Identity() if is_same else nn.Sequential(*conv_bn(inner, outer, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet for small images (3x3 stem); `blocks` of 2, 2, 2, 2 is ResNet-18."""

    def __init__(
        self, width: int = 8, blocks: Sequence[int] = (2, 2, 2, 2), classes: int = 10, channels: int = 3
    ) -> None:
        super().__init__()
        layers = [*conv_bn(channels, width, 3), nn.ReLU()]
        inner = width
        for stage, count in enumerate(blocks):
            outer = width * 2**stage
            for block in range(count):
                layers.append(BasicBlock(inner, outer, 2 if stage and not block else 1))
                inner = outer
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


class SqueezeExcite(nn.Module):
    """Channel attention: a mean over the image, two 1x1 convolutions, a gate."""

    def __init__(self, channels: int, squeezed: int, inner: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), inner, nn.Conv2d(squeezed, channels, 1), gate
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.body(x)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-excite where given, 1x1 projection; a way around where it fits."""

    def __init__(
        self,
        inner: int,
        outer: int,
        *,
        stride: int,
        expansion: int,
        kernel: int = 3,
        activation: type[nn.Module] = nn.ReLU6,
        excite: nn.Module | None = None,
    ) -> None:
        super().__init__()
        hidden = inner * expansion
        expand = [*conv_bn(inner, hidden, 1), activation()] if expansion > 1 else []
        depthwise = [*conv_bn(hidden, hidden, kernel, stride=stride, groups=hidden), activation()]
        excited = [excite] if excite is not None else []
        self.body = nn.Sequential(*expand, *depthwise, *excited, *conv_bn(hidden, outer, 1))
        self.has_shortcut = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.has_shortcut else self.body(x)


# expansion, channels per unit of width, blocks, stride
_MOBILENET_V2 = ((1, 2, 1, 1), (6, 3, 2, 1), (6, 4, 3, 2), (6, 8, 4, 2), (6, 12, 3, 1), (6, 20, 3, 2), (6, 40, 1, 1))
_MOBILENET_V2_SHORT = ((1, 2, 1, 1), (6, 3, 2, 2), (6, 4, 2, 2))


class MobileNetV2(nn.Module):
    """MobileNetV2 with a stride-1 stem; `width=8, is_full=True` is the 2.2 M parameter one for 32x32 images."""

    def __init__(self, width: int = 4, *, is_full: bool = False, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        layers = [*conv_bn(channels, 4 * width, 3), nn.ReLU6()]
        inner = 4 * width
        for expansion, per_width, count, stride in _MOBILENET_V2 if is_full else _MOBILENET_V2_SHORT:
            for block in range(count):
                layer = InvertedResidual(inner, per_width * width, stride=1 if block else stride, expansion=expansion)
                layers.append(layer)
                inner = per_width * width
        last = 160 * width if is_full else 4 * inner
        self.features = nn.Sequential(*layers, *conv_bn(inner, last, 1), nn.ReLU6())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class MobileNetV3(nn.Module):
    """MobileNetV3-small's ingredients: hard-swish, squeeze-excite gated by hard-sigmoid, 5x5 depthwise."""

    def __init__(self, width: int = 8, classes: int = 10, channels: int = 3) -> None:
        super().__init__()

        def excite(hidden: int) -> nn.Module:
            return SqueezeExcite(hidden, max(4, hidden // 4), nn.ReLU(), nn.Hardsigmoid())

        self.features = nn.Sequential(
            *conv_bn(channels, width, 3, stride=2),
            nn.Hardswish(),
            InvertedResidual(width, width, stride=2, expansion=1, activation=nn.ReLU, excite=excite(width)),
            InvertedResidual(width, 2 * width, stride=1, expansion=4, activation=nn.ReLU),
            InvertedResidual(
                2 * width, 2 * width, stride=1, expansion=4, kernel=5, activation=nn.Hardswish, excite=excite(8 * width)
            ),
            *conv_bn(2 * width, 8 * width, 1),
            nn.Hardswish(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(8 * width, 8 * width), nn.Hardswish(), nn.Linear(8 * width, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


class EfficientNet(nn.Module):
    """EfficientNet's ingredients: swish and squeeze-excite gated by sigmoid in inverted residuals."""

    def __init__(self, width: int = 8, depth: int = 1, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        layers = [*conv_bn(channels, width, 3), nn.SiLU()]
        inner = width
        for expansion, times, kernel, stride in ((1, 1, 3, 1), (4, 2, 3, 2), (4, 3, 5, 2)):
            for block in range(depth):
                hidden = inner * expansion
                layers.append(
                    InvertedResidual(
                        inner,
                        times * width,
                        stride=1 if block else stride,
                        expansion=expansion,
                        kernel=kernel,
                        activation=nn.SiLU,
                        excite=SqueezeExcite(hidden, max(2, inner // 4), nn.SiLU(), nn.Sigmoid()),
                    )
                )
                inner = times * width
        self.features = nn.Sequential(*layers, *conv_bn(inner, 8 * width, 1), nn.SiLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8 * width, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


class UNet(nn.Module):
    """Two levels down and up with skip concatenation; `up` is `transposed`, `bilinear` or `nearest`."""

    def __init__(self, up: str, width: int = 8, classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.up = up
        self.down1 = nn.Sequential(*conv_bn(channels, width, 3), nn.ReLU())
        self.down2 = nn.Sequential(*conv_bn(width, 2 * width, 3), nn.ReLU())
        self.middle = nn.Sequential(*conv_bn(2 * width, 4 * width, 3), nn.ReLU())
        self.raise2 = self._raising(4 * width, 2 * width)
        self.up2 = nn.Sequential(*conv_bn(4 * width, 2 * width, 3), nn.ReLU())
        self.raise1 = self._raising(2 * width, width)
        self.up1 = nn.Sequential(*conv_bn(2 * width, width, 3), nn.ReLU())
        self.head = nn.Conv2d(width, classes, 1)

    def _raising(self, inner: int, outer: int) -> nn.Module:
        if self.up == "transposed":
            return nn.ConvTranspose2d(inner, outer, 2, stride=2)
        if self.up == "nearest":
            return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(inner, outer, 1))
        upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        return nn.Sequential(upsample, nn.Conv2d(inner, outer, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        middle = self.middle(F.max_pool2d(second, 2))
        second = self.up2(torch.cat([self.raise2(middle), second], 1))
        first = self.up1(torch.cat([self.raise1(second), first], 1))
        return self.head(first)


class Attention(nn.Module):
    """Multi-head self-attention by `scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block with GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches by convolution, class token, learned positions, pre-norm blocks."""

    def __init__(self, width: int = 32, depth: int = 2, heads: int = 4, side: int = 32, patch: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.positions = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width) * 0.5)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class DepthwiseMultiplier(nn.Module):
    """Depthwise convolutions that give two and three channels for each of the input's."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, groups=3),
            nn.ReLU(),
            nn.Conv2d(6, width, 1),
            nn.Conv2d(width, 3 * width, 5, stride=2, padding=2, groups=width, bias=False),
            nn.BatchNorm2d(3 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
        )
        self.head = nn.Linear(3 * width * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class PReluNet(nn.Module):
    """PReLU with one slope, and with one for each channel."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(3, width, 3), nn.PReLU(), *conv_bn(width, 2 * width, 3, stride=2))
        self.slopes = nn.PReLU(2 * width)
        with torch.no_grad():
            self.slopes.weight.uniform_(-0.2, 0.6)
        self.head = nn.Conv2d(2 * width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.slopes(self.body(x)))


class GroupNormNet(nn.Module):
    """Group normalization, and instance normalization, between convolutions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.InstanceNorm2d(2 * width, affine=True),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GroupNorm(1, 2 * width),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)).mean((2, 3)))


class PixelShuffleNet(nn.Module):
    """Super-resolution by sub-pixel convolution, added to the enlarged input."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + F.interpolate(x, scale_factor=2, mode="nearest")


class SamePaddingNet(nn.Module):
    """`padding='same'` with an even kernel and with dilation, and the uneven padding that stands for it at a stride."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.even = nn.Conv2d(3, width, 4, padding="same")
        self.dilated = nn.Conv2d(width, width, 3, padding="same", dilation=2)
        self.strided = nn.Conv2d(width, 2 * width, 3, stride=2)
        self.head = nn.Conv2d(2 * width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.dilated(torch.relu(self.even(x))))
        # TensorFlow's SAME at stride 2 on an even side: one more below and to the right. torch refuses 'same' there
        return self.head(torch.relu(self.strided(F.pad(x, (0, 1, 0, 1)))))


class DenseNet(nn.Module):
    """Blocks that read all before them: batch normalization first, behind a convolution that others read too
    (Huang et al. 2017)."""

    def __init__(self, width: int = 12, growth: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(self._block(width + growth * index, growth) for index in range(3))
        self.transition = self._block(width + growth * 3, 16)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(16, 10)

    @staticmethod
    def _block(inner: int, outer: int) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, outer, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        x = self.pool(self.transition(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
