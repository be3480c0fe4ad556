"""Bad links: cuts, holes and floods between a real adb server and a real adbd."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest
from support.proxy import Proxy

from edgekit.benchmarks.devices.adb import AdbDevice, AdbTransport
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board import BoardDevice
from edgekit.errors import DeviceLost, DeviceTimeout, EdgekitError

pytestmark = [pytest.mark.needs_root, pytest.mark.board]

ROOT = PurePosixPath("/tmp/edgekit-links")


def _soon(seconds: float = 20.0) -> Deadline:
    return Deadline.after(seconds)


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
    adb.run(["disconnect", serial], _soon())


def _again(device: AdbDevice) -> None:
    """Wait until the link is back."""
    deadline = _soon(20)
    while True:
        try:
            device._transport.recover(deadline)
            device.run(["true"], _soon(2))
            return
        except EdgekitError:
            assert deadline.remaining, "the link did not come back"


def test_a_reply_cut_anywhere_is_never_taken_for_whole(far: AdbDevice, proxy: Proxy) -> None:
    """Whatever byte of the stream a reset follows: DeviceLost, or the whole reply. Never a part of it."""
    text = "0123456789" * 30
    whole = cut = 0
    # 24-byte headers, the reply and its sentinels come to about 700 bytes downstream: every region is hit.
    for position in range(1, 760, 25):
        proxy.cut_after(down=position)
        try:
            done = far.run(["printf", "%s", text], _soon(5))
        except DeviceLost:
            cut += 1
            _again(far)
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
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            script = 'cd "$1" && for f in *; do [ -f "$f" ] && sha256sum "$f"; done; :'
            for line in board.run(["sh", "-c", script, "sh", str(ROOT / "cas")], _soon()).stdout.splitlines():
                sha, name = line.split()
                seen.add("whole" if sha == name else f"{name} has {sha}")

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        proxy.cut_after(up=3 << 20)
        path = far.put(source, _soon(40))
    finally:
        stop.set()
        watcher.join()
    assert proxy.cuts == 1
    assert seen <= {"whole"}
    assert board.run(["sha256sum", str(path)], _soon()).stdout.split()[0] == path.name
    left = board.run(["ls", "-A", str(path.parent)], _soon()).stdout.split()
    assert not [name for name in left if name.startswith(f".{path.name}")]


def test_a_push_that_never_gets_through_gives_up(
    far: AdbDevice, board: BoardDevice, proxy: Proxy, tmp_path: Path
) -> None:
    """A link that is always cut: an error by the deadline, and no file at the final path."""
    source = tmp_path / "f"
    source.write_bytes(secrets.token_bytes(3 << 20))
    stop = threading.Event()

    def saw() -> None:
        while not stop.is_set():
            proxy.cut_after(up=1 << 20)
            stop.wait(0.02)

    cutter = threading.Thread(target=saw)
    cutter.start()
    began = time.monotonic()
    try:
        with pytest.raises((DeviceLost, DeviceTimeout)):
            far.put(source, _soon(6))
    finally:
        stop.set()
        cutter.join()
        proxy.cut_after()
    assert time.monotonic() - began < 8
    listed = board.run(["ls", str(ROOT / "cas")], _soon()).stdout.split()
    from edgekit.schema import sha256_of

    assert sha256_of(source) not in listed


def test_a_job_survives_the_loss_of_the_link(far: AdbDevice, board: BoardDevice, proxy: Proxy, tmp_path: Path) -> None:
    """A cut cable does not end a measurement: the job goes on, ran once, and its output is pulled later."""
    job = f"{secrets.token_hex(8)}.1"
    argv = ["sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.2; done"]
    assert far.start(job, argv, _soon())
    proxy.cut()
    _again(far)
    assert not far.start(job, argv, _soon())
    deadline = _soon()
    while far.is_alive(job, deadline):
        time.sleep(0.1)
    far.pull(far.job_dir(job) / "stdout", tmp_path / "out", _soon(), max_bytes=1000)
    assert (tmp_path / "out").read_text().split() == ["1", "2", "3", "4", "5"]


def test_a_start_whose_answer_was_lost_starts_once(
    far: AdbDevice, board: BoardDevice, proxy: Proxy, tmp_path: Path
) -> None:
    """The link is cut while the answer to `start` comes back: it is asked again, and the job ran once, by us."""
    for position in (30, 60, 90):
        job = f"{secrets.token_hex(8)}.1"
        proxy.cut_after(down=position)
        assert far.start(job, ["sh", "-c", "echo ran; sleep 0.1"], _soon())
        proxy.cut_after()
        deadline = _soon()
        while far.is_alive(job, deadline):
            time.sleep(0.05)
        far.pull(far.job_dir(job) / "stdout", tmp_path / "out", _soon(), max_bytes=1000)
        assert (tmp_path / "out").read_text() == "ran\n"
    assert proxy.cuts >= 3


CALLS: dict[str, Callable[[AdbDevice, Path, Deadline], object]] = {
    "probe": lambda d, f, t: d.probe(t),
    "run": lambda d, f, t: d.run(["true"], t),
    "put": lambda d, f, t: d.put(f, t),
    "write": lambda d, f, t: d.write(d.root / "jobs" / "x", b"x", t),
    "pull": lambda d, f, t: d.pull(d.root / "jobs" / "x", f.with_name("got"), t, max_bytes=10),
    "start": lambda d, f, t: d.start(f"{secrets.token_hex(8)}.1", ["true"], t),
    "is_alive": lambda d, f, t: d.is_alive("x.1", t),
    "kill": lambda d, f, t: d.kill("x.1", t),
}


def test_no_call_outlives_its_deadline_on_a_dead_link(far: AdbDevice, proxy: Proxy, tmp_path: Path) -> None:
    """A link that swallows everything: each call raises by its deadline plus two seconds."""
    source = tmp_path / "f"
    source.write_bytes(secrets.token_bytes(100_000))
    proxy.swallow(True)
    outcomes: dict[str, tuple[object, float]] = {}

    def attempt(name: str) -> None:
        began = time.monotonic()
        try:
            CALLS[name](far, source, _soon(0.7))
            outcome: object = None
        except Exception as e:
            outcome = e
        outcomes[name] = (outcome, time.monotonic() - began)

    threads = [threading.Thread(target=attempt, args=(name,)) for name in CALLS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, (outcome, seconds) in outcomes.items():
        assert isinstance(outcome, (DeviceTimeout, DeviceLost)), (name, outcome)
        assert seconds < 2.7, name  # the contract: deadline + 2 s
    proxy.swallow(False)
    proxy.cut()
    _again(far)


def test_adbd_that_is_killed_comes_back(board: BoardDevice) -> None:
    """adbd dies under a command: DeviceLost, not a result; the next query finds the restarted one."""
    with pytest.raises(DeviceLost):
        board.run(["sh", "-c", "echo part; kill -9 $(pidof adbd 2>/dev/null || pgrep -x adbd); sleep 5"], _soon(10))
    assert board.probe(_soon()).abi == "x86_64"
