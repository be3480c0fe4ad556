"""The options of the distillation steps, as a recipe writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from edgekit.compress.options import TrainOptions
from edgekit.schema import Record

__all__ = [
    "ArchitectureOptions",
    "AttentionOptions",
    "BornAgainOptions",
    "DistillOptions",
    "FeatureOptions",
    "RelationOptions",
    "SelfDistillOptions",
    "WeightDistillOptions",
]

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
ModuleName = Annotated[str, Field(min_length=1)]
Pairs = Annotated[dict[ModuleName, ModuleName], Field(min_length=1)]


class _PairOptions(Record):
    """Terms between modules of student and teacher; `{layer1: layer1}` is short for `{pairs: {layer1: layer1}}`."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not value or set(value) & set(cls.model_fields):
            return value
        is_short = all(isinstance(name, str) for name in value.values())
        return {"pairs": dict(value)} if is_short else value


class FeatureOptions(_PairOptions):
    """Hints (Romero et al. 2015, FitNets, eq. 3): a learned regressor of the student's feature meets the teacher's."""

    pairs: Pairs
    """Student module to teacher module."""
    weight: Positive = 1.0


class AttentionOptions(_PairOptions):
    """Attention transfer (Zagoruyko and Komodakis 2017, eq. 2): where the features are strong, not what they are."""

    pairs: Pairs
    weight: Positive = 1000.0
    """beta; 1000 is the authors' (their loss is a mean over positions)."""


class RelationOptions(_PairOptions):
    """Relational distillation (Park et al. 2019, RKD, section 3.2): distances and angles within a batch."""

    pairs: dict[ModuleName, ModuleName] = Field(default_factory=dict)
    """Empty: the outputs of both."""
    distance: NonNegative = 25.0
    angle: NonNegative = 50.0

    @model_validator(mode="after")
    def _something(self) -> RelationOptions:
        if self.distance == 0 and self.angle == 0:
            raise ValueError("distance and angle are both 0: nothing is distilled")
        return self


class DistillOptions(TrainOptions):
    """Fine-tuning towards the teacher; with nothing more said, towards its responses (Hinton et al. 2015, section 2).

    loss = weight · T² · KL(softmax(teacher/T) ‖ softmax(student/T)) + (1 − weight) · cross-entropy
    and, where given, + features + attention + relations
    """

    epochs: Annotated[int, Field(ge=1)] = 2
    temperature: Positive = 4.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.7
    features: FeatureOptions | None = None
    attention: AttentionOptions | None = None
    relations: RelationOptions | None = None
    unlabelled: bool = True
    """Learn from the workload's unlabelled data too, where it has some; its samples have no cross-entropy."""
    teacher_outputs: str | None = None
    """Instead of running the teacher: a .npy file of its outputs on the training data `[N, classes]`, or an .npz with
    the arrays `train` and `unlabelled`. Relative to the recipe."""

    @model_validator(mode="after")
    def _outputs_are_enough(self) -> DistillOptions:
        pairs = self.relations is not None and self.relations.pairs
        if self.teacher_outputs is not None and (self.features or self.attention or pairs):
            raise ValueError("teacher_outputs holds no features: features, attention and relations between modules "
                             "need the teacher itself")  # fmt: skip
        return self


class WeightDistillOptions(DistillOptions):
    """Weight distillation (Lin et al. 2021): the student's weights made from the teacher's by learned projections.

    First the projections are trained for `generator_epochs`, then the weights they give are fine-tuned for `epochs`;
    both by the loss of `distill`.
    """

    generator_epochs: Annotated[int, Field(ge=1)] = 2
    generator_learning_rate: Positive | None = None
    """None: `learning_rate`."""
    layers: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Student module to the teacher module or modules it is made from; the others are matched by name and kind."""
    exclude: tuple[str, ...] = ()
    """Student modules that are learned from their own initial weights instead."""

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> WeightDistillOptions:
        if self.warmup_epochs >= self.generator_epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs:g}; it must be less than generator_epochs too")
        return self


class BornAgainOptions(DistillOptions):
    """Born-again networks (Furlanello et al. 2018): each generation is taught by the one before, from new weights."""

    generations: Annotated[int, Field(ge=1, le=20)] = 1
    epochs: Annotated[int, Field(ge=1)] = 3
    temperature: Positive = 1.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _teaches_itself(self) -> BornAgainOptions:
        if self.teacher_outputs is not None:
            raise ValueError("teacher_outputs: a generation is taught by the one before, not by stored outputs")
        return self


class SelfDistillOptions(TrainOptions):
    """Deep supervision by the model's own exits (Zhang et al. 2019, "Be your own teacher", section 3).

    Every exit has a head of its own while training: cross-entropy · (1 − weight) + KL to the output · weight, and
    `hint` · the squared distance of its feature to that of `deepest`. The heads are no part of the student.
    """

    exits: Annotated[tuple[str, ...], Field(min_length=1)]
    """Modules whose outputs get a head."""
    deepest: str | None = None
    """The module whose output the exits' features are drawn to; None for no hint."""
    temperature: Positive = 3.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.3
    """alpha: the output's share in teaching an exit."""
    hint: NonNegative = 0.03
    """lambda."""


class ArchitectureOptions(Record):
    """From here on the student is the workload's own `student` instead of a copy of the teacher."""

    weights: Literal["own", "fresh"] = "own"
    """Its own weights where it is a module and new ones where it is a factory, or new ones in any case."""
