"""Which layer breaks first: the criterion.

A layer breaks when all three hold:
  - its SQNR against PyTorch is below 20 dB (15 dB for schemes whose floor is lower: 4-bit weights);
  - that is at least 6 dB, half of the signal-to-noise amplitude, less than the worst of what it reads;
  - at least half of its error's power is its own: its local SQNR is at most 3 dB above its SQNR.
Of several the first in graph order is named: what comes after it may only have inherited. Sound int8 layers have 30
to 45 dB; an error that grows little by little never drops by 6 dB at one layer, and is told as such.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.artifact import Scheme
from edgekit.diagnosis.values import LayerError

__all__ = ["DROP_DB", "FLOOR_DB", "breaks", "first_break", "floor_of"]

FLOOR_DB = 20.0
DROP_DB = 6.0
OWN_DB = 3.0
_FLOORS = {Scheme.FP32: 60.0, Scheme.FP16: 30.0, Scheme.WEIGHT_W4: 12.0}


def floor_of(scheme: Scheme | None) -> float:
    """The SQNR below which a layer of a file of this scheme is suspect, dB."""
    return _FLOORS.get(scheme, FLOOR_DB) if scheme is not None else FLOOR_DB


def breaks(layer: LayerError, scheme: Scheme | None) -> bool:
    """The criterion of the module."""
    if layer.non_finite:
        return True
    if layer.sqnr_db is None or layer.local_sqnr_db is None:
        return False
    drops = layer.input_sqnr_db is None or layer.input_sqnr_db - layer.sqnr_db >= DROP_DB
    return layer.sqnr_db < floor_of(scheme) and drops and layer.local_sqnr_db <= layer.sqnr_db + OWN_DB


def first_break(layers: Sequence[LayerError], scheme: Scheme | None) -> tuple[str | None, str]:
    """(node of the first layer that breaks or None, why that one or why none)."""
    for layer in layers:
        if breaks(layer, scheme):
            return layer.node, _reason(layer)
    known = [layer for layer in layers if layer.sqnr_db is not None]
    if not known:
        return None, "every layer is exact"
    worst = min(known, key=lambda layer: layer.sqnr_db or 0.0)
    if (worst.sqnr_db or 0.0) >= floor_of(scheme):
        return None, f"no layer is below {floor_of(scheme):g} dB; the worst is {worst.node} with {worst.sqnr_db:.1f} dB"
    return None, (
        f"no single layer breaks: the error grows little by little, to {worst.sqnr_db:.1f} dB at {worst.node}"
    )


def _reason(layer: LayerError) -> str:
    if layer.non_finite:
        return f"{layer.node} has {layer.non_finite} NaN or infinite values where PyTorch has none"
    before = "exact inputs" if layer.input_sqnr_db is None else f"inputs of {layer.input_sqnr_db:.1f} dB"
    told = f"{layer.node} falls to {layer.sqnr_db:.1f} dB from {before}; its own error is {layer.local_sqnr_db:.1f} dB"
    return f"{told}: {cause}" if (cause := _cause(layer)) else told


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
    if layer.reference_rms < 4 * step:
        dead = f"; {layer.dead_channels} of {layer.channels} channels are one value" if layer.dead_channels else ""
        return f"its values, {layer.reference_rms:.3g} in the root mean square, take few of steps of {step:.3g}{dead}"
    if layer.dead_channels:
        return f"{layer.dead_channels} of {layer.channels} channels are one value all over"
    return ""
