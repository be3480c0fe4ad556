"""Which boards run: one record a board, written by the process that owns it and true as long as that one lives.

A board's name is its architecture and a number, `amd64-1`. Its owner holds the lock file of the name from before the
start until its end, however it ends; a record whose lock is free is what a killed owner left, and is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgekit.benchmarks.devices.local import cache_dir
from edgekit.errors import DeviceUnusable
from edgekit.schema import Record, read_record, write_atomically

__all__ = [
    "MAX_BOARDS",
    "BoardRecord",
    "boards_folder",
    "is_owned",
    "named",
    "running_boards",
    "ssh_files",
    "write_board",
]

MAX_BOARDS = 64
"""Of one architecture; each takes a network and a few processes."""
_NAME = re.compile(r"[a-z0-9]{1,16}-[1-9][0-9]?")


class BoardRecord(Record):
    """A board that runs until it is stopped."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[a-z0-9]{1,16}-[1-9][0-9]?$")]
    arch: str
    pid: Annotated[int, Field(gt=1)]
    """The process that owns it."""
    serial: Annotated[str, Field(pattern=r"^[0-9.]{7,15}:5555$")]
    """`ADDRESS:5555`, at its private adb server."""
    adb_port: Annotated[int, Field(gt=0, lt=65536)]
    """Of the private adb server, on 127.0.0.1."""
    since_unix_s: Annotated[int, Field(ge=0)]

    @property
    def address(self) -> str:
        return self.serial.partition(":")[0]

    @property
    def spec(self) -> str:
        """What names it over adb."""
        return f"board:{self.name}"

    @property
    def adb_spec(self) -> str:
        """What names it as any adb device of a server."""
        return f"adb:{self.serial}@127.0.0.1:{self.adb_port}"

    @property
    def ssh_spec(self) -> str:
        """What names it over ssh."""
        return f"ssh:edgekit-{self.name}"


def boards_folder() -> Path:
    """Where trees, data, keys and records of boards are: `boards` in edgekit's cache."""
    return cache_dir() / "boards"


def ssh_files() -> Path:
    """The folder of the boards' keys, known hosts and ssh configuration."""
    return boards_folder() / "ssh"


def _records() -> Path:
    return boards_folder() / "running"


@contextmanager
def named(arch: str) -> Iterator[str]:
    """Hold the first free name of `arch`. Raises DeviceUnusable when all are taken."""
    folder = _records()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for number in range(1, MAX_BOARDS + 1):
        name = f"{arch}-{number}"
        descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        try:
            yield name
        finally:
            (folder / f"{name}.json").unlink(missing_ok=True)
            os.close(descriptor)
        return
    raise DeviceUnusable(
        f"{MAX_BOARDS} boards run already", device=f"board:{arch}", hint="edgekit board stop NAME, or --all"
    )


def write_board(record: BoardRecord) -> None:
    """Make the board known. Call while holding its name."""
    write_atomically(_records() / f"{record.name}.json", record.model_dump_json(indent=1))


def is_owned(name: str) -> bool:
    """Whether a living process holds the name."""
    try:
        descriptor = os.open(_records() / f"{name}.lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def running_boards() -> tuple[BoardRecord, ...]:
    """The boards that run, by architecture and number; records of those that do not are removed."""
    found = []
    for path in _records().glob("*.json"):
        if not _NAME.fullmatch(path.stem):
            continue
        if not is_owned(path.stem):
            path.unlink(missing_ok=True)
            continue
        with contextlib.suppress(OSError, ValueError):  # it ended just now
            found.append(read_record(BoardRecord, path))
    return tuple(sorted(found, key=lambda r: (r.arch, int(r.name.rpartition("-")[2]))))
