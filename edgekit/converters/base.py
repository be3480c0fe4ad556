"""What a converter is: the `Converter` protocol and what it is asked for.

A conversion starts from a `torch.export` program that edgekit itself exported and wrote (never from a
`.pt2` file somebody hands in: loading one can run code). The protocol's methods run inside a child process
(`edgekit.converters.worker`); the parent only sees files and exit codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field

from edgekit.artifact import Artifact, Format, LineageStep, NodeRule, RangeRule, Scheme
from edgekit.errors import Problem
from edgekit.schema import Record

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

__all__ = ["Capability", "ConversionRequest", "Converter", "MicroBudget", "QuantizationOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One scheme a backend can or cannot write."""

    scheme: Scheme
    supported: bool
    note: str
    """How, in a few words; or why not."""
    nearest: str | None = None
    """For one that is not: what to ask for instead, `static_w8a8` or `static_w8a16 in tflite`."""


class QuantizationOptions(Record):
    """How a quantized file is made from the float one; ignored by float schemes."""

    io_dtype: Literal["int8", "float32"] = "int8"
    """For full-integer formats that let one choose: `int8` or `float32` inputs and outputs."""
    ranges: RangeRule = RangeRule.AUTO
    percentile: Annotated[float, Field(gt=50, lt=100)] = 99.99
    """Of the values calibration saw, in per cent, kept by `RangeRule.PERCENTILE` (half of the rest cut at each end)."""
    bias_correction: bool = False
    """Shift each bias by the mean error its layer's output has on calibration inputs (Nagel et al. 2019, eq. 16)."""
    rules: tuple[NodeRule, ...] = ()
    """Exceptions for some ops. A backend that cannot follow one raises UnsupportedError: none is ignored."""


class MicroBudget(Record):
    """What a microcontroller has for the model, in units of 1024 bytes; None does not judge."""

    flash_kb: Annotated[int, Field(ge=1)] | None = None
    ram_kb: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRequest:
    """Everything one conversion needs."""

    name: str
    """Shown name of the artifact."""
    program: ExportedProgram
    """Exported in eval mode. Shapes are fixed, except where `program.range_constraints` says otherwise."""
    scheme: Scheme
    backend: str = ""
    """The name the converter is registered under."""
    calibration: tuple[tuple[np.ndarray, ...], ...] = ()
    """One tuple of input arrays per sample, batched as the example inputs are; needed by static schemes."""
    verification: tuple[tuple[np.ndarray, ...], ...] = ()
    """Held-out inputs, batched likewise, for the check after conversion; calibration is used when empty."""
    output_dir: Path
    """An empty folder of the child's own; the parent renames it into place when the child succeeded."""
    lineage: tuple[LineageStep, ...] = ()
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    is_trained: bool = False
    """The program holds quantize and dequantize ops with ranges from quantization-aware training: keep them."""
    signatures: Mapping[str, ExportedProgram] = field(default_factory=dict)
    """Further entry points by name (the same model at other input sizes); `program` is the first, named `forward`.
    A backend whose format holds one entry point raises UnsupportedError when there are any."""
    micro: MicroBudget = field(default_factory=MicroBudget)
    input_layouts: tuple[str | None, ...] = field(default=())
    looks_for_ops: bool = True
    """Whether `check` goes through every op. It costs as much as a good part of a conversion: where one follows at once
    the conversion is tried, and the ops are looked through when it fails."""
    threads: int = 1
    """For calibration; more is slower on a busy machine (measured)."""
    note: Callable[[str], None] = field(default=lambda _: None)
    """Tells the parent what is being done now, where that may take minutes."""


class Converter(Protocol):
    """One backend: writes one format."""

    format: Format

    def capabilities(self) -> tuple[Capability, ...]:
        """Every scheme, supported or not; needs no toolchain installed."""

    def check(self, request: ConversionRequest) -> tuple[Problem, ...]:
        """Every obstacle to this request at once, cheaply; empty when none is known."""

    def convert(self, request: ConversionRequest) -> Artifact:
        """Write model file and passport into `request.output_dir`. Raises ConversionError, UnsupportedError."""
