"""What a device is to the harness: the `Device` protocol and its small values.

The contract every device keeps (each line is a test in `tests/contract/test_device.py`):

* `run` sends an argv, never a shell string; a reply without its end-of-output sentinel is `DeviceLost`,
  whatever exit code the link reported.
* `put` stores a file under its sha256, checked on the device before it is renamed into place; a file that
  is there already is not sent again.
* `start` begins a detached job exactly once per (job, attempt): a lost link, or a second caller, changes nothing.
* Every call has a deadline and returns or raises by then (plus two seconds to clean up).
* `launch` is `start` for a job whose files are there already, and stays with it; it starts nothing when one misses.
* `pull` takes one named file of bounded size, into a fresh file that is renamed when whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol, Self

from edgekit.benchmarks.values import DeviceInfo

__all__ = ["Completed", "Deadline", "Device", "Launch", "Needed", "Watched"]


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, passed down unchanged through every call."""

    at: float
    """`time.monotonic()` seconds."""

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    def within(self, seconds: float) -> Deadline:
        """The earlier of this deadline and `seconds` from now."""
        return Deadline(min(self.at, time.monotonic() + seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A command that ran to its end on a device."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """A file of `size` bytes, or a folder (`size` None), that a job needs on the device."""

    path: PurePosixPath
    size: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A job to be begun: `job` is `<key>.<attempt>`, `files` go into its folder before it starts."""

    job: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    needed: tuple[Needed, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """How a watching call ended: with the missing files, with the result, or with neither (look again)."""

    missing: tuple[PurePosixPath, ...] = ()
    result: bytes | None = None
    result_is_large: bool = False
    """`result.json` is there and has to be pulled."""
    started: bool = False
    """This call started the job; False when it had been started before, or did not start."""
    ghosts: tuple[str, ...] = ()
    """Jobs that still ran, and were ended for this one: `ghost NAME`, with the pids that would not die."""


class Device(Protocol):
    """A place that runs Python and measures models; a context manager (enter connects, exit lets go)."""

    @property
    def spec(self) -> str:
        """What the user types to name this device."""

    @property
    def root(self) -> PurePosixPath:
        """edgekit's folder on the device; holds `cas/` (files by sha256), `jobs/` and `site/`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def probe(self, deadline: Deadline) -> DeviceInfo:
        """The device's facts, read afresh."""

    def run(
        self,
        argv: Sequence[str],
        deadline: Deadline,
        *,
        env: Mapping[str, str] | None = None,
        check: bool = False,
    ) -> Completed:
        """Run a command to its end. Raises DeviceLost, DeviceTimeout; CommandError when `check` and it failed."""

    def put(self, source: Path, deadline: Deadline, *, is_missing: bool = False) -> PurePosixPath:
        """Send a file into the content-addressed store and return where it lies; nothing is sent if it is there.

        `is_missing` says that the device has just told that it is not, and spares the question.
        """

    def write(self, path: PurePosixPath, data: bytes, deadline: Deadline) -> None:
        """Write a small file under `root`, by rename."""

    def pull(
        self,
        source: PurePosixPath,
        destination: Path,
        deadline: Deadline,
        *,
        max_bytes: int,
        sha256: str | None = None,
    ) -> None:
        """Fetch one file. Raises OutputLimitError when it is larger than `max_bytes`.

        With `sha256` the file must have it; that spares the question what it is.
        """

    def stored(self, sha256: str) -> PurePosixPath:
        """Where `put` keeps the file with this hash."""

    def launch(self, launch: Launch, deadline: Deadline, *, seconds: float, on_line: Callable[[str], None]) -> Watched:
        """`start` the job, alone, if all it needs is there; then as `watch`, in the same call."""

    def watch(self, job: str, deadline: Deadline, *, seconds: float, on_line: Callable[[str], None]) -> Watched:
        """Pass on new lines of the job's `progress.json` until it has its result.

        Ends without one when the runner is quiet for 4 s, or after `seconds`. Raises DeviceLost when the link fell
        silent: the job goes on.
        """

    def start(
        self,
        job: str,
        argv: Sequence[str],
        deadline: Deadline,
        *,
        env: Mapping[str, str] | None = None,
        alone: bool = False,
    ) -> bool:
        """Start `argv` detached in `job_dir(job)`, stdout and stderr to files there (`stdout`, `stderr`).

        `job` is `<key>.<attempt>`. True when this call started it, False when it had been started before. With
        `alone`, what other jobs left running on the device is ended first (the caller holds the device's lock):
        DeviceUnusable where that fails.
        """

    def job_dir(self, job: str) -> PurePosixPath:
        """The folder of a job on the device."""

    def is_alive(self, job: str, deadline: Deadline) -> bool:
        """Whether any process of the job's group still runs (a zombie does not count)."""

    def kill(self, job: str, deadline: Deadline) -> None:
        """End every process of the job's group; returns when none is left."""

    @property
    def python(self) -> str:
        """The interpreter to start the runner with (`python3`, or this process's own for `local`)."""
