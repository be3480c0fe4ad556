"""What a climb of the recovery ladder found."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from edgekit.diagnosis.values import Bound
from edgekit.schema import Record

__all__ = ["RungResult", "RungStatus", "TuneGate", "TuneResult"]


class RungStatus(StrEnum):
    PASSED = "passed"
    MISSED = "missed"
    """Made, and the gate does not hold on the search data."""
    REFUTED = "refuted"
    """Holds on the search data and not, or not for sure, on the evaluation data."""
    SKIPPED = "skipped"
    """Cannot be done here, or could not help."""
    FAILED = "failed"
    STOPPED = "stopped"
    """The budget ended while it was being made."""
    NOT_TRIED = "not tried"


class TuneGate(Record):
    """What the file must reach; where both are given, both."""

    max_drop_points: Annotated[float, Field(ge=0)] | None = None
    """Points of accuracy under the teacher."""
    min_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None


class RungResult(Record):
    """One rung: what it is, what it cost and what it bought."""

    name: str
    what: str
    status: RungStatus
    reason: str
    seconds: float | None = None
    """Of making it, training included, in the call that finished it."""
    was_there: bool = False
    """Made by an earlier call."""
    size_bytes: int | None = None
    latency_p50_ns: int | None = None
    sqnr_db: float | None = None
    """Worst output against the model the file was made from, on search inputs."""
    on_search: Bound | None = None
    on_evaluation: Bound | None = None
    """None where the search data had decided already."""
    artifact: str | None = None
    """Folder of the file."""


class TuneResult(Record):
    """The whole climb; `passed` names the rung it ended on."""

    schema_version: Literal[1] = 1
    workload: str
    backend: str
    gate: TuneGate
    float_accuracy: float
    """Of the float student, on the search data."""
    teacher_accuracy: float
    search_data: str
    evaluation_data: str
    evaluations: int
    """How many files were shown the evaluation data; the more, the less its interval is worth."""
    device: str | None
    rungs: tuple[RungResult, ...]
    passed: str | None
    nearest: str | None
    """The rung with the smallest drop on the search data."""
    output: str | None
    """Folder of the file that passed, where one was asked for."""
    budget_seconds: float
    seconds: float
    """Of this call."""
    stopped: str | None = None
    untimed: str | None = None
    """Why latencies are missing."""
