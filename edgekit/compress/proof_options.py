"""How a recipe proves that its steps paid."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgekit.artifact import Scheme
from edgekit.schema import Record

__all__ = ["ProofOptions"]


class ProofOptions(Record):
    """The student before and after each step is converted to one format and timed side by side on one device.

    Off unless a recipe asks for it: it costs a conversion a step and some seconds on the device, which training a
    student again and again should not have to pay.
    """

    format: Literal["tflite", "executorch", "onnx"] = "tflite"
    scheme: Scheme = Scheme.FP32
    """Of the files compared; those of `qat` are static_w8a8 whatever this is."""
    device: str = "local"
    rounds: Annotated[int, Field(ge=1, le=20)] = 3
    """Turns of before and after."""
    max_accuracy_drop_pp: Annotated[float, Field(ge=0)] = 1.0
    """Points of accuracy a compression and the training that follows it may cost together."""
