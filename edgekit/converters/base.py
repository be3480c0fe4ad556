"""What a converter is: the `Converter` protocol and what it is asked for.

A conversion starts from a `torch.export` program that edgekit itself exported and wrote (never from a
`.pt2` file somebody hands in: loading one can run code). The protocol's methods run inside a child process
(`edgekit.converters.worker`); the parent only sees files and exit codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekit.artifact import Artifact, Format, LineageStep, Scheme
from edgekit.errors import Problem

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

__all__ = ["Capability", "ConversionRequest", "Converter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One scheme a backend can or cannot write."""

    scheme: Scheme
    supported: bool
    note: str
    """How, in a few words; or why not and the nearest scheme that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRequest:
    """Everything one conversion needs."""

    name: str
    """Shown name of the artifact."""
    program: ExportedProgram
    """Exported in eval mode with fixed shapes."""
    scheme: Scheme
    calibration: tuple[tuple[np.ndarray, ...], ...] = ()
    """One tuple of input arrays per sample, batched as the example inputs are; needed by static schemes."""
    verification: tuple[tuple[np.ndarray, ...], ...] = ()
    """Held-out inputs, batched likewise, for the check after conversion; calibration is used when empty."""
    output_dir: Path
    """An empty folder of the child's own; the parent renames it into place when the child succeeded."""
    lineage: tuple[LineageStep, ...] = ()
    io_dtype: str = "int8"
    """For full-integer formats that let one choose: `int8` or `float32` inputs and outputs."""
    input_layouts: tuple[str | None, ...] = field(default=())
    threads: int = 1
    """For calibration; more is slower on a busy machine (measured)."""


class Converter(Protocol):
    """One backend: writes one format."""

    format: Format

    def capabilities(self) -> tuple[Capability, ...]:
        """Every scheme, supported or not; needs no toolchain installed."""

    def check(self, request: ConversionRequest) -> tuple[Problem, ...]:
        """Every obstacle to this request at once, cheaply; empty when none is known."""

    def convert(self, request: ConversionRequest) -> Artifact:
        """Write model file and passport into `request.output_dir`. Raises ConversionError, UnsupportedError."""
