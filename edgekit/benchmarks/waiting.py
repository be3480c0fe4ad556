"""Waiting for a detached job in one long call, and what to do about a runner that fell silent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from edgekit.benchmarks.devices.asking import ask
from edgekit.benchmarks.devices.base import Deadline, Device, Launch, Watched
from edgekit.benchmarks.devices.script import number
from edgekit.benchmarks.failures import REBOOTED, killed_for_memory
from edgekit.benchmarks.values import RunStatus
from edgekit.schema import Record, parse_json

__all__ = ["Died", "Progress", "Start", "Watcher", "launch", "read_progress", "wait_until_done"]

log = logging.getLogger(__name__)

_WATCH_SECONDS = 300.0
"""One call stays this long with a job; it ends before where the runner, which beats every second, is silent."""
_RESTARTS = 3
_COMMAND_SECONDS = 30.0
_MAX_PROGRESS_BYTES = 64 * 1024


class Progress(Record):
    """`progress.json` of a runner; see `edgekit.runtimes.runner`."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)

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
    done = ask(device, ["cat", str(device.job_dir(name) / "progress.json")], deadline)
    return _parsed(done.stdout) if done.returncode == 0 else None


def _parsed(text: str) -> Progress | None:
    try:
        return Progress.model_validate(parse_json(text, max_bytes=_MAX_PROGRESS_BYTES))
    except (ValueError, ValidationError):
        return None


class Watcher:
    """Takes the lines a runner writes while a call waits for it; passes the job's own on."""

    def __init__(self, name: str, on_progress: Callable[[Progress], None]) -> None:
        self._name = name
        self._on_progress = on_progress
        self.beat = -1

    def __call__(self, line: str) -> None:
        progress = _parsed(line)
        if progress is not None and progress.job == self._name and progress.beat > self.beat:
            self.beat = progress.beat
            if progress.state == "running":
                self._on_progress(progress)


def launch(device: Device, job: Launch, watcher: Watcher) -> Watched:
    """Begin `job` where all it needs is there, and wait with it for a first while."""
    return device.launch(job, _patience(_WATCH_SECONDS), seconds=_WATCH_SECONDS, on_line=watcher)


def wait_until_done(
    device: Device,
    start: Start,
    deadline: Deadline,
    watched: Watched,
    watcher: Watcher,
    check: Callable[[], None] = lambda: None,
) -> Died | Watched:
    """How the job ended, from `watched` (what its launch saw) on. Raises what the link raises when it stays lost.

    A runner that is gone is started again in the same folder, at most three times over all calls. `check` is called
    before each look and ends the waiting by what it raises.
    """
    while watched.result is None and not watched.result_is_large:
        check()
        if deadline.remaining <= 0:
            return _give_up(device, start)
        died = _attend(device, start)
        if died is not None:
            return died
        seconds = max(1.0, min(_WATCH_SECONDS, deadline.remaining))
        watched = device.watch(start.name, _patience(seconds), seconds=seconds, on_line=watcher)
    return watched


def _patience(seconds: float) -> Deadline:
    return Deadline.after(seconds + _COMMAND_SECONDS)


def _attend(device: Device, start: Start) -> Died | None:
    """A silent runner: leave it if it lives, start it again if it died by a signal, else say how it ended."""
    if any(device.is_alive(name, Deadline.after(_COMMAND_SECONDS)) for name in start.names()):
        return None
    progress = read_progress(device, start.name, Deadline.after(_COMMAND_SECONDS))
    if progress is not None and progress.state == "done":  # it ended between the look and the question
        return None
    if _was_restarted(device, start):
        return Died(status=RunStatus.LOST, error=REBOOTED)
    for name in start.names():
        ended = _how_it_ended(device, name)
        if ended is not None:
            return ended
    for name in start.names()[1:]:
        if device.start(name, start.argv, Deadline.after(_COMMAND_SECONDS), env=start.env):
            log.warning("%s: the runner of job %s had died and was started again", device.spec, start.name)
            return None
    error = f"the runner was killed on the device {_RESTARTS + 1} times"
    said = killed_for_memory(device)
    return Died(status=RunStatus.LOST, error=f"{error}\nthe device's log: {said}" if said else error)


def _was_restarted(device: Device, start: Start) -> bool:
    """Whether the device booted since a runner of the job was started: by the kernel's boot id, then and now."""
    records = [str(device.job_dir(name) / "started" / "process") for name in start.names()]
    done = ask(device, ["cat", "/proc/sys/kernel/random/boot_id", *records], Deadline.after(_COMMAND_SECONDS))
    lines = [line.split() for line in done.stdout.splitlines()]
    if not lines or len(lines[0]) != 1:  # a system that tells no boot id
        return False
    return any(len(words) == 3 and words[2] != lines[0][0] for words in lines[1:])


def _how_it_ended(device: Device, name: str) -> Died | None:
    """A runner that ended by itself without a result; None when it was killed (or was never there)."""
    folder = device.job_dir(name)
    done = ask(device, ["cat", str(folder / "exit")], Deadline.after(_COMMAND_SECONDS))
    status = number(done.stdout.strip())
    if done.returncode != 0 or status is None or not 0 < status <= 128:
        return None
    said = ask(device, ["tail", "-c", "4000", str(folder / "stderr")], Deadline.after(_COMMAND_SECONDS)).stdout.strip()
    return Died(status=RunStatus.FAILED, error=f"the runner ended with {status}" + (f"\n{said}" if said else ""))


def _give_up(device: Device, start: Start) -> Died:
    for name in start.names():
        device.kill(name, Deadline.after(_COMMAND_SECONDS))
    return Died(status=RunStatus.TIMED_OUT, error="the job was ended by the host: the plan's timeout is long over")
