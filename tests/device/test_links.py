"""Bad links: cuts, holes and floods between a real adb server and a real adbd."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from support.links import (
    again,
    calls,
    check_that_a_job_survives,
    check_that_a_lost_start_starts_once,
    check_that_a_put_gives_up,
    meanwhile,
    outcomes,
    soon,
)
from support.proxy import Proxy

from edgekit.benchmarks.devices.adb import AdbDevice, AdbTransport
from edgekit.benchmarks.devices.board import BoardDevice
from edgekit.errors import DeviceLost, DeviceTimeout
from edgekit.schema import sha256_of

pytestmark = [pytest.mark.needs_root, pytest.mark.board]

ROOT = PurePosixPath("/tmp/edgekit-links")


@pytest.fixture
def proxy(board: BoardDevice) -> Iterator[Proxy]:
    _, serial = board.adb
    host, _, port = serial.rpartition(":")
    with Proxy((host, int(port))) as proxy:
        yield proxy


@pytest.fixture
def far(board: BoardDevice, proxy: Proxy) -> Iterator[AdbDevice]:
    """The board once more, behind the proxy."""
    adb, _ = board.adb
    serial = f"127.0.0.1:{proxy.port}"
    with AdbDevice(AdbTransport(adb, serial), root=ROOT) as device:
        yield device
    adb.run(["disconnect", serial], soon())


def test_a_reply_cut_anywhere_is_never_taken_for_whole(far: AdbDevice, proxy: Proxy) -> None:
    """Whatever byte of the stream a reset follows: DeviceLost, or the whole reply. Never a part of it."""
    text = "0123456789" * 30
    whole = cut = 0
    # 24-byte headers, the reply and its sentinels come to about 700 bytes downstream: every region is hit.
    for position in range(1, 760, 25):
        proxy.cut_after(down=position)
        try:
            done = far.run(["printf", "%s", text], soon(5))
        except DeviceLost:
            cut += 1
            again(far)
        else:
            assert (done.stdout, done.stderr, done.returncode) == (text, "", 0)
            whole += 1
        proxy.cut_after()
    assert cut >= 20, (cut, whole)


def test_a_cut_push_leaves_nothing_at_the_final_path(
    far: AdbDevice, board: BoardDevice, proxy: Proxy, tmp_path: Path
) -> None:
    """Cut in the middle, once: the put is tried again and the file is whole. The partial one is never seen."""
    source = tmp_path / "f"
    source.write_bytes(secrets.token_bytes(6 << 20))
    seen: set[str] = set()

    def look() -> None:
        script = 'cd "$1" && for f in *; do [ -f "$f" ] && sha256sum "$f"; done; :'
        for line in board.run(["sh", "-c", script, "sh", str(ROOT / "cas")], soon()).stdout.splitlines():
            sha, name = line.split()
            seen.add("whole" if sha == name else f"{name} has {sha}")

    with meanwhile(look, lambda: 0.0):
        proxy.cut_after(up=3 << 20)
        path = far.put(source, soon(40))
    assert proxy.cuts == 1
    assert seen <= {"whole"}
    assert board.run(["sha256sum", str(path)], soon()).stdout.split()[0] == path.name
    left = board.run(["ls", "-A", str(path.parent)], soon()).stdout.split()
    assert not [name for name in left if name.startswith(f".{path.name}")]


def test_a_push_that_never_gets_through_gives_up(
    far: AdbDevice, board: BoardDevice, proxy: Proxy, tmp_path: Path
) -> None:
    """A link that is always cut: an error by the deadline, and no file at the final path."""
    source = tmp_path / "f"
    source.write_bytes(secrets.token_bytes(3 << 20))
    check_that_a_put_gives_up(far, proxy, source)
    listed = board.run(["ls", str(ROOT / "cas")], soon()).stdout.split()
    assert sha256_of(source) not in listed


def test_a_job_survives_the_loss_of_the_link(far: AdbDevice, board: BoardDevice, proxy: Proxy, tmp_path: Path) -> None:
    """A cut cable does not end a measurement: the job goes on, ran once, and its output is pulled later."""
    check_that_a_job_survives(far, proxy, tmp_path)


def test_a_start_whose_answer_was_lost_starts_once(
    far: AdbDevice, board: BoardDevice, proxy: Proxy, tmp_path: Path
) -> None:
    """The link is cut while the answer to `start` comes back: it is asked again, and the job ran once, by us."""
    check_that_a_lost_start_starts_once(far, proxy, tmp_path, positions=(30, 60, 90))


def test_no_call_outlives_its_deadline_on_a_dead_link(far: AdbDevice, proxy: Proxy, tmp_path: Path) -> None:
    """A link that swallows everything: each call raises by its deadline plus two seconds."""
    source = tmp_path / "f"
    source.write_bytes(secrets.token_bytes(100_000))
    proxy.swallow(True)
    for name, (outcome, seconds) in outcomes(calls(far, source)).items():
        assert isinstance(outcome, (DeviceTimeout, DeviceLost)), (name, outcome)
        assert seconds < 2.7, name  # the contract: deadline + 2 s
    proxy.swallow(False)
    proxy.cut()
    again(far)


def test_adbd_that_is_killed_comes_back(board: BoardDevice) -> None:
    """adbd dies under a command: DeviceLost, not a result; the next query finds the restarted one."""
    with pytest.raises(DeviceLost):
        board.run(["sh", "-c", "echo part; kill -9 $(pidof adbd 2>/dev/null || pgrep -x adbd); sleep 5"], soon(10))
    assert board.probe(soon()).abi == "x86_64"
