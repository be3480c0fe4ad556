"""`board:amd64`: a Debian container behind the real adb client and a real adbd, for desks without a phone.

It proves that an artifact deploys over adb, loads, fits and answers right on the board's own Python and libraries.
It runs on this host's processor, so its times are this host's: `DeviceInfo.emulated` says so on every page.

`board:amd64` is started for one command and ends with it; `board:NAME` is one that `edgekit board start` started.
The tree is built once (`board_tree`); files put on a board live in a folder of ours bound into it, and are there at
the next start.
"""

from __future__ import annotations

import shutil
import time
from pathlib import PurePosixPath

from edgekit.benchmarks.devices.adb import DEFAULT_ROOT, AdbDevice, AdbTransport
from edgekit.benchmarks.devices.adb_client import AdbClient, find_adb
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board_arch import ARCHES, arch_unavailable_reason
from edgekit.benchmarks.devices.board_instance import (
    START_SECONDS,
    Instance,
    private_client,
    remove_stale_boards,
    start_instance,
)
from edgekit.benchmarks.devices.board_records import BoardRecord, boards_folder, running_boards
from edgekit.benchmarks.devices.board_tree import KEYRING, recipe_id
from edgekit.benchmarks.devices.cell import cell_unavailable_reason
from edgekit.benchmarks.devices.transport import OnOutput, Reply
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import DeviceTimeout, DeviceUnusable, EdgekitError

__all__ = ["BoardDevice", "board_unavailable_reason", "open_board", "remove_stale_boards"]


def board_unavailable_reason(arch: str = "amd64") -> str | None:
    """Why `board:<arch>` cannot be had here, in one sentence with what to install, or None."""
    reason = arch_unavailable_reason(arch) or cell_unavailable_reason()
    if reason:
        return reason
    if shutil.which("ip") is None:
        return "needs `ip`: apt install iproute2"
    if not (boards_folder() / recipe_id(arch)).is_dir():
        if shutil.which("mmdebstrap") is None:
            return "needs mmdebstrap: apt install mmdebstrap"
        if not KEYRING.is_file():
            return "needs the keys of Debian's archive: apt install debian-archive-keyring"
    try:
        find_adb()
    except EdgekitError as e:
        return f"{e.message}; {e.hint}"
    return None


class BoardTransport(AdbTransport):
    """adb to a board that is started on opening and ended on closing."""

    def __init__(self, arch: str) -> None:
        self._arch = arch
        self._instance: Instance | None = None

    @property
    def name(self) -> str:
        return f"board:{self._arch}"

    def open(self, deadline: Deadline) -> None:
        reason = board_unavailable_reason(self._arch)
        if reason:
            raise DeviceUnusable(reason, device=self.name, hint="use `local`, or attach a device")
        if self._instance is not None:
            raise DeviceUnusable("is running already", device=self.name, hint="open_device makes another one")
        self._instance = start_instance(self._arch, find_adb(), Deadline.after(START_SECONDS))
        try:
            super().__init__(self._instance.adb, self._instance.serial)
            self.until_up(deadline)
            super().open(deadline)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        instance, self._instance = self._instance, None
        if instance is not None:
            instance.end()

    def recover(self, deadline: Deadline) -> None:
        self.running.require_running()
        super().recover(deadline)

    def shell(self, script: str, deadline: Deadline, *, on_output: OnOutput | None = None) -> Reply:
        self.running.require_running()
        return super().shell(script, deadline, on_output=on_output)

    @property
    def running(self) -> Instance:
        """The board that was started; raises DeviceUnusable when none was."""
        if self._instance is None:
            raise DeviceUnusable("is not running", device=self.name, hint="enter it first: `with open_device(…)`")
        return self._instance

    def until_up(self, deadline: Deadline) -> None:
        """Connect until adbd, which starts beside us, answers."""
        while True:
            self.running.require_running()
            self._connect(deadline)
            row = self._row(deadline)
            if row is not None and row.state == "device":
                return
            if deadline.remaining <= 0:
                raise DeviceTimeout("adbd did not answer", device=self.name)
            time.sleep(0.02)


class StartedBoardTransport(AdbTransport):
    """adb to a board that `edgekit board start` started, through that board's private server."""

    def __init__(self, record: BoardRecord) -> None:
        super().__init__(private_client(find_adb(), record.adb_port), record.serial)
        self._record = record

    @property
    def name(self) -> str:
        return f"board:{self._record.name}"

    def is_up(self, deadline: Deadline) -> bool:
        """Whether adbd answers, after one try to connect."""
        self._connect(deadline)
        row = self._row(deadline)
        return row is not None and row.state == "device"

    @property
    def adb(self) -> tuple[AdbClient, str]:
        """The client with the board's private server, and the board's serial there."""
        return self._adb, self._serial


class BoardDevice(AdbDevice):
    """A virtual board."""

    kind = "board"

    def __init__(self, arch: str, *, root: PurePosixPath = DEFAULT_ROOT, started: BoardRecord | None = None) -> None:
        self._arch = arch
        self._started = started
        self._board = BoardTransport(arch) if started is None else StartedBoardTransport(started)
        super().__init__(self._board, root=root)

    @property
    def adb(self) -> tuple[AdbClient, str]:
        """The adb client with the board's private server, and the board's serial there; only while entered."""
        if isinstance(self._board, StartedBoardTransport):
            return self._board.adb
        return self._board.running.adb, self._board.running.serial

    def probe(self, deadline: Deadline) -> DeviceInfo:
        info = super().probe(deadline)
        facts = {
            "serial": f"board-{recipe_id(self._arch)}" + (f"-{self._started.name}" if self._started else ""),
            "model": "edgekit virtual board",
            "emulated": True,
            "emulation": ARCHES[self._arch].emulation,
            "shares_host_cpu": True,
        }
        return info.model_copy(update=facts)


def open_board(argument: str | None) -> BoardDevice:
    """The device for `board:ARCH` (`board` is `board:amd64`), started when it is entered; or `board:NAME`, a started
    one."""
    name = argument or "amd64"
    if name in ARCHES:
        return BoardDevice(name)
    boards = {record.name: record for record in running_boards()}
    if name in boards:
        return BoardDevice(boards[name].arch, started=boards[name])
    arch, _, number = name.partition("-")
    if arch in ARCHES and number.isdigit():
        hint = f"edgekit board start --arch {arch}; running: {', '.join(boards) or 'none'}"
        raise DeviceUnusable("is not running", device=f"board:{name[:40]}", hint=hint)
    raise DeviceUnusable(
        board_unavailable_reason(name) or "unknown",
        device=f"board:{name[:40]}",
        hint="use board:amd64, or a name that `edgekit board list` shows",
    )
