"""`board:amd64`: a Debian container behind the real adb client and a real adbd, for desks without a phone.

It proves that an artifact deploys over adb, loads, fits and answers right on the board's own Python and libraries.
It runs on this host's processor, so its times are this host's: `DeviceInfo.emulated` says so on every page.

A board is one cell (`cell`): when its owner ends, by whatever signal, everything of it ends. What remains is a
small folder under the temporary directory, which the next start removes. The tree is built once
(`board_tree`); files put on a board live in a folder of ours bound into it, and are there at the next start.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgekit.benchmarks.devices.adb import DEFAULT_ROOT, AdbDevice, AdbTransport
from edgekit.benchmarks.devices.adb_client import AdbClient, find_adb, host_lock
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board_tree import KEYRING, board_tree, recipe_id
from edgekit.benchmarks.devices.cell import Cell, cell_unavailable_reason, remove_tree, start_cell
from edgekit.benchmarks.devices.local import cache_dir
from edgekit.benchmarks.devices.transport import OnOutput, Reply
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import DeviceLost, DeviceTimeout, DeviceUnusable, EdgekitError

__all__ = ["BoardDevice", "board_unavailable_reason", "open_board", "remove_stale_boards"]

log = logging.getLogger(__name__)

_EMULATION = "a Debian container on this host's processor at native speed, not a separate board"
_BLOCK = ipaddress.IPv4Network("10.207.0.0/16")
_HERE = Path(__file__).parent
_BUILD_SECONDS = 600.0
_START_SECONDS = 60.0


def board_unavailable_reason(arch: str = "amd64") -> str | None:
    """Why `board:<arch>` cannot be had here, in one sentence with what to install, or None."""
    if arch != "amd64":
        return f"there is no {arch} board in this version; there is board:amd64"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"board:amd64 needs Linux on x86_64, this is {platform.system()} on {platform.machine()}"
    reason = cell_unavailable_reason()
    if reason:
        return reason
    if shutil.which("ip") is None:
        return "needs `ip`: apt install iproute2"
    if not (_boards() / recipe_id(arch)).is_dir():
        if shutil.which("mmdebstrap") is None:
            return "needs mmdebstrap: apt install mmdebstrap"
        if not KEYRING.is_file():
            return "needs the keys of Debian's archive: apt install debian-archive-keyring"
    try:
        find_adb()
    except EdgekitError as e:
        return f"{e.message}; {e.hint}"
    return None


def _boards() -> Path:
    return cache_dir() / "boards"


@dataclass(slots=True)
class _Instance:
    """One running board: its cell, its folder on the host and its address."""

    cell: Cell
    folder: Path
    adb: AdbClient
    serial: str

    def require_running(self) -> None:
        """Raise DeviceLost, with the last it said, when the board has ended."""
        if self.cell.is_alive:
            return
        lines = (self.folder / "log").read_text("utf-8", "replace").strip().splitlines()
        raise DeviceLost(
            f"the board ended: {' | '.join(lines[-3:])[:500] or 'it said nothing'}",
            device="board:amd64",
            hint="start it again; `edgekit doctor` checks what a board needs",
        )

    def end(self) -> None:
        self.cell.end()
        with contextlib.suppress(FileNotFoundError):
            remove_tree(self.folder)


def _start(arch: str, adb: AdbClient, deadline: Deadline) -> _Instance:
    """A started board, adbd not necessarily up yet."""
    remove_stale_boards()
    name = recipe_id(arch)
    tree = board_tree(arch, _boards(), Deadline.after(_BUILD_SECONDS))
    data = _boards() / f"data-{name}"
    home = _boards() / "adb-home"
    for made in (data, home):
        made.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_prefix()))
    (folder / "owner").write_text(f"{os.getpid()} {_start_time(os.getpid())}\n")
    scratch = folder / "scratch"
    scratch.mkdir()
    with host_lock("board-network", deadline):
        here, there = _free_addresses()
        port = _free_port()
        outer, inner = (str(_HERE / f"board_{part}.sh") for part in ("outer", "inner"))
        link = f"ek{secrets.token_hex(5)}"
        cell = start_cell(
            ["sh", outer, link, here, there, str(adb.path), str(port), inner, str(tree), str(data), str(scratch)],
            log_file=folder / "log",
            mounts=False,
            env={**os.environ, "HOME": str(home), "TMPDIR": str(folder)},
            read_output=True,
        )
        # By address: a client that finds no server at `localhost` starts one, which would outlive us.
        private = AdbClient(path=adb.path, version=adb.version, server=f"tcp:127.0.0.1:{port}")
        instance = _Instance(cell=cell, folder=folder, adb=private, serial=f"{there}:5555")
        try:
            _await_ready(instance, port, deadline)
        except BaseException:
            instance.end()
            raise
    return instance


def _await_ready(instance: _Instance, port: int, deadline: Deadline) -> None:
    """Wait for the cell's `ready` and for the adb server's port."""
    stdout = instance.cell.process.stdout
    assert stdout is not None  # noqa: S101 - read_output was asked for
    os.set_blocking(stdout.fileno(), False)
    said = b""
    while b"ready\n" not in said or not _answers(port):
        said += stdout.read() or b""
        instance.require_running()
        if deadline.remaining <= 0:
            raise DeviceTimeout("did not start in time", device="board:amd64")
        time.sleep(0.01)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _free_addresses() -> tuple[str, str]:
    """Both ends of a /30 that no interface of this host uses. Call under the network lock."""
    listed = subprocess.run(["ip", "-4", "-o", "addr", "show"], capture_output=True, check=False, timeout=10)
    used = {ipaddress.ip_interface(a).network for a in re.findall(r"inet ([0-9./]+)", listed.stdout.decode())}
    for _ in range(1000):
        first = int(_BLOCK.network_address) + 4 * secrets.randbelow(_BLOCK.num_addresses // 4)
        candidate = ipaddress.IPv4Network((first, 30))
        if not any(candidate.overlaps(network) for network in used if network.version == 4):
            return str(candidate[1]), str(candidate[2])
    raise DeviceUnusable(f"no free addresses in {_BLOCK}", device="board:amd64", hint="end other boards")


def _prefix() -> str:
    return f"edgekit-board-{os.getuid()}-"


def _start_time(pid: int) -> str | None:
    """When process `pid` began, in clock ticks since boot; None when there is none. Tells a reused pid."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]


def remove_stale_boards() -> int:
    """How many folders of boards whose owner is gone were removed. Their processes ended with the owner."""
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        status = folder.lstat()
        if status.st_uid != os.geteuid() or not folder.is_dir() or folder.is_symlink():
            continue
        try:
            pid, began = (folder / "owner").read_text().split()
        except (OSError, ValueError):
            if time.time() - status.st_mtime < 60:  # its owner may be about to write it
                continue
            pid, began = "0", ""
        if pid.isdigit() and _start_time(int(pid)) == began:
            continue
        log.info("removing what a board of process %s left in %s", pid, folder)
        with contextlib.suppress(FileNotFoundError):  # another process removes it as well
            remove_tree(folder)
            removed += 1
    return removed


class BoardTransport(AdbTransport):
    """adb to a board that is started on opening and ended on closing."""

    def __init__(self, arch: str) -> None:
        self._arch = arch
        self._instance: _Instance | None = None

    @property
    def name(self) -> str:
        return f"board:{self._arch}"

    def open(self, deadline: Deadline) -> None:
        reason = board_unavailable_reason(self._arch)
        if reason:
            raise DeviceUnusable(reason, device=self.name, hint="use `local`, or attach a device")
        if self._instance is not None:
            raise DeviceUnusable("is running already", device=self.name, hint="open_device makes another one")
        self._instance = _start(self._arch, find_adb(), Deadline.after(_START_SECONDS))
        try:
            super().__init__(self._instance.adb, self._instance.serial)
            self._until_up(deadline)
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
    def running(self) -> _Instance:
        """The board that was started; raises DeviceUnusable when none was."""
        if self._instance is None:
            raise DeviceUnusable("is not running", device=self.name, hint="enter it first: `with open_device(…)`")
        return self._instance

    def _until_up(self, deadline: Deadline) -> None:
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


class BoardDevice(AdbDevice):
    """A virtual board."""

    kind = "board"

    def __init__(self, arch: str, *, root: PurePosixPath = DEFAULT_ROOT) -> None:
        self._arch = arch
        self._board = BoardTransport(arch)
        super().__init__(self._board, root=root)

    @property
    def adb(self) -> tuple[AdbClient, str]:
        """The adb client with the board's private server, and the board's serial there; only while entered."""
        return self._board.running.adb, self._board.running.serial

    def probe(self, deadline: Deadline) -> DeviceInfo:
        info = super().probe(deadline)
        facts = {
            "serial": f"board-{recipe_id(self._arch)}",
            "model": "edgekit virtual board",
            "emulated": True,
            "emulation": _EMULATION,
            "shares_host_cpu": True,
        }
        return info.model_copy(update=facts)


def open_board(argument: str | None) -> BoardDevice:
    """The device for `board:amd64` (or `board`), started when it is entered."""
    arch = argument or "amd64"
    if arch != "amd64":
        raise DeviceUnusable(
            board_unavailable_reason(arch) or "unknown", device=f"board:{arch[:40]}", hint="use board:amd64"
        )
    return BoardDevice(arch)
