"""Random changes of image batches `[B, C, H, W]` float, each sample drawn for itself; shape and dtype are kept.

No value is clamped: a batch may have been normalised to any range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Generator, Tensor

from edgekit.errors import UserError, WorkloadError

__all__ = [
    "ColorJitter",
    "GaussianBlur",
    "HorizontalFlip",
    "RandomAffine",
    "RandomGrayscale",
    "RandomResizedCrop",
    "draw",
    "require_range",
    "require_share",
    "where_drawn",
]

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601's weights of red, green and blue."""
# Rows give Y, I and Q (NTSC 1953); hue is an angle in the plane of I and Q.
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def draw(x: Tensor, *shape: int, low: float = 0.0, high: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform numbers of `shape` in `[low, high)` on the device and of the dtype of `x`."""
    return low + (high - low) * torch.rand(shape, generator=generator, device=x.device, dtype=x.dtype)


def where_drawn(x: Tensor, changed: Tensor, p: float, generator: Generator | None) -> Tensor:
    """`changed` for a share `p` of the samples, `x` for the others."""
    if p >= 1:
        return changed
    chosen = draw(x, len(x), generator=generator) < p
    return torch.where(chosen.reshape(-1, *[1] * (x.ndim - 1)), changed, x)


def require_images(x: Tensor, name: str) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise WorkloadError(
            f"{name} changes images, float [batch, channels, height, width]; the batch is "
            f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}",
            hint="signals take time_shift, jitter, scaling, …; token batches take none",
        )


def require_share(name: str, field: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name}: {field} is {value:g}; a share is between 0 and 1")


def require_range(name: str, field: str, value: tuple[float, float], *, above: float = 0.0) -> None:
    if not above < value[0] <= value[1]:
        raise UserError(f"{name}: {field} is {value[0]:g} to {value[1]:g}; give two numbers above {above:g}, in order")


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomResizedCrop:
    """A crop of random area and aspect ratio, resized back bilinearly (Szegedy et al. 2015; SimCLR, appendix A)."""

    scale: tuple[float, float] = (0.2, 1.0)
    """Share of the area that is kept."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width to height of the crop, drawn uniformly in its logarithm."""

    def __post_init__(self) -> None:
        require_range("random_resized_crop", "scale", self.scale)
        require_range("random_resized_crop", "ratio", self.ratio)
        require_share("random_resized_crop", "scale", self.scale[1])

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        require_images(x, "random_resized_crop")
        batch, _, height, width = x.shape
        area = draw(x, batch, low=self.scale[0], high=self.scale[1], generator=generator)
        low, high = (math.log(r) for r in self.ratio)
        ratio = draw(x, batch, low=low, high=high, generator=generator).exp() * (height / width)
        wide, tall = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
        # Boxes in affine_grid's coordinates, where the image spans -1 to 1.
        across = (1 - wide) * draw(x, batch, low=-1, generator=generator)
        down = (1 - tall) * draw(x, batch, low=-1, generator=generator)
        zero = torch.zeros_like(wide)
        boxes = torch.stack([wide, zero, across, zero, tall, down], dim=1).reshape(batch, 2, 3)
        grid = F.affine_grid(boxes, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomAffine:
    """The image turned, moved and sheared a little, bilinearly; what comes in is the border repeated."""

    degrees: float = 15.0
    """Turned, and sheared, by up to so much either way."""
    translate: float = 0.1
    """Moved by up to this share of height and width."""

    def __post_init__(self) -> None:
        if not 0 <= self.degrees < 180:
            raise UserError(f"random_affine: degrees is {self.degrees:g}; give 0 or more, under 180")
        require_share("random_affine", "translate", self.translate)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        require_images(x, "random_affine")
        reach = math.radians(self.degrees)
        turn, shear = (draw(x, len(x), low=-reach, high=reach, generator=generator) for _ in range(2))
        # affine_grid's coordinates span 2 over each side, so a share of the side is twice that.
        across, down = (
            draw(x, len(x), low=-2 * self.translate, high=2 * self.translate, generator=generator) for _ in range(2)
        )
        aspect = x.shape[-1] / x.shape[-2]
        rows = [
            turn.cos(), (shear - turn.sin()) / aspect, across,
            turn.sin() * aspect, turn.cos(), down,
        ]  # fmt: skip
        grid = F.affine_grid(torch.stack(rows, dim=1).reshape(-1, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HorizontalFlip:
    """Left and right exchanged in a share `p` of the samples; leave it out where orientation is meaning (digits)."""

    p: float = 0.5

    def __post_init__(self) -> None:
        require_share("horizontal_flip", "p", self.p)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        require_images(x, "horizontal_flip")
        return where_drawn(x, x.flip(-1), self.p, generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, in this order (SimCLR, appendix A; strength 0.5 as on CIFAR-10).

    Factors are uniform in `[1 - v, 1 + v]`; hue turns the colours in YIQ space by up to `hue` of a full turn. Batches
    that are not RGB (3 channels) get brightness and contrast alone.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 0.8

    def __post_init__(self) -> None:
        for field in ("brightness", "contrast", "saturation", "hue", "p"):
            require_share("color_jitter", field, getattr(self, field))

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        require_images(x, "color_jitter")
        changed = x * self._factors(x, self.brightness, generator)
        mean = _gray(changed).mean(dim=(1, 2, 3), keepdim=True)
        changed = mean + (changed - mean) * self._factors(x, self.contrast, generator)
        if x.shape[1] == 3:
            gray = _gray(changed)
            changed = gray + (changed - gray) * self._factors(x, self.saturation, generator)
            changed = self._turned(changed, generator)
        return where_drawn(x, changed, self.p, generator)

    @staticmethod
    def _factors(x: Tensor, strength: float, generator: Generator | None) -> Tensor:
        return draw(x, len(x), 1, 1, 1, low=1 - strength, high=1 + strength, generator=generator)

    def _turned(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Colours turned about the axis of grays; the luminance stays."""
        angle = 2 * math.pi * draw(x, len(x), low=-self.hue, high=self.hue, generator=generator)
        to_yiq = x.new_tensor(YIQ)
        turn = torch.zeros(len(x), 3, 3, dtype=x.dtype, device=x.device)
        turn[:, 0, 0] = 1
        turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
        turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
        return torch.einsum("bij,bjhw->bihw", torch.linalg.inv(to_yiq) @ turn @ to_yiq, x)


def _gray(x: Tensor) -> Tensor:
    """Luminance `[B, 1, H, W]` of RGB, the mean over channels of anything else."""
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    return (x * x.new_tensor(LUMA).reshape(1, 3, 1, 1)).sum(dim=1, keepdim=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomGrayscale:
    """Colour taken from a share `p` of the samples (SimCLR, appendix A); nothing to do where channels are not 3."""

    p: float = 0.2

    def __post_init__(self) -> None:
        require_share("random_grayscale", "p", self.p)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        require_images(x, "random_grayscale")
        return x if x.shape[1] != 3 else where_drawn(x, _gray(x).expand_as(x), self.p, generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianBlur:
    """A Gaussian of random width (SimCLR, appendix A): sigma in pixels, kernel a tenth of the shorter side."""

    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5

    def __post_init__(self) -> None:
        require_range("gaussian_blur", "sigma", self.sigma)
        require_share("gaussian_blur", "p", self.p)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        require_images(x, "gaussian_blur")
        radius = max(1, round(min(x.shape[-2:]) / 20))
        sigma = draw(x, len(x), 1, low=self.sigma[0], high=self.sigma[1], generator=generator)
        taps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
        weights = torch.softmax(-(taps**2) / (2 * sigma**2), dim=1)
        blurred = _weighted_shifts(_weighted_shifts(x, weights, radius), weights, radius)
        return where_drawn(x, blurred, self.p, generator)


def _weighted_shifts(x: Tensor, weights: Tensor, radius: int) -> Tensor:
    """`x` filtered along its last axis by each sample's `weights` `[B, taps]`; the last two axes come out exchanged."""
    width = x.shape[-1]
    padded = F.pad(x, (radius, radius, 0, 0), mode="replicate")
    total = torch.zeros_like(x)
    for tap in range(weights.shape[1]):
        total = total + weights[:, tap].reshape(-1, 1, 1, 1) * padded[..., tap : tap + width]
    return total.transpose(-1, -2)
