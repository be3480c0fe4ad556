"""The files a parent and its converting or inspecting child exchange.

    request.json              WorkRequest            parent -> child
    program.pt2               the exported program; its sha256 is in the request
    signature.<n>.pt2         further entry points, likewise
    calibration.npz           arrays s<sample>_i<input>; verification.npz likewise
    stage.txt                 `<scheme> <stage>`, replaced as the child goes on, so that a death can be placed
    result.<scheme>.json      SchemeResult           child -> parent, written when out/<scheme> is complete
    out/<scheme>/             the artifact

Numbers are base units; every file appears by rename.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from edgekit.artifact import LineageStep, Scheme
from edgekit.converters.base import MicroBudget, QuantizationOptions
from edgekit.errors import (
    ArtifactError,
    ConversionError,
    EdgekitError,
    MissingDependencyError,
    Problem,
    UnsupportedError,
)
from edgekit.schema import Record

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "SchemeResult",
    "WireError",
    "WorkRequest",
    "load_samples",
    "save_samples",
]


class WorkRequest(Record):
    """What one child does: one backend, one program, one or more schemes."""

    converter: str
    name: str
    program: str
    sha256: str
    schemes: tuple[Scheme, ...]
    has_calibration: bool = False
    has_verification: bool = False
    quantization: QuantizationOptions = QuantizationOptions()
    is_trained: bool = False
    signatures: dict[str, str] = Field(default_factory=dict)
    """Name of each further entry point to the sha256 of `signature.<index>.pt2`, in order."""
    micro: MicroBudget = MicroBudget()
    input_layouts: tuple[str | None, ...] = ()
    lineage: tuple[LineageStep, ...] = ()
    threads: int = 1
    allow_lossy: bool = False
    warnings: tuple[str, ...] = ()
    only_check: bool = False


class WireError(Record):
    """An EdgekitError on its way from the child to the parent."""

    kind: str
    message: str
    hint: str | None = None
    stage: str = "convert"
    op: str | None = None
    problems: tuple[Problem, ...] = ()
    extra: str = ""
    package: str = ""

    @classmethod
    def of(cls, error: EdgekitError) -> WireError:
        """The parts of `error` that make it again on the other side."""
        if isinstance(error, UnsupportedError):
            return cls(kind="unsupported", message=error.message, hint=error.hint, problems=error.problems)
        if isinstance(error, MissingDependencyError):
            return cls(kind="missing", message=error.message, extra=error.extra, package=error.package)
        if isinstance(error, ConversionError):
            said = error.message.removeprefix(f"{error.backend}: {error.stage}: ")
            return cls(kind="conversion", message=said, hint=error.hint, stage=error.stage, op=error.op)
        return cls(kind="artifact", message=error.message, hint=error.hint)

    def rebuilt(self, *, backend: str, stderr: str) -> EdgekitError:
        """The error, with the child's last words."""
        if self.kind == "unsupported":
            return UnsupportedError(self.problems, hint=self.hint)
        if self.kind == "missing":
            return MissingDependencyError(f"converting to {backend}", extra=self.extra, package=self.package)
        if self.kind == "artifact":
            return ArtifactError(self.message, hint=self.hint)
        return ConversionError(
            self.message, backend=backend, stage=self.stage, op=self.op, stderr=stderr, hint=self.hint
        )


class SchemeResult(Record):
    """How one scheme went; `error` is None when `out/<scheme>` holds a whole artifact."""

    scheme: Scheme
    seconds: float
    error: WireError | None = None


def save_samples(path: Path, samples: Sequence[Sequence[np.ndarray]]) -> Path:
    """`path`, with the samples in it as one `.npz` without pickles."""
    import numpy as np

    arrays = {f"s{s}_i{i}": array for s, sample in enumerate(samples) for i, array in enumerate(sample)}
    with path.open("wb") as f:
        np.savez(f, **arrays)  # type: ignore[arg-type]
    return path


def load_samples(path: Path) -> tuple[tuple[np.ndarray, ...], ...]:
    """The samples `save_samples` wrote; refuses pickled arrays."""
    import numpy as np

    samples: dict[int, dict[int, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for key in stored.files:
            sample, _, index = key[1:].partition("_i")
            samples.setdefault(int(sample), {})[int(index)] = stored[key]
    return tuple(tuple(inputs[i] for i in sorted(inputs)) for _, inputs in sorted(samples.items()))
