"""What `tune` is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.errors import UserError
from edgekit.schema import near_miss

__all__ = ["RUNGS", "TuneOptions", "seconds_of"]

RUNGS = (
    "minmax",
    "ranges",
    "bias-correction",
    "per-channel",
    "keep-float",
    "int16-activations",
    "distill",
    "qat",
)
"""From the cheapest up."""
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
LEAST_BUDGET = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """A gate, a backend, and what may be spent. Raises UserError for what cannot be."""

    backend: str = "tflite"
    max_drop: float | None = None
    """Points of accuracy the int8 file may be under the teacher; 1 where no gate is given."""
    min_accuracy: float | None = None
    budget_seconds: float = 1200.0
    """Of this call; what is finished stays for the next one."""
    rungs: tuple[str, ...] = RUNGS
    calibration: int = 500
    """Samples that set ranges, from the first rung but `minmax`, which takes a fifth."""
    searched: int = 1000
    """Training samples kept apart to search on; at most a quarter of them."""
    epochs: int = 3
    """Of `distill` and of `qat`."""
    batch_size: int = 64
    device: str | None = "local"
    """Where the files are timed; None times none."""
    seed: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    """Of the workload."""
    weights: Path | None = None
    """The student: a .safetensors file or a stage folder; None: the workload's model, or the recipe's student."""
    teacher: Path | None = None
    """Likewise; None: the workload's model, or the recipe's teacher."""
    workspace: Path = Path("runs")
    output: Path | None = None
    """Folder for the file that passed."""

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop < 100:
            raise UserError(f"a drop of {self.max_drop:g} points is no gate", hint="--max-drop 1 is one point")
        if self.min_accuracy is not None and not 0 < self.min_accuracy <= 1:
            raise UserError(f"an accuracy of {self.min_accuracy:g} is no gate", hint="--min-accuracy 0.9 is 90 %")
        if self.budget_seconds < LEAST_BUDGET:
            raise UserError(
                f"a budget of {self.budget_seconds:g} s is less than one conversion takes",
                hint="give --budget 20m; finished rungs are kept, so a second call goes on where the first ended",
            )
        for name, value in (("calibration", self.calibration), ("search", self.searched), ("epochs", self.epochs)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        known = f"rungs: {', '.join(RUNGS)}"
        for name in self.rungs:
            if name not in RUNGS:
                raise UserError(f"there is no rung '{name}'; {near_miss(name, RUNGS)}", hint=known)
        if not self.rungs:
            raise UserError("no rung to climb", hint=known)


def seconds_of(text: str) -> float:
    """`90`, `90s`, `20m`, `1.5h` in seconds; raises UserError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|)\s*", text)
    if not found:
        raise UserError(f"'{text}' is not a length of time", hint="write 90s, 20m or 1.5h")
    return float(found[1]) * _UNITS[found[2]]
