"""An artifact: a model file and its passport.

The passport (`passport.json` beside the model file) is everything known about the file without running it:
what goes in and out, which ops run in which type, what stayed float and why, which tools made it, what it
was made from, and how close it came to the PyTorch model when it was checked on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from edgekit.errors import ArtifactError
from edgekit.schema import Record, read_record, sha256_of, write_atomically

__all__ = [
    "PASSPORT_NAME",
    "Artifact",
    "Delegate",
    "Effect",
    "Fidelity",
    "Format",
    "LineageStep",
    "OpCount",
    "OutputFidelity",
    "Passport",
    "QuantizationParams",
    "Scheme",
    "TensorSpec",
    "UnquantizedOp",
]

PASSPORT_NAME = "passport.json"


class Format(StrEnum):
    """A model file format, named as its toolchain is."""

    TFLITE = "tflite"
    EXECUTORCH = "executorch"
    ONNX = "onnx"

    @property
    def suffix(self) -> str:
        return {"tflite": ".tflite", "executorch": ".pte", "onnx": ".onnx"}[self.value]

    @classmethod
    def of(cls, path: Path) -> Format:
        """The format of a file by its suffix; raises ArtifactError for any other."""
        for member in cls:
            if path.suffix.lower() == member.suffix:
                return member
        raise ArtifactError(
            f"{path}: '{path.suffix or 'no suffix'}' is not a model format edgekit runs",
            hint="give a .tflite, .pte or .onnx file, or the folder of an artifact. "
            ".pt and .pt2 files can run code when loaded and are never opened",
        )


class Scheme(StrEnum):
    """A quantization scheme: `<when>_w<weight bits>[a<activation bits>]`."""

    FP32 = "fp32"
    FP16 = "fp16"
    DYNAMIC_W8 = "dynamic_w8"
    WEIGHT_W8 = "weight_w8"
    WEIGHT_W4 = "weight_w4"
    STATIC_W8A8 = "static_w8a8"
    STATIC_W8A16 = "static_w8a16"


class QuantizationParams(Record):
    """`real = (q - zero_point) * scale`; one pair per tensor, or one per slice along `axis`."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None


class TensorSpec(Record):
    """One input or output. `shape` holds a name (str) where the extent is free."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    """numpy name: `float32`, `int8`, `int64`, …"""
    layout: str | None = None
    """`NCHW`, `NHWC`, … where known."""
    quantization: QuantizationParams | None = None


class OpCount(Record):
    """`count` ops of one kind that compute in `dtype` (`int8`, `float32`, `mixed` for Q/DQ boundaries)."""

    name: str
    dtype: str
    count: Annotated[int, Field(ge=1)]
    version: int | None = None


class UnquantizedOp(Record):
    """An op of a quantized model that still computes in float, and why."""

    op: str
    where: str
    """Tensor or node name, or the user's module path where it is known."""
    reason: str


class Delegate(Record):
    """How much of the graph a delegate took: `nodes` of `total`."""

    name: str
    nodes: int
    total: int


class OutputFidelity(Record):
    """One output of the artifact against the PyTorch model on the same inputs."""

    name: str
    sqnr_db: float | None
    """10·log10(Σ ref² / Σ (ref − out)²); None when the two are equal to the bit (`exact`) or cannot be told."""
    exact: bool
    cosine: float | None
    max_abs_error: float | None
    non_finite: int


class Fidelity(Record):
    """The artifact in its real runtime on the host, against the PyTorch model it was made from."""

    samples: int
    source: str
    """Which inputs: `calibration`, `held-out`, `example`."""
    outputs: tuple[OutputFidelity, ...]
    top1_agreement: float | None = None
    runtime: str
    """Runtime and version that executed it."""


class Effect(Record):
    """What a model is at one point of its lineage. Not measured is None."""

    parameters: int | None = None
    macs: int | None = None
    size_bytes: int | None = None
    accuracy: float | None = None
    agreement: float | None = None


class LineageStep(Record):
    """One step that made this model: its options, seed, and the model before and after."""

    step: str
    summary: str
    options: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    before: Effect | None = None
    after: Effect | None = None
    seconds: float | None = None


class Passport(Record):
    """Everything known about a model file; see the module docstring."""

    schema_version: Literal[1] = 1
    name: str
    """Shown name, `student.static_w8a8.tflite` style; never used as a path."""
    format: Format
    scheme: Scheme | None
    """None where the file was not made by edgekit and the scheme could not be told."""
    file: str
    """File name of the model beside the passport."""
    sha256: str
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: tuple[OpCount, ...]
    unquantized_ops: tuple[UnquantizedOp, ...] = ()
    delegates: tuple[Delegate, ...] = ()
    parameters: int | None = None
    macs: int | None = None
    fidelity: Fidelity | None = None
    minimum_runtime: dict[str, str] = Field(default_factory=dict)
    """Runtime name to the oldest version known to load the file."""
    tool_versions: dict[str, str] = Field(default_factory=dict)
    lineage: tuple[LineageStep, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """How it was made, where that is neither a warning nor an option: `activation ranges by histogram …`."""
    conversion_seconds: float | None = None
    conversion_peak_rss_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model file on disk and its passport."""

    path: Path
    passport: Passport

    @classmethod
    def open(cls, path: Path | str) -> Artifact:
        """The artifact in a folder, or beside a model file; the file must be the one the passport names.

        Raises ArtifactError when a file is missing, the passport is unreadable, or the sha256 differs.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        if not path.exists():
            raise ArtifactError(f"{path}: no such artifact", hint="`edgekit convert` writes artifacts; check the path")
        try:
            passport = read_record(Passport, folder / PASSPORT_NAME)
        except FileNotFoundError as e:
            raise ArtifactError(f"{path}: no {PASSPORT_NAME} beside it") from e
        except (OSError, ValueError) as e:
            raise ArtifactError(f"{folder / PASSPORT_NAME}: {e}") from e
        if Path(passport.file).name != passport.file:
            raise ArtifactError(f"{folder / PASSPORT_NAME}: file '{passport.file}' is not a plain file name")
        model = folder / passport.file
        if not model.is_file():
            raise ArtifactError(f"{model}: named by its passport but not there")
        if not path.is_dir() and path.name != passport.file:
            raise ArtifactError(f"{path}: the passport beside it is of '{passport.file}'")
        if sha256_of(model) != passport.sha256:
            raise ArtifactError(
                f"{model}: not the file its passport describes (sha256 differs)",
                hint="it was changed or cut short after conversion; convert again",
            )
        return cls(path=model, passport=passport)

    @property
    def folder(self) -> Path:
        return self.path.parent

    def save_passport(self) -> None:
        """Write `passport.json` beside the model file."""
        write_atomically(self.folder / PASSPORT_NAME, self.passport.model_dump_json(indent=2) + "\n")
