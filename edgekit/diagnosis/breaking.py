"""Which layer breaks first: the criterion.

A layer breaks when the error it adds would, were it the only one, bring the model's worst output below 20 dB SQNR (60
of an fp32 file, 30 of fp16, 12 with 4-bit weights). Of several the first in graph order is named.

Its own SQNR does not decide: where one channel is large, the others can be lost at 45 dB over the whole tensor, and a
layer at 10 dB may not matter at the end. Errors that only together bring an output so low are told as such.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.artifact import Scheme
from edgekit.diagnosis.values import LayerError

__all__ = ["FLOOR_DB", "breaks", "first_break", "floor_of"]

FLOOR_DB = 20.0
_FLOORS = {Scheme.FP32: 60.0, Scheme.FP16: 30.0, Scheme.WEIGHT_W4: 12.0}


def floor_of(scheme: Scheme | None) -> float:
    """The SQNR of an output below which a file of this scheme is broken, dB."""
    return _FLOORS.get(scheme, FLOOR_DB) if scheme is not None else FLOOR_DB


def breaks(layer: LayerError, scheme: Scheme | None) -> bool:
    """The criterion of the module."""
    return bool(layer.non_finite) or (layer.alone_sqnr_db is not None and layer.alone_sqnr_db < floor_of(scheme))


def first_break(layers: Sequence[LayerError], scheme: Scheme | None, output_db: float | None) -> tuple[str | None, str]:
    """(node of the first layer that breaks or None, why that one or why none). `output_db` is of the worst output."""
    for layer in layers:
        if breaks(layer, scheme):
            return layer.node, _reason(layer)
    known = [layer for layer in layers if layer.alone_sqnr_db is not None and layer.local_sqnr_db is not None]
    if not known:
        return None, "every layer is exact" if output_db is None else "no layer breaks: the outputs are right"
    worst = min(known, key=lambda layer: layer.alone_sqnr_db or 0.0)
    told = f"the most costly is {worst.node}, whose error alone would leave {worst.alone_sqnr_db:.1f} dB"
    if output_db is None or output_db >= floor_of(scheme):
        return None, f"no layer breaks; {told}"
    return None, f"no single layer breaks, many errors add up to {output_db:.1f} dB; {told}"


def _reason(layer: LayerError) -> str:
    if layer.non_finite:
        return f"{layer.node} has {layer.non_finite} NaN or infinite values where PyTorch has none"
    told = f"{layer.node} breaks: the error it adds would by itself leave {layer.alone_sqnr_db:.1f} dB at the outputs"
    return f"{told}; {cause}" if (cause := _cause(layer)) else told


def _cause(layer: LayerError) -> str:
    """What the ranges say of it."""
    if layer.file_range is None:
        return ""
    (low, high), (seen_low, seen_high) = layer.file_range, layer.seen_range
    if layer.clipped and layer.clipped > 1e-3:
        return (
            f"{layer.clipped:.1%} of its values lie beyond what the file can hold, {low:.4g} to {high:.4g} "
            f"(it has {seen_low:.4g} to {seen_high:.4g})"
        )
    step = (high - low) / (255 if layer.dtype in ("int8", "uint8") else 65535)
    if layer.dead_channels:
        return (
            f"{layer.dead_channels} of {layer.channels} channels are one value all over: the range {low:.4g} to "
            f"{high:.4g} leaves steps of {step:.3g}"
        )
    if layer.reference_rms < 4 * step:
        return f"its values, {layer.reference_rms:.3g} in the root mean square, take few of steps of {step:.3g}"
    return ""
