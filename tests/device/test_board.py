"""The virtual board: what it is, what it keeps, and that nothing of it outlives its owner."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.host_state import host_changes, host_state, is_running, processes_of

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board import BoardDevice, remove_stale_boards
from edgekit.benchmarks.devices.cell import remove_tree
from edgekit.errors import DeviceUnusable

pytestmark = [pytest.mark.needs_root, pytest.mark.board]

OWNER = """
import sys, time
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board import BoardDevice
print("starting", flush=True)
with BoardDevice("amd64") as board:
    board.start(f"owner-{time.time_ns()}.1", ["sleep", "300"], Deadline.after(10))
    print("running", flush=True)
    time.sleep(300)
"""


def _soon(seconds: float = 20.0) -> Deadline:
    return Deadline.after(seconds)


def _spawn(folder: Path, script: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "TMPDIR": str(folder), **env},
        stdout=subprocess.PIPE,
        text=True,
    )


def _kill_and_check(
    owner: subprocess.Popen[str], folder: Path, before: tuple[list[str], dict[str, tuple[int, int]]]
) -> set[int]:
    """SIGKILL the owner; all that was its own ends within 5 s and the host is as before. Returns what it had."""
    had = processes_of(folder, owner.pid)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = _soon(5)
    left = had
    while left and deadline.remaining:
        left = {pid for pid in had | processes_of(folder, owner.pid) if is_running(pid)}
        time.sleep(0.05)
    assert not left
    assert host_changes(before) == []
    return had


def test_killed_while_running_leaves_nothing(board: BoardDevice, tmp_path: Path) -> None:
    """SIGKILL of a board's owner ends adbd, its adb server and the jobs on it, and its network link."""
    before = host_state()
    owner = _spawn(tmp_path, OWNER)
    assert owner.stdout is not None
    assert [owner.stdout.readline() for _ in range(2)] == ["starting\n", "running\n"]
    links = {
        word
        for pid in processes_of(tmp_path, owner.pid)
        for word in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if word.startswith("ek") and len(word) == 12
    }
    assert links
    had = _kill_and_check(owner, tmp_path, before)
    assert len(had) >= 6  # owner, cell, adb server, adbd, the job: it was the real thing
    deadline = _soon(5)  # the kernel takes a moment to destroy the network namespace
    while deadline.remaining and any(Path(f"/sys/class/net/{link}").exists() for link in links):
        time.sleep(0.05)
    assert not [link for link in links if Path(f"/sys/class/net/{link}").exists()]


def test_killed_while_starting_leaves_nothing(board: BoardDevice, tmp_path: Path) -> None:
    """The same at moments spread over the start, and the next start removes the folder left behind."""
    before = host_state()
    for delay in random.Random(0).sample([0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5], 6):
        owner = _spawn(tmp_path, OWNER)
        assert owner.stdout is not None
        assert owner.stdout.readline() == "starting\n"
        time.sleep(delay)
        _kill_and_check(owner, tmp_path, before)
    script = f"from edgekit.benchmarks.devices.board import *; {remove_stale_boards.__name__}()"
    assert _spawn(tmp_path, script).wait(timeout=20) == 0
    stale = [p for p in tmp_path.glob("edgekit-board-*") if (p / "owner").exists()]
    assert not stale


@pytest.mark.slow
def test_killed_while_building_leaves_nothing_and_the_next_build_succeeds(tmp_path: Path) -> None:
    """SIGKILL during the build ends mmdebstrap; no half tree is ever taken for a board; a new build works."""
    before = host_state()
    cache = tmp_path / "cache"
    owner = _spawn(tmp_path, OWNER, EDGEKIT_CACHE=str(cache))
    assert owner.stdout is not None
    assert owner.stdout.readline() == "starting\n"
    deadline = _soon(10)
    while not list(cache.glob("boards/.build-amd64-*/tree/var")) and deadline.remaining:
        time.sleep(0.05)
    time.sleep(1.0)
    _kill_and_check(owner, tmp_path, before)
    assert not [p for p in (cache / "boards").iterdir() if p.name.startswith("amd64-") and p.is_dir()]
    owner = _spawn(tmp_path, OWNER, EDGEKIT_CACHE=str(cache))
    assert owner.stdout is not None
    assert [owner.stdout.readline() for _ in range(2)] == ["starting\n", "running\n"]
    assert not list(cache.glob("boards/.build-*"))
    _kill_and_check(owner, tmp_path, before)


def test_two_boards_run_at_once(board: BoardDevice) -> None:
    """Each has its own address, server, memory and boot; ending one leaves the other."""
    before = host_state()
    with BoardDevice("amd64") as other:
        assert other.adb[1] != board.adb[1]
        assert other.probe(_soon()).boot_id != board.probe(_soon()).boot_id
        other.run(["touch", "/tmp/mine"], _soon(), check=True)
        assert board.run(["ls", "/tmp/mine"], _soon()).returncode != 0
    assert board.run(["true"], _soon()).returncode == 0
    assert host_changes(before) == []


def test_what_was_put_is_there_at_the_next_start(tmp_path: Path) -> None:
    """Files put on a board survive it, so a second run sends nothing; everything else starts afresh."""
    source = tmp_path / "f"
    source.write_bytes(random.Random(2).randbytes(10_000))
    with BoardDevice("amd64") as first:
        path = first.put(source, _soon())
        first.run(["sh", "-c", "echo changed > /etc/hostname; touch /root/x"], _soon(), check=True)
    with BoardDevice("amd64") as second:
        assert second.run(["sha256sum", str(path)], _soon()).stdout.split()[0] == path.name
        assert second.run(["cat", "/etc/hostname"], _soon()).stdout == "edgekit-board\n"
        assert second.run(["ls", "/root/x"], _soon()).returncode != 0
        second.run(["rm", str(path)], _soon())


def test_root_on_the_board_is_not_root_on_the_host(board: BoardDevice) -> None:
    """What would reach the host from inside is refused: device nodes, mounts, a second chroot, kernel settings."""
    for argv in (
        ["mknod", "/tmp/disk", "b", "254", "0"],
        ["toybox", "mount", "-t", "tmpfs", "x", "/run"],
        ["chroot", "/", "true"],
        ["sh", "-c", "echo 1 > /proc/sys/kernel/panic"],
        ["sh", "-c", "ls /proc/1/root/home"],
        ["sh", "-c", "echo 0 > /sys/kernel/mm/transparent_hugepage/enabled"],
    ):
        assert board.run(argv, _soon()).returncode != 0, argv


def test_the_board_says_that_it_is_emulated(board: BoardDevice) -> None:
    """Its facts are the board's own (Debian, its Python), and its times are marked as this host's."""
    info = board.probe(_soon())
    assert (info.kind, info.emulated, info.shares_host_cpu) == ("board", True, True)
    assert info.emulation
    assert "this host's processor" in info.emulation
    assert info.os is not None
    assert info.os.startswith("Debian GNU/Linux 13")
    assert info.libc is not None
    assert info.libc.startswith("glibc")
    assert info.python is not None
    assert info.python.startswith("3.13")


def test_a_board_that_was_left_is_not_running() -> None:
    """Using a board before entering it, or after leaving it, says so."""
    device = BoardDevice("amd64")
    with pytest.raises(DeviceUnusable, match="not running"):
        device.run(["true"], _soon())
    with device:
        device.run(["true"], _soon())
    device.__exit__(None, None, None)
    with pytest.raises(DeviceUnusable, match="not running"):
        device.run(["true"], _soon())


def test_removing_a_tree_never_crosses_into_another_file_system(tmp_path: Path) -> None:
    """A mount inside a tree that is removed keeps its files: the removal stops there."""
    script = (
        "import subprocess, sys\nfrom pathlib import Path\n"
        "from edgekit.benchmarks.devices.cell import remove_tree\n"
        "tree = Path(sys.argv[1])\nsubprocess.run(['mount', '-t', 'tmpfs', 'x', tree / 'dev'], check=True)\n"
        "(tree / 'dev' / 'null').touch()\n"
        "try:\n    remove_tree(tree)\nexcept OSError:\n    assert (tree / 'dev' / 'null').exists()\n    print('kept')\n"
    )
    (tmp_path / "tree" / "dev").mkdir(parents=True)
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script, str(tmp_path / "tree")]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "kept\n"
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
