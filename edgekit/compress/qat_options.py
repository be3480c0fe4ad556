"""The options of quantization-aware training, as a recipe writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from edgekit.compress.options import TrainOptions
from edgekit.schema import near_miss

if TYPE_CHECKING:
    from edgekit.recipe import DistillOptions

__all__ = ["TRAINED_BACKENDS", "QatOptions", "backend_trained_for"]

TRAINED_BACKENDS = ("executorch", "tflite", "onnx")
"""Backends with a quantizer to train with; `compress.quantize.QAT_BACKENDS` says where each is."""


_CONVERTED_ALIKE = {"tflite-micro": "tflite"}
"""Converters that take the program another backend was trained for."""


def backend_trained_for(target: str) -> str | None:
    """The backend whose trained weights the converter `target` takes; None where it takes none."""
    name = _CONVERTED_ALIKE.get(target, target)
    return name if name in TRAINED_BACKENDS else None


class QatOptions(TrainOptions):
    """Quantization-aware training (Jacob et al. 2018), once for each backend with the backend's own quantizer.

    loss = weight · T² · KL(softmax(teacher/T) ‖ softmax(student/T)) + (1 − weight) · cross-entropy
    """

    backends: tuple[str, ...] | None = None
    """None: those of the recipe's `convert.to` that can be trained for."""
    epochs: Annotated[int, Field(ge=1)] = 3
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Low: the weights are trained already and only have to fit the steps they are rounded to."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Of the teacher's responses; 0 trains on the labels alone, 1 uses no label."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    fixed_ranges: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """The last part of the training, in which the ranges stay as they are."""

    @field_validator("backends")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        if not value or len(set(value)) != len(value):
            raise ValueError("names no backend" if not value else "names a backend twice")
        for name in value:
            if name not in TRAINED_BACKENDS:
                raise ValueError(f"'{name}' cannot be trained for; {near_miss(name, TRAINED_BACKENDS)}")
        return value

    def distillation(self) -> DistillOptions:
        """What of it is response distillation."""
        from edgekit.recipe import DistillOptions

        shared = {name: getattr(self, name) for name in (*TrainOptions.model_fields, "weight", "temperature")}
        return DistillOptions.model_validate(shared)
