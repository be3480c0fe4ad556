"""What carries bytes to a device and back: the `Transport` protocol.

A transport promises little: one shell script, one file there, one file back, each ended by its deadline.
Everything that makes this safe on a bad link (sentinels, hashes, renames, start locks, retries) is written
once, above it, in `edgekit.benchmarks.devices.posix`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from edgekit.benchmarks.devices.base import Deadline
from edgekit.errors import DeviceLost

__all__ = ["OUTPUT_LIMIT_BYTES", "LinkDown", "OnOutput", "Reply", "Transport"]

OUTPUT_LIMIT_BYTES = 16 * 1024 * 1024
"""What one call may print, stdout and stderr together; more is killed and is an OutputLimitError."""


OnOutput = Callable[[bytes], None]
"""Told what stdout just brought, and nothing (`b""`) a few times a second while it is quiet."""


class LinkDown(DeviceLost):
    """The link was down before anything was sent: nothing ran, so even a command with effects may be tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back from a shell: bytes, and the exit status as the *link* tells it (which may lie)."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Transport(Protocol):
    """One way to reach a device. Every method ends by its deadline or raises DeviceTimeout."""

    @property
    def name(self) -> str:
        """The device as it is called in messages."""

    @property
    def outlives_client(self) -> bool:
        """Whether a command goes on when the client is killed (true of adb, false of a child process)."""

    def open(self, deadline: Deadline) -> None:
        """Check that the device can be used. Raises DeviceUnusable and its family."""

    def close(self) -> None:
        """Let go; safe to call twice."""

    def recover(self, deadline: Deadline) -> None:
        """Try to bring a lost link back; raises DeviceLost where it stays lost."""

    def shell(self, script: str, deadline: Deadline, *, on_output: OnOutput | None = None) -> Reply:
        """Run a script in the device's `sh`. Raises DeviceTimeout, LinkDown, DeviceLost, OutputLimitError.

        `on_output` sees stdout as it comes; what it raises ends the call.
        """

    def send(self, source: Path, destination: PurePosixPath, deadline: Deadline) -> None:
        """Copy a file to the device. What is there afterwards is not to be trusted before it is hashed."""

    def receive(self, source: PurePosixPath, destination: Path, deadline: Deadline, *, max_bytes: int) -> None:
        """Copy one file from the device to `destination`, which an earlier try may have begun.

        OutputLimitError beyond `max_bytes`.
        """
