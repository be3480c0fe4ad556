"""One running board: its cell, its network and its adb server, started and ended; what a killed owner left is removed.

When the owner ends, by whatever signal, everything of the board ends with it (`cell`). What remains is a small folder
under the temporary directory, which the next start removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import logging
import os
import re
import secrets
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from edgekit.benchmarks.devices.adb_client import AdbClient, host_lock
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board_arch import ARCHES
from edgekit.benchmarks.devices.board_records import boards_folder
from edgekit.benchmarks.devices.board_tree import board_tree, recipe_id
from edgekit.benchmarks.devices.cell import Cell, remove_tree, start_cell
from edgekit.benchmarks.devices.process import process_start
from edgekit.errors import DeviceLost, DeviceTimeout, DeviceUnusable

__all__ = ["BUILD_SECONDS", "START_SECONDS", "Instance", "private_client", "remove_stale_boards", "start_instance"]

log = logging.getLogger(__name__)

_BLOCK = ipaddress.IPv4Network("10.207.0.0/16")
_HERE = Path(__file__).parent
BUILD_SECONDS = 600.0
START_SECONDS = 60.0


@dataclass(slots=True)
class Instance:
    """One running board: its cell, its folder on the host and its address."""

    cell: Cell
    folder: Path
    adb: AdbClient
    serial: str
    arch: str
    use: int
    """A descriptor with a shared lock on the tree: while one is open, the tree is not removed."""

    @property
    def address(self) -> str:
        """The board's IPv4 address, on a link of its own to this host."""
        return self.serial.partition(":")[0]

    def require_running(self) -> None:
        """Raise DeviceLost, with the last it said, when the board has ended."""
        if self.cell.is_alive:
            return
        lines = (self.folder / "log").read_text("utf-8", "replace").strip().splitlines()
        raise DeviceLost(
            f"the board ended: {' | '.join(lines[-3:])[:500] or 'it said nothing'}",
            device=f"board:{self.arch}",
            hint="start it again; `edgekit doctor` checks what a board needs",
        )

    def end(self) -> None:
        self.cell.end()
        if self.use >= 0:
            os.close(self.use)
            self.use = -1
        with contextlib.suppress(FileNotFoundError):
            remove_tree(self.folder)


def private_client(adb: AdbClient, port: int) -> AdbClient:
    """`adb` with the private server of a board."""
    # By address: a client that finds no server at `localhost` starts one, which would outlive us.
    return AdbClient(path=adb.path, version=adb.version, server=f"tcp:127.0.0.1:{port}")


def start_instance(arch: str, adb: AdbClient, deadline: Deadline, *, ssh: Path | None = None) -> Instance:
    """A started board, adbd not necessarily up yet; `ssh` is a folder of sshd's files, which starts sshd as well."""
    remove_stale_boards()
    name = recipe_id(arch)
    tree = board_tree(arch, boards_folder(), Deadline.after(BUILD_SECONDS))
    data = boards_folder() / f"data-{name}"
    home = boards_folder() / "adb-home"
    for made in (data, home):
        made.mkdir(exist_ok=True)
    use = _hold(boards_folder() / f"{arch}.use")
    folder = Path(tempfile.mkdtemp(prefix=_prefix()))
    (folder / "owner").write_text(f"{os.getpid()} {_start_time(os.getpid())}\n")
    scratch = folder / "scratch"
    scratch.mkdir()
    emulated = "" if ARCHES[arch].is_native else ARCHES[arch].cpuinfo(os.cpu_count() or 1)
    (folder / "cpuinfo").write_text(emulated)
    env = {**os.environ, "HOME": str(home), "TMPDIR": str(folder)}
    if emulated:
        env["QEMU_CPU"] = str(ARCHES[arch].processor)
    with host_lock("board-network", deadline):
        here, there = _free_addresses()
        port = _free_port()
        outer, inner = (str(_HERE / f"board_{part}.sh") for part in ("outer", "inner"))
        link = f"ek{secrets.token_hex(5)}"
        cell = start_cell(
            [
                *("sh", outer, link, here, there, str(adb.path), str(port), inner, str(tree), str(data), str(scratch)),
                *(str(ssh or "-"), str(folder / "cpuinfo") if emulated else "-"),
            ],
            log_file=folder / "log",
            mounts=False,
            env=env,
            read_output=True,
        )
        instance = Instance(
            cell=cell, folder=folder, adb=private_client(adb, port), serial=f"{there}:5555", arch=arch, use=use
        )
        try:
            _await_ready(instance, port, deadline)
        except BaseException:
            instance.end()
            raise
    return instance


def _hold(path: Path) -> int:
    """A descriptor with a shared lock on `path`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _await_ready(instance: Instance, port: int, deadline: Deadline) -> None:
    """Wait for the cell's `ready` and for the adb server's port."""
    stdout = instance.cell.process.stdout
    assert stdout is not None  # noqa: S101 - read_output was asked for
    os.set_blocking(stdout.fileno(), False)
    said = b""
    while b"ready\n" not in said or not _answers(port):
        said += stdout.read() or b""
        instance.require_running()
        if deadline.remaining <= 0:
            raise DeviceTimeout("did not start in time", device=f"board:{instance.arch}")
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
    found = process_start(pid)
    return found.start if found else None


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
