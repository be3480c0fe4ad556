"""Boards that live on after a command: started, listed, reached, stopped; nothing outlives its owner."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.board_arches import require_arch, tree_folders
from support.host_state import host_changes, host_state, is_running, processes_of

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board import BoardDevice
from edgekit.benchmarks.devices.board_records import BoardRecord, boards_folder, running_boards, ssh_files
from edgekit.benchmarks.devices.boards import board_statuses, create_board, start_board, stop_board
from edgekit.benchmarks.devices.local import cache_dir
from edgekit.benchmarks.devices.registry import open_device
from edgekit.cli.app import run_command_line
from edgekit.errors import DeviceUnusable

pytestmark = [pytest.mark.needs_root, pytest.mark.board]


@pytest.fixture
def own_boards(board: BoardDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own with this host's trees linked in, and no board left running in it."""
    trees = tree_folders()
    wheels = cache_dir() / "wheels"
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEKIT_SSH_CONFIG", raising=False)
    boards_folder().mkdir(parents=True)
    for tree in trees:
        (boards_folder() / tree.name).symlink_to(tree)
    if wheels.is_dir():
        (cache_dir() / "wheels").symlink_to(wheels)
    yield
    for record in running_boards():
        stop_board(record)


def _soon(seconds: float = 20.0) -> Deadline:
    return Deadline.after(seconds)


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command that succeeds printed as JSON."""
    assert run_command_line(arguments) == 0
    return json.loads(capsys.readouterr().out)


def _ended(pids: set[int], folder: Path) -> bool:
    deadline = _soon(10)
    while deadline.remaining:
        if not any(is_running(pid) for pid in pids | processes_of(folder)):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.usefixtures("own_boards")
def test_the_life_of_two_boards(capsys: pytest.CaptureFixture[str]) -> None:
    """Two starts in a row give two boards, each reached over adb and over ssh; stopped, the host is as before."""
    before = host_state()
    started = [_printed(capsys, "board", "start", "--json")[0] for _ in range(2)]
    assert [row["name"] for row in started] == ["amd64-1", "amd64-2"]
    assert started[0]["address"] != started[1]["address"]
    assert _printed(capsys, "board", "list", "--json") == started
    for row in started:
        for spec in (row["spec"], row["ssh_spec"]):
            with open_device(spec) as device:
                info = device.probe(_soon())
                assert info.emulated, spec
                assert "this host's processor" in (info.emulation or "")
                assert info.shares_host_cpu
    assert [status.spec for status in board_statuses()] == ["board:amd64-1", "board:amd64-2"]
    assert run_command_line(["board", "stop", "amd64-1", "amd64-1"]) == 0
    capsys.readouterr()
    assert [row["name"] for row in _printed(capsys, "board", "list", "--json")] == ["amd64-2"]
    with pytest.raises(DeviceUnusable, match="not running") as caught, open_device("board:amd64-1"):
        pass
    assert "amd64-2" in (caught.value.hint or "")
    assert run_command_line(["board", "stop", "--all"]) == 0
    assert running_boards() == ()
    assert host_changes(before) == []


@pytest.mark.usefixtures("own_boards")
def test_a_killed_owner_leaves_nothing() -> None:
    """SIGKILL of the owning process ends the board with its processes, mounts and network; the name is free again."""
    before = host_state()
    record = start_board("amd64")
    had = processes_of(cache_dir(), record.pid)
    assert len(had) >= 6  # owner, cell, adb server, the board's first process, adbd, sshd
    os.kill(record.pid, signal.SIGKILL)
    assert _ended(had, cache_dir())
    assert host_changes(before) == []
    assert running_boards() == ()
    deadline = _soon(5)  # the kernel takes a moment to destroy the network namespace
    while deadline.remaining and f"{record.address.rpartition('.')[0]}." in Path("/proc/net/fib_trie").read_text():
        time.sleep(0.05)
    assert start_board("amd64").name == record.name


@pytest.mark.usefixtures("own_boards")
def test_an_owner_killed_while_starting_leaves_nothing(tmp_path: Path) -> None:
    """The same at moments spread over the start, when no record of the board is there yet."""
    import subprocess
    import sys

    before = host_state()
    for delay in random.Random(0).sample([0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1], 4):
        owner = subprocess.Popen(
            [sys.executable, "-m", "edgekit.benchmarks.devices.board_owner", "amd64"], stdout=subprocess.PIPE
        )
        time.sleep(delay)
        had = processes_of(cache_dir(), owner.pid)
        owner.kill()
        owner.communicate()
        assert _ended(had, cache_dir())
        assert host_changes(before) == []
        assert running_boards() == ()


@pytest.mark.usefixtures("own_boards")
def test_keys_are_private_and_the_host_key_stays() -> None:
    """Nothing of the boards' keys is readable by others, and a board of the same name has the same host key again."""
    keys = []
    for _ in range(2):
        record = start_board("amd64")
        for path in (ssh_files(), *ssh_files().rglob("*")):
            assert path.stat().st_mode & 0o077 == 0, path
        with open_device(record.ssh_spec) as device:
            assert device.run(["id", "-un"], _soon()).stdout == "edgekit\n"
            # the one user sshd runs as: no root, no way to become it
            assert device.run(["cat", "/etc/shadow", "/proc/1/environ"], _soon()).returncode != 0
            assert device.run(["grep", "CapBnd", "/proc/self/status"], _soon()).stdout.split()[1].strip("0") == ""
        keys.append((ssh_files() / "known_hosts").read_text())
        stop_board(record)
    assert keys[0] == keys[1]
    assert keys[0].startswith("edgekit-amd64-1 ssh-ed25519 ")
    assert (ssh_files() / "config").read_text() == ""


@pytest.mark.usefixtures("own_boards")
def test_trees_of_running_boards_are_not_destroyed(capsys: pytest.CaptureFixture[str]) -> None:
    """`destroy` needs a yes, refuses while a board runs, and removes what was put on boards once none does."""
    record = start_board("amd64")
    data = next(boards_folder().glob("data-amd64-*"))
    assert run_command_line(["board", "destroy"]) == 2
    assert run_command_line(["board", "destroy", "--yes"]) == 3
    assert "amd64-1" in capsys.readouterr().err
    with open_device(record.spec) as device:
        assert device.run(["true"], _soon()).returncode == 0
    stop_board(record)
    assert run_command_line(["board", "destroy", "--arch", "amd64", "--yes"]) == 0
    assert not data.exists()
    assert not list(ssh_files().glob("amd64-*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["board", "start", "--arch", "sparc"], "no sparc board"),
        (["board", "stop"], "which boards"),
        (["board", "stop", "amd64-77"], "no board runs"),
        (["board", "destroy", "--arch", "x", "--yes"], "no architecture"),
    ],
)
@pytest.mark.usefixtures("own_boards")
def test_what_cannot_be_is_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong name or architecture is the caller's error (status 2), with what there is."""
    assert run_command_line(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(params=["arm64", "armhf"])
def arm_tree(request: pytest.FixtureRequest) -> str:
    """An ARM architecture whose tree is in this host's cache. Absent is a skip, or a failure in CI."""
    arch = str(request.param)
    require_arch(arch)
    create_board(arch, lambda step: None)
    return arch


@pytest.fixture
def arm_board(arm_tree: str, own_boards: None) -> Iterator[BoardRecord]:
    """A started ARM board."""
    record = start_board(arm_tree)
    yield record
    stop_board(record)


def test_arm_is_what_the_board_says_it_is(arm_board: BoardRecord) -> None:
    """Its programs are ARM's, its /proc/cpuinfo is of the processor that qemu emulates, its times are marked."""
    machine, part = {"arm64": ("aarch64", "0xd08"), "armhf": ("armv7l", "0xc0f")}[arm_board.arch]
    with open_device(arm_board.spec) as device:
        info = device.probe(_soon(60))
        assert (info.abi, info.emulated) == (machine, True)
        assert "times mean nothing" in (info.emulation or "")
        said = device.run(["cat", "/proc/cpuinfo"], _soon(60)).stdout
        assert f"CPU part\t: {part}" in said
        assert "GenuineIntel" not in said
    with open_device(arm_board.ssh_spec) as device:
        assert device.run(["uname", "-m"], _soon(60)).stdout == f"{machine}\n"
