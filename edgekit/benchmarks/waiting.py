"""Waiting for a detached job: one small read per look, and what to do about a runner that fell silent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from edgekit.benchmarks.devices.base import Completed, Deadline, Device
from edgekit.benchmarks.values import RunStatus
from edgekit.errors import DeviceLost
from edgekit.schema import Record, parse_json

__all__ = ["Died", "Progress", "Start", "read_progress", "wait_until_done"]

log = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 0.3
"""Also bounds how long Ctrl-C waits."""
_SILENCE_SECONDS = 4.0
"""A runner beats every second; after this long without a beat its process is asked for."""
_RESTARTS = 3
_COMMAND_SECONDS = 30.0
_MAX_PROGRESS_BYTES = 64 * 1024


class Progress(Record):
    """`progress.json` of a runner; see `edgekit.runtimes.runner`."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    job: Annotated[str, Field(max_length=200)]
    boot_id: Annotated[str, Field(max_length=200)] | None = None
    beat: Annotated[int, Field(ge=0, le=2**53)]
    state: Literal["running", "done"]
    phase: Annotated[str, Field(max_length=64)]
    done: Annotated[int, Field(ge=0, le=10_000)]
    total: Annotated[int, Field(ge=0, le=10_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """A job that will not give a result, and why."""

    status: RunStatus
    error: str


@dataclass(frozen=True, slots=True)
class Start:
    """What starts a job, and starts it again under another name for the same folder."""

    name: str
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        """The name of the first start and of each restart, in order."""
        return (self.name, *(f"{self.name}-r{n}" for n in range(1, _RESTARTS + 1)))


def read_progress(device: Device, name: str, deadline: Deadline) -> Progress | None:
    """What the runner last said; None where it has said nothing (or nothing that can be read)."""
    done = _asked(device, name, ["cat", str(device.job_dir(name) / "progress.json")], deadline)
    if done.returncode != 0:
        return None
    try:
        return Progress.model_validate(parse_json(done.stdout, max_bytes=_MAX_PROGRESS_BYTES))
    except (ValueError, ValidationError):
        return None


def _asked(device: Device, name: str, argv: list[str], deadline: Deadline) -> Completed:
    """What a command without effects says; once more when the link broke under it."""
    try:
        return device.run(argv, deadline)
    except DeviceLost as e:
        log.warning("%s: lost while looking at a job, which goes on: %s", device.spec, e.message)
        device.is_alive(name, deadline)  # idempotent, so it brings the link back
        return device.run(argv, deadline)


def wait_until_done(
    device: Device,
    start: Start,
    deadline: Deadline,
    on_progress: Callable[[Progress], None],
    *,
    check: Callable[[], None] = lambda: None,
) -> Died | None:
    """None once `result.json` is there; Died when it will never be. Raises what the link raises when it stays lost.

    A runner that is gone is started again in the same folder, at most three times over all calls. `check` is called
    before each look and ends the waiting by what it raises.
    """
    pause = _FIRST_LOOK_SECONDS
    beat, beat_at = -1, time.monotonic()
    while True:
        check()
        progress = _look(device, start)
        if progress is not None and progress.job == start.name:
            if progress.state == "done":
                return None
            if progress.beat != beat:
                beat, beat_at = progress.beat, time.monotonic()
                on_progress(progress)
        if deadline.remaining <= 0:
            return _give_up(device, start)
        if time.monotonic() - beat_at > _SILENCE_SECONDS:
            died = _attend(device, start)
            if died is not None:
                return died
            beat_at = time.monotonic()
        time.sleep(min(pause, max(0.01, deadline.remaining)))
        pause = min(_LONGEST_PAUSE_SECONDS, pause * 1.4)


def _look(device: Device, start: Start) -> Progress | None:
    """The progress; a link lost meanwhile is brought back by the question whether the job lives."""
    try:
        return read_progress(device, start.name, Deadline.after(_COMMAND_SECONDS))
    except DeviceLost as e:
        log.warning("%s: lost while waiting for a job, which goes on: %s", device.spec, e.message)
        device.is_alive(start.name, Deadline.after(_COMMAND_SECONDS))
        return None


def _attend(device: Device, start: Start) -> Died | None:
    """A silent runner: leave it if it lives, start it again if it died by a signal, else say how it ended."""
    if any(device.is_alive(name, Deadline.after(_COMMAND_SECONDS)) for name in start.names()):
        return None
    progress = _look(device, start)
    if progress is not None and progress.state == "done":  # it ended between the look and the question
        return None
    for name in start.names():
        ended = _how_it_ended(device, name)
        if ended is not None:
            return ended
    for name in start.names()[1:]:
        if device.start(name, start.argv, Deadline.after(_COMMAND_SECONDS), env=start.env):
            log.warning("%s: the runner of job %s had died and was started again", device.spec, start.name)
            return None
    return Died(status=RunStatus.LOST, error=f"the runner was killed on the device {_RESTARTS + 1} times")


def _how_it_ended(device: Device, name: str) -> Died | None:
    """A runner that ended by itself without a result; None when it was killed (or was never there)."""
    folder = device.job_dir(name)
    done = _asked(device, name, ["cat", str(folder / "exit")], Deadline.after(_COMMAND_SECONDS))
    text = done.stdout.strip()
    if done.returncode != 0 or not text.isdigit() or int(text) > 128 or int(text) == 0:
        return None
    said = device.run(["tail", "-c", "4000", str(folder / "stderr")], Deadline.after(_COMMAND_SECONDS)).stdout.strip()
    return Died(status=RunStatus.FAILED, error=f"the runner ended with {int(text)}" + (f"\n{said}" if said else ""))


def _give_up(device: Device, start: Start) -> Died:
    for name in start.names():
        device.kill(name, Deadline.after(_COMMAND_SECONDS))
    return Died(status=RunStatus.TIMED_OUT, error="the job was ended by the host: the plan's timeout is long over")
