"""The test bed of the soak: virtual boards and an sshd behind proxies, and what can be done to them."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.proxy import Proxy
from support.sshd import Sshd

from edgekit.benchmarks.devices.adb_client import find_adb
from edgekit.benchmarks.devices.board import BoardDevice

BOARD_ROOT = "/tmp/soak"
BOARD_LEDGER = "/tmp/soak-ledger"
DISK_BYTES = 256 << 20
"""Of each board's own disk for edgekit; the unpacked numpy is the most of it."""

Fault = Callable[["Bed", "Target", random.Random], bool]
"""Does it; False where there was nothing to do it to."""


@dataclass(kw_only=True)
class Target:
    """One device: its link, and where its processes and files are seen from this host."""

    name: str
    kind: str
    address: str
    root: str
    ledger: str
    proxy: Proxy
    board: BoardDevice | None = None
    sshd: Sshd | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def processes(self) -> list[psutil.Process]:
        """Every process of edgekit's jobs on the device."""
        if self.board is not None:
            found = _below(self.board._board.running.cell.process.pid)
            return [p for p in found if f"{BOARD_ROOT}/jobs/" in _words(p)]
        return [p for p in psutil.process_iter() if f"{self.root}/jobs/" in _words(p)]

    def daemons(self) -> list[psutil.Process]:
        """adbd, or the sessions of sshd."""
        if self.board is not None:
            return [p for p in _below(self.board._board.running.cell.process.pid) if _name(p) == "adbd"]
        listener = self.sshd.pid if self.sshd is not None else None
        return [p for p in _below(listener) if _name(p).startswith("sshd")] if listener else []

    def path(self, inside: str) -> Path | None:
        """A path of the device as this host sees it; None while a board's adbd is down."""
        if self.board is None:
            return Path(inside)
        adbd = self.daemons()
        return Path(f"/proc/{adbd[0].pid}/root{inside}") if adbd else None

    def ledger_lines(self) -> list[str]:
        path = self.path(self.ledger)
        return path.read_text().splitlines() if path is not None and path.exists() else []


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return " ".join(process.cmdline())
    return ""


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


class Bed:
    """All devices of a soak; a context manager."""

    def __init__(self, folder: Path, *, boards: int) -> None:
        self.folder = folder
        self._boards = boards
        self._stack = ExitStack()
        self.targets: list[Target] = []

    def __enter__(self) -> Bed:
        with ExitStack() as stack:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port: int = free.getsockname()[1]
            # the product's own adb server, on a port of ours: it is started by whichever worker needs it first
            os.environ["ANDROID_ADB_SERVER_PORT"] = str(self.port)
            stack.callback(self._end_server)
            for number in range(self._boards):
                self.targets.append(self._board(f"board-{number}", stack))
            self.targets.append(self._ssh(stack))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def _board(self, name: str, stack: ExitStack) -> Target:
        board = stack.enter_context(BoardDevice("amd64", root=PurePosixPath(BOARD_ROOT)))
        _, serial = board.adb
        host, _, port = serial.rpartition(":")
        proxy = stack.enter_context(Proxy((host, int(port))))
        target = Target(
            name=name,
            kind="adb",
            address=f"127.0.0.1:{proxy.port}",
            root=BOARD_ROOT,
            ledger=BOARD_LEDGER,
            proxy=proxy,
            board=board,
        )
        # From outside: nothing on a board may mount. A small disk of its own, to be filled.
        pid = str(target.daemons()[0].pid)
        where = f"{board._board.running.folder}/scratch/root{BOARD_ROOT}"
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "edgekit-soak", where]
        subprocess.run(["nsenter", "--target", pid, "--mount", *mount], check=True)
        return target

    def _ssh(self, stack: ExitStack) -> Target:
        sshd = stack.enter_context(Sshd(self.folder / "sshd"))
        proxy = stack.enter_context(Proxy(("127.0.0.1", sshd.port)))
        client = sshd.client(self.folder / "client", port=proxy.port)
        return Target(
            name="ssh",
            kind="ssh",
            address="testboard",
            root=str(self.folder / "device"),
            ledger=str(self.folder / "ssh-ledger"),
            proxy=proxy,
            sshd=sshd,
            environment=client.environment(),
        )

    def servers(self) -> list[psutil.Process]:
        """The adb server."""
        return [p for p in psutil.process_iter() if str(self.port) in (w := _words(p)) and "fork-server" in w]

    def clients(self) -> list[psutil.Process]:
        """adb clients that talk to one of the targets."""
        addresses = [target.address for target in self.targets if target.kind == "adb"]
        return [p for p in psutil.process_iter() if _name(p) == "adb" and any(a in _words(p) for a in addresses)]

    def _end_server(self) -> None:
        subprocess.run(find_adb().argv("kill-server"), capture_output=True, timeout=20, check=False)
        for server in self.servers():
            server.kill()


def _pause(rng: random.Random, low: float, high: float) -> None:
    time.sleep(rng.uniform(low, high))


def reset(bed: Bed, target: Target, rng: random.Random) -> bool:
    """Every connection is reset."""
    before = target.proxy.cuts
    target.proxy.cut()
    return target.proxy.cuts > before


def finish(bed: Bed, target: Target, rng: random.Random) -> bool:
    """Every connection is closed in good order."""
    before = target.proxy.cuts
    target.proxy.cut(reset=False)
    return target.proxy.cuts > before


def cut_push(bed: Bed, target: Target, rng: random.Random) -> bool:
    """Reset after so many more bytes have gone to the device: most of them are a file's."""
    return _cut_within(target, up=rng.randrange(1, 250_000))


def cut_pull(bed: Bed, target: Target, rng: random.Random) -> bool:
    """Reset after so many more bytes have come from the device: most of them are a file's."""
    return _cut_within(target, down=rng.randrange(1, 120_000))


def cut_reply(bed: Bed, target: Target, rng: random.Random) -> bool:
    """Reset within the next reply."""
    return _cut_within(target, down=rng.randrange(1, 700))


def _cut_within(target: Target, **where: int) -> bool:
    before = target.proxy.cuts
    target.proxy.cut_after(**where)
    deadline = time.monotonic() + 6
    while target.proxy.cuts == before and time.monotonic() < deadline:
        time.sleep(0.02)
    target.proxy.cut_after()
    return target.proxy.cuts > before


def blackhole(bed: Bed, target: Target, rng: random.Random) -> bool:
    """Nothing passes for a while, connections stay."""
    target.proxy.swallow(True)
    try:
        _pause(rng, 0.5, 4.0)
    finally:
        target.proxy.swallow(False)
    return True


def kill_server(bed: Bed, target: Target, rng: random.Random) -> bool:
    """SIGKILL of the adb server, which all boards share."""
    return _signal(bed.servers(), signal.SIGKILL)


def stop_server(bed: Bed, target: Target, rng: random.Random) -> bool:
    """SIGSTOP of the adb server for a while."""
    servers = bed.servers()
    if not _signal(servers, signal.SIGSTOP):
        return False
    _pause(rng, 0.5, 4.0)
    _signal(servers, signal.SIGCONT)
    return True


def kill_daemon(bed: Bed, target: Target, rng: random.Random) -> bool:
    """SIGKILL of adbd (the board starts it again) or of every session of sshd."""
    return _signal(target.daemons(), signal.SIGKILL)


def restart_sshd(bed: Bed, target: Target, rng: random.Random) -> bool:
    """No one listens for a while, and the sessions are gone."""
    if target.sshd is None:
        return False
    sessions = target.daemons()
    target.sshd.stop()
    _signal(sessions, signal.SIGKILL)
    _pause(rng, 0.2, 1.5)
    target.sshd.start()
    return True


def kill_runner(bed: Bed, target: Target, rng: random.Random) -> bool:
    """SIGKILL of the runner on the device, as the out-of-memory killer does it."""
    return _wait_and_kill(target, lambda words: " run " in words and "started/process" not in words)


def kill_phase(bed: Bed, target: Target, rng: random.Random) -> bool:
    """SIGKILL of the process that runs the model."""
    return _wait_and_kill(target, lambda words: " phase " in words)


def _wait_and_kill(target: Target, is_it: Callable[[str], bool]) -> bool:
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline:
        if _signal([p for p in target.processes() if is_it(_words(p))][:1], signal.SIGKILL):
            return True
        time.sleep(0.02)
    return False


def fill_disk(bed: Bed, target: Target, rng: random.Random) -> bool:
    """Not a byte is left on the device for a while."""
    path = target.path(f"{BOARD_ROOT}/filling") if target.board else None
    if path is None:
        return False
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(512))
    _pause(rng, 0.5, 2.5)
    again = target.path(f"{BOARD_ROOT}/filling")
    while again is None:
        time.sleep(0.05)
        again = target.path(f"{BOARD_ROOT}/filling")
    again.unlink(missing_ok=True)
    return True


def _signal(processes: list[psutil.Process], number: int) -> bool:
    sent = False
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
            sent = True
    return sent


FAULTS: dict[str, tuple[Fault, str]] = {
    "reset": (reset, "any"),
    "fin": (finish, "any"),
    "cut in a push": (cut_push, "any"),
    "cut in a pull": (cut_pull, "any"),
    "cut in a reply": (cut_reply, "any"),
    "black hole, 0.5 to 4 s": (blackhole, "any"),
    "adb server killed": (kill_server, "adb"),
    "adb server stopped, 0.5 to 4 s": (stop_server, "adb"),
    "adbd, or sessions of sshd, killed": (kill_daemon, "any"),
    "sshd down, 0.2 to 1.5 s": (restart_sshd, "ssh"),
    "runner killed": (kill_runner, "any"),
    "model's process killed": (kill_phase, "any"),
    "device's disk full, 0.5 to 2.5 s": (fill_disk, "adb"),
}
"""Name to what it does and which kind of device it is for."""


def mounts() -> set[str]:
    """What is mounted on this host."""
    return set(Path("/proc/self/mounts").read_text().splitlines())


@contextmanager
def own_temporary_folder(folder: Path) -> Iterator[None]:
    """Locks and boards' folders in a folder of the soak's own, for this process and its children."""
    import tempfile

    folder.mkdir(parents=True)
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"], tempfile.tempdir = str(folder), None
    try:
        yield
    finally:
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)
