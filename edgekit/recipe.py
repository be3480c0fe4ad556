"""The recipe: one YAML file that says what to do, and the values it is read into.

    schema_version: 1
    name: fashion-mnist
    workload: workload.py:workload
    teacher: {train: {epochs: 3}}
    student:
      - prune: {macs_ratio: 0.4}
      - distill: {epochs: 2}
    convert: {to: [tflite, executorch, onnx], schemes: [fp32, static_w8a8]}
    devices: [local, {spec: "board:amd64", required: false}]
    gates: {max_accuracy_drop_pp: 2.0}

Unknown keys are errors that name the nearest known one; every error names its line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from edgekit.artifact import Format, RangeRule, RuleAction, Scheme
from edgekit.benchmarks.values import Gates, Plan
from edgekit.compress.options import TrainOptions
from edgekit.compress.proof_options import ProofOptions
from edgekit.compress.prune_options import LowRankOptions, PruneOptions
from edgekit.compress.qat_options import QatOptions, backend_trained_for
from edgekit.compress.weight_options import ShareOptions, SparsifyOptions
from edgekit.converters.registry import CONVERTERS
from edgekit.distill.options import (
    ArchitectureOptions,
    BornAgainOptions,
    DistillOptions,
    SelfDistillOptions,
    WeightDistillOptions,
)
from edgekit.errors import RecipeError
from edgekit.pretrain.options import PretrainOptions
from edgekit.schema import Record, near_miss
from edgekit.sensing.options import SenseOptions
from edgekit.yaml_file import YamlError, read_yaml, record_of

__all__ = [
    "ConvertOptions",
    "DeviceEntry",
    "DistillOptions",
    "LowRankOptions",
    "ProofOptions",
    "PruneOptions",
    "Recipe",
    "Step",
    "TeacherOptions",
    "TrainOptions",
    "load_recipe",
]

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


class Step(Record):
    """One compression step: exactly one method, with its options; a new method is a field here and an entry in
    `compress.steps.METHODS`."""

    prune: PruneOptions | None = None
    low_rank: LowRankOptions | None = None
    architecture: ArchitectureOptions | None = None
    distill: DistillOptions | None = None
    weight_distill: WeightDistillOptions | None = None
    born_again: BornAgainOptions | None = None
    self_distill: SelfDistillOptions | None = None
    finetune: TrainOptions | None = None
    qat: QatOptions | None = None
    sense: SenseOptions | None = None
    sparsify: SparsifyOptions | None = None
    share: ShareOptions | None = None

    keep_if_paid: bool = False
    """Drop the step (and what is judged with it) from the student where it did not pay; needs `proof`."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        named = self.model_fields_set - {"keep_if_paid"}
        if sum(getattr(self, name) is not None for name in self.methods()) != 1 or len(named) != 1:
            known = ", ".join(f"'{name}'" for name in self.methods())
            raise ValueError(f"a step is one of {known}, with its options ({{}} for the defaults)")
        return self

    @classmethod
    def methods(cls) -> tuple[str, ...]:
        """Every method there is, by its key."""
        return tuple(name for name in cls.model_fields if name != "keep_if_paid")

    @property
    def kind(self) -> str:
        return next(name for name in self.methods() if getattr(self, name) is not None)

    @property
    def options(self) -> Record:
        value: Record = getattr(self, self.kind)
        return value


class TeacherOptions(Record):
    """How the teacher comes by its weights: pretrained and trained, trained, or from a file."""

    pretrain: PretrainOptions | None = None
    """Before `train`: on the inputs of `unlabelled` data, or of the training data, without labels."""
    train: TrainOptions | None = None
    weights: str | None = None
    """A .safetensors file, relative to the recipe."""

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.train is not None and self.weights is not None:
            raise ValueError("give either 'train' or 'weights', not both")
        if self.pretrain is not None and self.train is None:
            raise ValueError("'pretrain' teaches no classes; give 'train' as well, with its options")
        return self


class ConvertOptions(Record):
    """Which artifacts to make."""

    to: tuple[str, ...] = ("tflite", "executorch", "onnx")
    """Converters by name; `edgekit converters` lists them."""
    schemes: tuple[Scheme, ...] = (Scheme.FP32, Scheme.STATIC_W8A8)
    calibration: Annotated[int, Field(ge=1)] = 200
    """Samples used to set activation ranges."""
    verification: Annotated[int, Field(ge=1)] = 200
    """Held-out samples of the check after conversion."""
    io_dtype: Literal["int8", "float32"] = "int8"
    ranges: RangeRule = RangeRule.AUTO
    percentile: Annotated[float, Field(gt=50, lt=100)] = 99.99
    bias_correction: bool = False
    rules: dict[str, RuleAction] = Field(default_factory=dict)
    """Exceptions: a node or submodule, and what to do with it (`{features.0: float}`)."""
    input_layout: Literal["nchw", "nhwc"] | None = None
    flash_kb: Annotated[int, Field(ge=1)] | None = None
    ram_kb: Annotated[int, Field(ge=1)] | None = None
    """What a microcontroller has for model and arena; judged by the tflite-micro converter."""
    jobs: Annotated[int, Field(ge=1)] = 2
    timeout_seconds: Annotated[float, Field(gt=0)] = 900.0
    memory_mb: Annotated[int, Field(ge=64)] | None = None
    allow_lossy: bool = False

    @field_validator("to")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = CONVERTERS.names()
        for name in value:
            if name not in known:
                raise ValueError(f"unknown value '{name}'; {near_miss(name, known)}")
        return value

    @field_validator("to", "schemes")
    @classmethod
    def _no_repeats(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("must name at least one")
        if len(set(value)) != len(value):
            raise ValueError("names something twice")
        return value


class DeviceEntry(Record):
    """A device to measure on; a plain string in the YAML is one that is required."""

    spec: str
    required: bool = True
    """False: when it cannot be had the run says so and goes on."""


class Recipe(Record):
    """A whole recipe, defaults resolved."""

    schema_version: Literal[1] = 1
    name: str
    title: str | None = None
    workload: str
    params: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    seed: int = 0
    teacher: TeacherOptions = TeacherOptions()
    student: tuple[Step, ...] = ()
    convert: ConvertOptions = ConvertOptions()
    baseline: Format | None = Format.ONNX
    """The teacher is converted to this in fp32 and measured beside its students; null for none."""
    devices: tuple[DeviceEntry, ...] = (DeviceEntry(spec="local"),)
    plan: Plan = Plan()
    gates: Gates = Gates()
    proof: ProofOptions | None = None
    """Whether each step paid, by converting and timing the student before and after it; null measures none of it."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not NAME.match(value):
            raise ValueError("must be letters, digits, '.', '_' or '-', at most 64, not starting with a sign")
        return value

    @model_validator(mode="after")
    def _qat_is_last(self) -> Self:
        kinds = [step.kind for step in self.student]
        if "qat" in kinds[:-1]:
            after = kinds[kinds.index("qat") + 1]
            raise ValueError(f"student: 'qat' must be the last step; '{after}' behind it would change what it trained")
        if "qat" in kinds and "sense" in kinds:
            raise ValueError("student: 'qat' cannot follow 'sense': what ships then is only a part of the student")
        if "qat" in kinds and not self.trained_backends:
            raise ValueError(f"student: 'qat' can train for none of convert.to: {', '.join(self.convert.to)}")
        return self

    @model_validator(mode="after")
    def _kept_steps_are_proved(self) -> Self:
        if self.proof is None and any(step.keep_if_paid for step in self.student):
            raise ValueError("student: keep_if_paid needs to know whether the step paid; add 'proof: {}'")
        return self

    @property
    def trained_backends(self) -> tuple[str, ...]:
        """The backends a `qat` step without `backends` trains for."""
        found = (backend_trained_for(target) for target in self.convert.to)
        return tuple(dict.fromkeys(backend for backend in found if backend is not None))

    @field_validator("devices", mode="before")
    @classmethod
    def _plain_strings(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple({"spec": v} if isinstance(v, str) else v for v in value)
        return value

    @field_validator("devices")
    @classmethod
    def _some_device(cls, value: tuple[DeviceEntry, ...]) -> tuple[DeviceEntry, ...]:
        specs = [entry.spec for entry in value]
        if len(set(specs)) != len(specs):
            raise ValueError("names a device twice")
        return value


def load_recipe(path: Path, *, overrides: Mapping[tuple[str, ...], Any] | None = None) -> Recipe:
    """The recipe in a YAML file; raises RecipeError with every problem, its line and the nearest known name.

    `overrides` replaces values by their place, `("teacher", "train", "epochs")`, before anything is checked.
    """
    try:
        document = read_yaml(path)
    except FileNotFoundError as e:
        raise RecipeError(f"{path}: no such recipe", hint="`edgekit init DIR` writes one to start from") from e
    except IsADirectoryError as e:
        raise RecipeError(f"{path}: is a folder", hint=f"did you mean {path / 'recipe.yaml'}?") from e
    except (OSError, YamlError) as e:
        raise RecipeError(f"{path}: {e}") from e
    if not isinstance(document.value, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, not {type(document.value).__name__}")
    for place, value in (overrides or {}).items():
        _override(document.value, place, value)
    version = document.value.get("schema_version", 1)
    if version != 1:
        raise RecipeError(
            f"{path}:{document.line_of(('schema_version',))}: schema_version {version!r}; this edgekit reads 1",
            hint="upgrade edgekit, or write the recipe in version 1",
        )
    try:
        return record_of(Recipe, document, path)
    except YamlError as e:
        raise RecipeError(str(e)) from e


def _override(document: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    """Set one value in the YAML document; parts of `place` that are numbers index lists."""
    spot: Any = document
    for part, following in zip(place, (*place[1:], None), strict=True):
        key: Any = int(part) if isinstance(spot, list) and part.isdigit() else part
        if isinstance(spot, list) and (not isinstance(key, int) or key >= len(spot)):
            raise RecipeError(f"--set {'.'.join(place)}: the recipe has no item '{part}' there")
        if not isinstance(spot, dict | list):
            raise RecipeError(f"--set {'.'.join(place)}: '{part}' is inside a plain value")
        if following is None:
            spot[key] = value
            return
        if isinstance(spot, dict) and spot.get(key) is None:
            spot[key] = {}
        spot = spot[key]
