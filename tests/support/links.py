"""What is done to a link, and asked of a device behind it, whatever carries it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.proxy import Proxy

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.posix import PosixDevice
from edgekit.errors import DeviceLost, DeviceTimeout, EdgekitError


def soon(seconds: float = 20.0) -> Deadline:
    return Deadline.after(seconds)


def again(device: PosixDevice) -> None:
    """Wait until the link is back."""
    deadline = soon(20)
    while True:
        try:
            device._transport.recover(deadline)
            device.run(["true"], soon(2))
            return
        except EdgekitError:
            assert deadline.remaining, "the link did not come back"


@contextmanager
def meanwhile(step: Callable[[], object], pause: Callable[[], float]) -> Iterator[None]:
    """`step` again and again in a thread of its own, `pause()` seconds before each."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(pause()):
            step()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


CALLS: dict[str, Callable[[PosixDevice, Path, Deadline], object]] = {
    "probe": lambda d, f, t: d.probe(t),
    "run": lambda d, f, t: d.run(["true"], t),
    "put": lambda d, f, t: d.put(f, t),
    "write": lambda d, f, t: d.write(d.root / "jobs" / "x", b"x", t),
    "pull": lambda d, f, t: d.pull(d.root / "jobs" / "x", f.with_name("got"), t, max_bytes=10),
    "start": lambda d, f, t: d.start(f"{secrets.token_hex(8)}.1", ["true"], t),
    "is_alive": lambda d, f, t: d.is_alive("x.1", t),
    "kill": lambda d, f, t: d.kill("x.1", t),
}
"""Every call of a device, by name."""


def calls(device: PosixDevice, source: Path) -> dict[str, Callable[[], object]]:
    """CALLS on a device, each with 0.7 s."""
    return {name: lambda call=call: call(device, source, soon(0.7)) for name, call in CALLS.items()}


def outcomes(steps: Mapping[str, Callable[[], object]]) -> dict[str, tuple[object, float]]:
    """What each step raised (None: nothing) and after how many seconds; all at once."""
    found: dict[str, tuple[object, float]] = {}

    def attempt(name: str) -> None:
        began = time.monotonic()
        try:
            steps[name]()
            outcome: object = None
        except Exception as e:
            outcome = e
        found[name] = (outcome, time.monotonic() - began)

    threads = [threading.Thread(target=attempt, args=(name,)) for name in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def check_that_a_put_gives_up(far: PosixDevice, proxy: Proxy, source: Path) -> None:
    """A link that is always cut: an error by the deadline plus two seconds, which is the contract."""
    began = time.monotonic()
    proxy.cut_after(up=1 << 20, every=True)
    with pytest.raises((DeviceLost, DeviceTimeout)):
        far.put(source, soon(6))
    proxy.cut_after()
    assert time.monotonic() - began < 8


def check_that_a_job_survives(far: PosixDevice, proxy: Proxy, tmp_path: Path) -> None:
    """A job goes on while the link is cut, is not started again, and its output is pulled later."""
    job = f"{secrets.token_hex(8)}.1"
    argv = ["sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.2; done"]
    assert far.start(job, argv, soon())
    proxy.cut()
    again(far)
    assert not far.start(job, argv, soon())
    deadline = soon()
    while far.is_alive(job, deadline):
        time.sleep(0.1)
    far.pull(far.job_dir(job) / "stdout", tmp_path / "out", soon(), max_bytes=1000)
    assert (tmp_path / "out").read_text().split() == ["1", "2", "3", "4", "5"]


def check_that_a_lost_start_starts_once(
    far: PosixDevice, proxy: Proxy, tmp_path: Path, *, positions: Sequence[int]
) -> None:
    """The link is cut after so many bytes of the answer to `start`: it is asked again, and the job ran once, by us."""
    for position in positions:
        job = f"{secrets.token_hex(8)}.1"
        proxy.cut_after(down=position)
        assert far.start(job, ["sh", "-c", "echo ran; sleep 0.1"], soon())
        proxy.cut_after()
        deadline = soon()
        while far.is_alive(job, deadline):
            time.sleep(0.05)
        far.pull(far.job_dir(job) / "stdout", tmp_path / "out", soon(), max_bytes=1000)
        assert (tmp_path / "out").read_text() == "ran\n"
    assert proxy.cuts >= len(positions)
