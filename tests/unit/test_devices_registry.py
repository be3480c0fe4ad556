"""Device specs, the lock, and child processes that end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.local import LocalDevice, cache_dir
from edgekit.benchmarks.devices.process import run_bounded
from edgekit.benchmarks.devices.registry import device_lock, open_device
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import DeviceBusy, DeviceTimeout, DeviceUnusable, HostError, OutputLimitError, UserError


def test_local_is_this_host() -> None:
    """`local` opens without being connected; its Python is the one that runs."""
    device = open_device("local")
    assert isinstance(device, LocalDevice)
    assert (device.spec, device.python) == ("local", sys.executable)


def test_an_unknown_kind_names_the_nearest() -> None:
    """A typing mistake is answered with the name that was meant."""
    with pytest.raises(UserError, match="did you mean 'local'"):
        open_device("lokal")
    with pytest.raises(UserError):
        open_device("adb:")


@pytest.mark.parametrize("spec", ["local:x", "board:riscv64", "board:arm64-99", "board:$(id)"])
def test_an_argument_that_a_kind_does_not_take_is_said(spec: str) -> None:
    """Known kind, wrong argument: unusable, with what to write instead."""
    with pytest.raises(DeviceUnusable) as caught:
        open_device(spec)
    assert caught.value.hint


@pytest.mark.parametrize("serial", ["", "a b", "-s", "$(id)", "x;y", "x" * 200])
def test_a_serial_from_the_user_is_checked(serial: str) -> None:
    """No serial that is not one reaches a command line."""
    with pytest.raises(UserError):
        open_device(f"adb:{serial}")


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EDGEKIT_CACHE moves everything edgekit keeps, the local device's folder too."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    assert str(LocalDevice().root) == str(tmp_path / "devices" / "local")


@pytest.fixture
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock files in the test's own folder, for this process and its children."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def _info(serial: str) -> DeviceInfo:
    return DeviceInfo(spec="adb:x", kind="adb", serial=serial)


def test_one_device_has_one_holder(own_locks: None) -> None:
    """While one process measures, another is told its pid; SIGKILL of the holder frees the device."""
    serial = f"test-{os.getpid()}-{time.time_ns()}"
    script = (
        "import sys, time\n"
        "from edgekit.benchmarks.devices.base import Deadline\n"
        "from edgekit.benchmarks.devices.registry import device_lock\n"
        "from edgekit.benchmarks.values import DeviceInfo\n"
        "with device_lock(DeviceInfo(spec='local', kind='local', serial=sys.argv[1]), Deadline.after(5)):\n"
        "    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, serial], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DeviceBusy, match=str(holder.pid)), device_lock(_info(serial), Deadline.after(0.2)):
            pass
        with device_lock(_info(serial + "-other"), Deadline.after(0.2)):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with device_lock(_info(serial), Deadline.after(5)):
        pass


def test_two_threads_do_not_share_the_lock(own_locks: None) -> None:
    """Within one process, too, there is one holder; the other waits and then gets it."""
    serial = f"test-{os.getpid()}-{time.time_ns()}"
    order: list[str] = []

    def second() -> None:
        with device_lock(_info(serial), Deadline.after(5)):
            order.append("second")

    with device_lock(_info(serial), Deadline.after(1)):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_child_and_its_children_end_at_the_deadline(tmp_path: Path) -> None:
    """A command that hangs with a grandchild holding its output is killed whole, by the deadline plus two seconds."""
    began = time.monotonic()
    script = f"sleep 300 & echo $! > {tmp_path}/pid; sleep 300"
    with pytest.raises(DeviceTimeout):
        run_bounded(["sh", "-c", script], Deadline.after(0.5), device="d")
    assert time.monotonic() - began < 2.5
    grandchild = int((tmp_path / "pid").read_text())
    deadline = Deadline.after(2)
    while Path(f"/proc/{grandchild}").exists() and deadline.remaining:
        if Path(f"/proc/{grandchild}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.02)
    assert deadline.remaining


def test_a_child_that_drips_ends_at_the_deadline() -> None:
    """Output that keeps coming does not move the deadline."""
    began = time.monotonic()
    with pytest.raises(DeviceTimeout):
        run_bounded(["sh", "-c", "while :; do echo x; sleep 0.1; done"], Deadline.after(0.6), device="d")
    assert time.monotonic() - began < 2.6


def test_too_much_output_is_refused() -> None:
    """stdout and stderr together count against the limit."""
    script = "head -c 700000 /dev/zero; head -c 700000 /dev/zero >&2"
    with pytest.raises(OutputLimitError):
        run_bounded(["sh", "-c", script], Deadline.after(10), device="d", max_output=1_000_000)
    reply = run_bounded(["sh", "-c", script], Deadline.after(10), device="d", max_output=1_400_000)
    assert (len(reply.stdout), len(reply.stderr)) == (700_000, 700_000)


def test_a_missing_program_is_the_hosts_error() -> None:
    """Said by name, not a traceback."""
    with pytest.raises(HostError, match="nosuchprogram"):
        run_bounded(["/nosuchprogram"], Deadline.after(1), device="d")
