"""Random changes of signal batches: waveforms `[B, T]`, sensor channels `[B, C, T]`, spectrograms `[B, (C,) F, T]`.

Each sample is drawn for itself; shape and dtype are kept. Time is the last axis unless `time_axis` says otherwise
(1 for `[B, T, C]`); noise and gain are relative to each sample, so that units do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from edgekit.errors import UserError, WorkloadError
from edgekit.pretrain.augment_images import draw, require_range, require_share, where_drawn

__all__ = [
    "ChannelDrop",
    "FrequencyMask",
    "Gain",
    "Jitter",
    "Noise",
    "Permutation",
    "Scaling",
    "TimeCrop",
    "TimeMask",
    "TimeShift",
]


def _time_last(x: Tensor, axis: int, name: str) -> Tensor:
    """`x` as `[B, …, T]`; raises WorkloadError for what is no signal."""
    if x.ndim < 2 or not x.is_floating_point():
        raise WorkloadError(
            f"{name} changes signals, float [batch, …, time]; the batch is "
            f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        )
    if not -x.ndim < axis < x.ndim or axis == 0:
        raise WorkloadError(f"{name}: time_axis is {axis}, but the batch has the axes 0 (batch) to {x.ndim - 1}")
    return x.movedim(axis, -1)


def _over_time(x: Tensor, index: Tensor) -> Tensor:
    """`x` `[B, …, T]` read at `index` `[B, T]` along time, the same for every channel of a sample."""
    index = index.reshape(len(x), *[1] * (x.ndim - 2), x.shape[-1])
    return x.gather(-1, index.expand_as(x))


def _deviation(x: Tensor) -> Tensor:
    """Each sample's own standard deviation, `[B, 1, …]`."""
    return x.flatten(1).std(dim=1, correction=0).reshape(-1, *[1] * (x.ndim - 1))


def _normal(x: Tensor, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeShift:
    """The signal rolled by up to `share` of its length, either way; what leaves one end comes in at the other."""

    share: float = 0.2
    time_axis: int = -1

    def __post_init__(self) -> None:
        require_share("time_shift", "share", self.share)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        signal = _time_last(x, self.time_axis, "time_shift")
        steps = signal.shape[-1]
        reach = self.share * steps
        by = draw(x, len(x), 1, low=-reach, high=reach, generator=generator).round().long()
        index = (torch.arange(steps, device=x.device) - by) % steps
        return _over_time(signal, index).movedim(-1, self.time_axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeCrop:
    """A stretch of `scale` of the length, resampled linearly to the whole: another tempo and another part."""

    scale: tuple[float, float] = (0.6, 1.0)
    time_axis: int = -1

    def __post_init__(self) -> None:
        require_range("time_crop", "scale", self.scale)
        require_share("time_crop", "scale", self.scale[1])

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        signal = _time_last(x, self.time_axis, "time_crop")
        last = signal.shape[-1] - 1
        share = draw(x, len(x), 1, low=self.scale[0], high=self.scale[1], generator=generator)
        start = (1 - share) * draw(x, len(x), 1, generator=generator)
        place = (start + share * torch.linspace(0, 1, last + 1, device=x.device, dtype=x.dtype)) * last
        left = place.floor().long().clamp(0, last)
        part = (place - left).reshape(len(x), *[1] * (signal.ndim - 2), last + 1)
        before, after = _over_time(signal, left), _over_time(signal, (left + 1).clamp(max=last))
        return (before + part * (after - before)).movedim(-1, self.time_axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class Permutation:
    """Up to `segments` pieces of random length put in another order (Um et al. 2017)."""

    segments: int = 5
    time_axis: int = -1

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise UserError(f"permutation: segments is {self.segments}; give at least 1")

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        signal = _time_last(x, self.time_axis, "permutation")
        batch, steps = len(x), signal.shape[-1]
        count = (1 + draw(x, batch, 1, high=self.segments, generator=generator)).floor()
        cuts = draw(x, batch, self.segments - 1, high=steps, generator=generator)
        unused = torch.arange(1, self.segments, device=x.device) >= count
        cuts = cuts.masked_fill(unused, steps)
        segment = (torch.arange(steps, device=x.device)[:, None] >= cuts[:, None, :]).sum(dim=-1)
        order = draw(x, batch, self.segments, generator=generator).gather(1, segment).argsort(dim=1, stable=True)
        return _over_time(signal, order).movedim(-1, self.time_axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """Gaussian noise on every value, `deviation` of the sample's own standard deviation (Um et al. 2017)."""

    deviation: float = 0.05

    def __post_init__(self) -> None:
        if self.deviation < 0:
            raise UserError(f"jitter: deviation is {self.deviation:g}; give 0 or more")

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        _time_last(x, -1, "jitter")
        return x + self.deviation * _deviation(x) * _normal(x, tuple(x.shape), generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """White noise at a signal-to-noise ratio drawn from `snr_db`, in decibels of power."""

    snr_db: tuple[float, float] = (10.0, 40.0)
    p: float = 1.0

    def __post_init__(self) -> None:
        require_range("noise", "snr_db", self.snr_db, above=-float("inf"))
        require_share("noise", "p", self.p)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        _time_last(x, -1, "noise")
        snr = draw(x, len(x), low=self.snr_db[0], high=self.snr_db[1], generator=generator)
        amplitude = _deviation(x) * (10 ** (-snr / 20)).reshape(-1, *[1] * (x.ndim - 1))
        return where_drawn(x, x + amplitude * _normal(x, tuple(x.shape), generator), self.p, generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Each sample louder or softer by up to `decibels` of amplitude."""

    decibels: float = 6.0

    def __post_init__(self) -> None:
        if self.decibels < 0:
            raise UserError(f"gain: decibels is {self.decibels:g}; give 0 or more")

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        _time_last(x, -1, "gain")
        by = draw(x, len(x), low=-self.decibels, high=self.decibels, generator=generator)
        return x * (10 ** (by / 20)).reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Each channel of each sample times a number from N(1, `deviation`²) (Um et al. 2017)."""

    deviation: float = 0.1
    time_axis: int = -1

    def __post_init__(self) -> None:
        if self.deviation < 0:
            raise UserError(f"scaling: deviation is {self.deviation:g}; give 0 or more")

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        signal = _time_last(x, self.time_axis, "scaling")
        by = 1 + self.deviation * _normal(x, (*signal.shape[:-1], 1), generator)
        return (signal * by).movedim(-1, self.time_axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelDrop:
    """Channels set to 0 with probability `p` each, as a sensor that fails; one always stays. `[B, C, T]`."""

    p: float = 0.2
    time_axis: int = -1

    def __post_init__(self) -> None:
        require_share("channel_drop", "p", self.p)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        signal = _time_last(x, self.time_axis, "channel_drop")
        if signal.ndim != 3:
            raise WorkloadError(f"channel_drop changes [batch, channels, time]; the batch is {list(x.shape)}")
        drawn = draw(x, *signal.shape[:2], 1, generator=generator)
        kept = (drawn >= self.p) | (drawn == drawn.amax(dim=1, keepdim=True))
        return (signal * kept).movedim(-1, self.time_axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeMask:
    """`count` stretches of up to `share` of the time set to the sample's mean (SpecAugment, Park et al. 2019)."""

    share: float = 0.2
    count: int = 2
    time_axis: int = -1

    def __post_init__(self) -> None:
        require_share("time_mask", "share", self.share)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        signal = _time_last(x, self.time_axis, "time_mask")
        return _masked(signal, self.share, self.count, generator).movedim(-1, self.time_axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyMask:
    """`count` bands of up to `share` of the bins set to the sample's mean (SpecAugment, Park et al. 2019)."""

    share: float = 0.2
    count: int = 2
    frequency_axis: int = -2

    def __post_init__(self) -> None:
        require_share("frequency_mask", "share", self.share)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        if x.ndim < 3:
            raise WorkloadError(f"frequency_mask changes [batch, …, bins, time]; the batch is {list(x.shape)}")
        bins = _time_last(x, self.frequency_axis, "frequency_mask")
        return _masked(bins, self.share, self.count, generator).movedim(-1, self.frequency_axis)


def _masked(x: Tensor, share: float, count: int, generator: Generator | None) -> Tensor:
    """`x` with random stretches of its last axis at each sample's mean."""
    steps = torch.arange(x.shape[-1], device=x.device)
    hidden = torch.zeros(len(x), x.shape[-1], dtype=torch.bool, device=x.device)
    for _ in range(count):
        width = draw(x, len(x), 1, high=share * x.shape[-1] + 1, generator=generator).floor()
        start = (draw(x, len(x), 1, generator=generator) * (x.shape[-1] - width + 1)).floor()
        hidden |= (steps >= start) & (steps < start + width)
    mean = x.flatten(1).mean(dim=1).reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(hidden.reshape(len(x), *[1] * (x.ndim - 2), -1), mean, x)
