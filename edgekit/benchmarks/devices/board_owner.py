"""The process that owns one started board: `python -m edgekit.benchmarks.devices.board_owner ARCH`.

It starts a board under the first free name, prints one line of JSON about it on stdout (the record, or the error),
and waits: for SIGTERM, which ends the board, or for the board to end. When it is killed, the board ends as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from types import FrameType

from edgekit.benchmarks.devices.adb_client import find_adb
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board import StartedBoardTransport
from edgekit.benchmarks.devices.board_arch import ARCHES
from edgekit.benchmarks.devices.board_instance import START_SECONDS, Instance, start_instance
from edgekit.benchmarks.devices.board_records import BoardRecord, named, write_board
from edgekit.benchmarks.devices.board_ssh import board_ssh_files, write_client_files
from edgekit.errors import DeviceTimeout, EdgekitError

__all__ = ["own_board"]

_LOOK_SECONDS = 0.5


class _Stopped(BaseException):
    """SIGTERM."""


def _stop(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


def own_board(arch: str) -> None:
    """Start a board and stay until it ends. Raises what a start raises, before anything was printed."""
    deadline = Deadline.after(START_SECONDS)
    with named(arch) as name:
        processor = None if ARCHES[arch].is_native else ARCHES[arch].processor
        files = board_ssh_files(name, processor, deadline)
        instance = start_instance(arch, find_adb(), deadline, ssh=files)
        try:
            record = _record(name, instance)
            _until_up(instance, record, deadline)
            write_board(record)
            write_client_files(deadline)
            _say(record.model_dump_json())
            while instance.cell.is_alive:
                time.sleep(_LOOK_SECONDS)
        finally:
            instance.end()


def _record(name: str, instance: Instance) -> BoardRecord:
    return BoardRecord(
        name=name,
        arch=instance.arch,
        pid=os.getpid(),
        serial=instance.serial,
        adb_port=int((instance.adb.server or "").rpartition(":")[2]),
        since_unix_s=int(time.time()),
    )


def _until_up(instance: Instance, record: BoardRecord, deadline: Deadline) -> None:
    """Until adbd and sshd answer."""
    link = StartedBoardTransport(record)
    while not link.is_up(deadline) or not _has_sshd(instance.address):
        instance.require_running()
        if deadline.remaining <= 0:
            raise DeviceTimeout("adbd or sshd did not answer", device=record.spec)
        time.sleep(0.02)


def _has_sshd(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=2.0) as link:
            return link.recv(4) == b"SSH-"
    except OSError:
        return False


def _say(line: str) -> None:
    """One line to whoever started this process; it may be gone."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> int:
    signal.signal(signal.SIGTERM, _stop)
    try:
        own_board(sys.argv[1])
    except _Stopped:
        return 0
    except EdgekitError as e:
        _say(json.dumps({"error": e.message, "hint": e.hint}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
