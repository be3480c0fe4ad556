"""What a pipeline tells while it runs; the command line draws it, a test collects it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Observer", "StageEvent", "StageStatus", "silent"]


class StageStatus(StrEnum):
    STARTED = "started"
    PROGRESS = "progress"
    DONE = "done"
    CACHED = "cached"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvent:
    """One thing that happened to one stage."""

    stage: str
    status: StageStatus
    fraction: float | None = None
    """Of the stage's work, 0 to 1; None where it cannot be told."""
    text: str = ""
    seconds: float | None = None


Observer = Callable[[StageEvent], None]


def silent(event: StageEvent) -> None:
    """An observer that draws nothing."""
