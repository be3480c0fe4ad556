"""What a tapped file is."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.artifact import QuantizationParams

__all__ = ["TapOutput", "TappedFile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TapOutput:
    """A tensor of the file that can be read among its outputs."""

    position: int
    """Among the outputs of the tapped file."""
    name: str
    """The tensor, as the float file calls it."""
    dtype: str
    """Of the tensor whose values come out, before they are dequantized: `int8`, `float32`, …"""
    quantization: QuantizationParams | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TappedFile:
    """The bytes of a model file whose outputs are the model's own, followed by others; `taps` may be any of them."""

    content: bytes
    taps: tuple[TapOutput, ...]
    own_outputs: int
    """How many outputs the model itself has."""
