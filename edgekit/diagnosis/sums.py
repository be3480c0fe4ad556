"""Errors of one layer summed over samples, so that no layer's values are held for longer than one sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from edgekit.artifact import QuantizationParams

__all__ = ["LayerSums", "decibels", "integer_range"]


def decibels(signal: float, noise: float) -> float | None:
    """10·log10(signal / noise); None where either is zero or not finite."""
    if signal > 0 and noise > 0 and math.isfinite(signal) and math.isfinite(noise):
        return 10.0 * math.log10(signal / noise)
    return None


def integer_range(dtype: str, params: QuantizationParams | None) -> tuple[float, float] | None:
    """The real values at the two ends of the integers; None for a tensor that is not quantized as a whole."""
    if params is None or len(params.scale) != 1 or np.dtype(dtype).kind not in "iu":
        return None
    info = np.iinfo(dtype)
    return (info.min - params.zero_point[0]) * params.scale[0], (info.max - params.zero_point[0]) * params.scale[0]


@dataclass(slots=True)
class LayerSums:
    """Reference, value and own error of one layer, added up."""

    limits: tuple[float, float] | None
    step: float
    channel_axis: int
    signal: float = 0.0
    noise: float = 0.0
    own: float = 0.0
    held: float = 0.0
    product: float = 0.0
    count: int = 0
    non_finite: int = 0
    largest: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    clipped: int = 0
    saturated: int = 0
    is_equal: bool = True
    _seen: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, reference: np.ndarray, value: np.ndarray, own: np.ndarray) -> None:
        """Take in one sample: PyTorch's value, the file's, and the error the layer added (all of one shape)."""
        ref, val = reference.astype(np.float64), value.astype(np.float64)
        finite = np.isfinite(val) & np.isfinite(ref)
        self.non_finite += int(np.count_nonzero(np.isfinite(ref) & ~np.isfinite(val)))
        self.is_equal = self.is_equal and np.array_equal(reference, value)
        ref, val = np.where(finite, ref, 0.0), np.where(finite, val, 0.0)
        error = val - ref
        self.signal += float(np.square(ref).sum())
        self.noise += float(np.square(error).sum())
        self.own += float(np.square(np.where(finite, own, 0.0), dtype=np.float64).sum())
        self.held += float(np.square(val).sum())
        self.product += float((ref * val).sum())
        self.count += ref.size
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))
        self.low, self.high = min(self.low, float(ref.min())), max(self.high, float(ref.max()))
        if self.limits is not None:
            self._count_ends(ref, val, self.limits)
        self._see_channels(ref, val)

    def _count_ends(self, ref: np.ndarray, val: np.ndarray, limits: tuple[float, float]) -> None:
        low, high = limits
        half = self.step / 2
        self.clipped += int(np.count_nonzero((ref < low - half) | (ref > high + half)))
        for end, is_zero in ((low, abs(low) < half), (high, abs(high) < half)):
            if not is_zero:
                self.saturated += int(np.count_nonzero(np.abs(val - end) < half))

    def _see_channels(self, ref: np.ndarray, val: np.ndarray) -> None:
        if ref.ndim < 2:
            return
        axes = tuple(axis for axis in range(ref.ndim) if axis != self.channel_axis % ref.ndim)
        extremes = tuple(f(a, axis=axes) for a in (ref, val) for f in (np.min, np.max))
        self._seen = [extremes] if not self._seen else [_widened(self._seen[0], extremes)]

    def channels(self) -> tuple[int, int]:
        """(dead ones, all of them)."""
        if not self._seen:
            return 0, 0
        ref_low, ref_high, low, high = self._seen[0]
        return int(np.count_nonzero((low == high) & (ref_low != ref_high))), int(low.size)


def _widened(
    seen: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    new: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    (a, b, c, d), (e, f, g, h) = seen, new
    return np.minimum(a, e), np.maximum(b, f), np.minimum(c, g), np.maximum(d, h)
