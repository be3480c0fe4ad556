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
    "CalibrationFacts",
    "Delegate",
    "Effect",
    "ExtraFile",
    "Fidelity",
    "Format",
    "LineageStep",
    "MicroFacts",
    "NodeRule",
    "OpCount",
    "OutputFidelity",
    "Passport",
    "QuantizationParams",
    "RangeRule",
    "RuleAction",
    "Scheme",
    "Signature",
    "StepProof",
    "StepVerdict",
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

    @property
    def is_float(self) -> bool:
        """Whether nothing in it is an integer."""
        return self in (Scheme.FP32, Scheme.FP16)

    @property
    def is_static(self) -> bool:
        """Whether activation ranges are fixed at conversion, which needs calibration."""
        return self in (Scheme.STATIC_W8A8, Scheme.STATIC_W8A16)


class RangeRule(StrEnum):
    """How the range of an activation is found from what calibration saw of it."""

    AUTO = "auto"
    """Every rule, tensor by tensor, and the one with the best SQNR at the outputs of the model."""
    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"


class RuleAction(StrEnum):
    """What a `NodeRule` asks for."""

    FLOAT = "float"
    """Keep the op in float."""
    INT16 = "int16"
    """Give its output 16-bit activations."""
    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"


class NodeRule(Record):
    """An exception to the scheme for some ops.

    `node` is a node of the exported program (`conv2d_3`), or the path of the user's submodule (`features.3`, which
    takes in everything below it); `*` and `?` match as in a shell.
    """

    node: str
    action: RuleAction


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
    agreement: float | None = None
    """Share of equal answers: the arg max of float outputs over their classes (axis 1 of four, else the last), the
    values themselves of integer and boolean ones; None for any other output."""
    reference_rms: float | None = None
    """Root mean square of the PyTorch output, which the errors are to be seen against."""


class Fidelity(Record):
    """The artifact in its real runtime on the host, against the PyTorch model it was made from."""

    samples: int
    source: str
    """Which inputs: `calibration`, `held-out`, `example`, `random`."""
    outputs: tuple[OutputFidelity, ...]
    top1_agreement: float | None = None
    runtime: str
    """Runtime and version that executed it."""


class Effect(Record):
    """What a model is at one point of its lineage. Not measured is None.

    Down to `agreement` it is what the module in PyTorch claims; below, what its converted file is on a device
    (`StepProof` says which file and device).
    """

    parameters: int | None = None
    macs: int | None = None
    size_bytes: int | None = None
    """Of the weights as fp32."""
    accuracy: float | None = None
    """Of the module; where the proof is of a quantized file, of that file."""
    agreement: float | None = None
    nonzero_parameters: int | None = None
    samples: int | None = None
    """Evaluation inputs behind accuracy and agreement."""
    file_bytes: int | None = None
    packed_bytes: int | None = None
    """Of the file, as `edgekit pack` packs it for shipping."""
    memory_bytes: int | None = None
    """Resident at the peak, less the runtime's own."""
    latency_min_ns: int | None = None
    latency_p50_ns: int | None = None


class StepVerdict(StrEnum):
    """Whether a compression step was worth it."""

    PAID = "PAID"
    """Faster on the device; or, of a step that only trains, more accurate."""
    SIZE_ONLY = "SIZE-ONLY"
    """Smaller on disk, packed or in memory, and no faster."""
    NOT_PAID = "NOT PAID"


class StepProof(Record):
    """What a step brought on a device, measured side by side with the model before it, and whether that paid."""

    verdict: StepVerdict
    reason: str
    judged_with: tuple[str, ...] = ()
    """The steps that were judged as one: a compression and the training that recovers from it."""
    format: Format
    scheme: Scheme
    device: str
    emulated: bool = False
    speedup: float | None = None
    """Median before over median after, of the steps judged as one; None where minimum and median differ by more than
    a tenth, so that no speed-up can be stated."""
    speedup_min: float | None = None
    """As measured, of the minima."""
    speedup_p50: float | None = None
    """As measured, of the medians."""
    dropped: bool = False
    """It did not pay and was marked `keep_if_paid`: the student is the one before these steps."""


class LineageStep(Record):
    """One step that made this model: its options, seed, and the model before and after."""

    step: str
    summary: str
    options: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    before: Effect | None = None
    after: Effect | None = None
    seconds: float | None = None
    proof: StepProof | None = None


class CalibrationFacts(Record):
    """How activation ranges were found."""

    samples: int
    rule: str
    """A `RangeRule`, or `trained` for a graph that brought its ranges from quantization-aware training."""
    bias_correction: bool = False
    rules: tuple[NodeRule, ...] = ()
    """Exceptions that were asked for and applied."""
    compared: dict[str, float] = Field(default_factory=dict)
    """Each way tried, and the SQNR in dB it gave on calibration inputs; `chosen` is of the one that was used."""
    per_tensor: dict[str, int] = Field(default_factory=dict)
    """How many tensors took each rule."""


class Signature(Record):
    """One entry point of a file that has several."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    fidelity: Fidelity | None = None


class ExtraFile(Record):
    """A file that belongs to the artifact beside the model file; `path` is relative to its folder."""

    path: str
    sha256: str
    size_bytes: int


class MicroFacts(Record):
    """What the model takes on a microcontroller, measured in TensorFlow Lite Micro's interpreter on the host."""

    arena_bytes: int
    """The tensor arena the interpreter used; a 64-bit host needs a little more than a 32-bit target."""
    flash_bytes: int
    """Bytes of the model in flash; the kernels come on top."""
    kernels: tuple[str, ...]
    """The kernels to register (`AddConv2D`, …)."""
    flash_budget_bytes: int | None = None
    ram_budget_bytes: int | None = None


class Passport(Record):
    """Everything known about a model file; see the module docstring."""

    schema_version: Literal[1, 2] = 2
    """2 added everything below `conversion_peak_rss_bytes`; 1 is still read."""
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
    backend: str | None = None
    """The converter that wrote it (`tflite`, `onnx-tf`, …); None of a foreign file."""
    calibration: CalibrationFacts | None = None
    calibration_fidelity: Fidelity | None = None
    """As `fidelity`, on the calibration inputs, where `fidelity` is of held-out ones."""
    transposes: int | None = None
    """Ops that only reorder the axes of activations, run at every inference."""
    boundaries: int | None = None
    """Ops that quantize or dequantize activations, run at every inference."""
    peak_activation_bytes: int | None = None
    """The most bytes of activations that are alive at once, in the order of the file, no op in place."""
    signatures: tuple[Signature, ...] = ()
    """Every entry point, where there is more than one; `inputs` and `outputs` are of the first."""
    extra_files: tuple[ExtraFile, ...] = ()
    micro: MicroFacts | None = None


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
