"""The options of the training and compression steps, as a recipe writes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgekit.schema import Record

__all__ = ["DistillOptions", "Fraction", "PruneOptions", "TrainOptions"]

Fraction = Annotated[float, Field(gt=0, le=1)]


class TrainOptions(Record):
    """Supervised training: AdamW with a one-cycle learning rate (Smith and Topin 2018)."""

    epochs: Annotated[int, Field(ge=1)] = 3
    batch_size: Annotated[int, Field(ge=1)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    threads: Annotated[int, Field(ge=1)] | None = None
    """torch's intra-op threads; None leaves torch's own choice."""


class PruneOptions(Record):
    """Structured channel pruning by dependency groups (Fang et al. 2023, DepGraph)."""

    importance: Literal["l1", "l2", "bn_scale"] = "l2"
    macs_ratio: Fraction = 0.5
    """MACs to keep, of those before pruning."""
    exclude: tuple[str, ...] = ()
    """Module names that keep all their channels; the output layer always does."""
    round_to: Annotated[int, Field(ge=1)] = 8
    """Channel counts are multiples of this, which is what the int8 kernels like."""


class DistillOptions(TrainOptions):
    """Fine-tuning towards the teacher's responses (Hinton et al. 2015, eq. 1 and section 2).

    loss = weight · T² · KL(softmax(teacher/T) ‖ softmax(student/T)) + (1 − weight) · cross-entropy
    """

    epochs: Annotated[int, Field(ge=1)] = 2
    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.7
