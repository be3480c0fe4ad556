"""adb: which client is used, what its listing means, and a fake adbd behind the real client and server."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from support.adb_server import AdbServer
from support.fake_adbd import FakeAdbd
from support.links import again

from edgekit.benchmarks.devices.adb import AdbDevice, AdbTransport
from edgekit.benchmarks.devices.adb_attached import AttachedDevice, attached, parse_devices, state_problem
from edgekit.benchmarks.devices.adb_client import AdbClient, find_adb
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.listing import list_devices
from edgekit.errors import DeviceLost, DeviceTimeout, DeviceUnauthorized, DeviceUnusable, UserError

LISTING = """* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
R5CT30ABCDE            device usb:1-1 product:dm3q model:SM_S918B device:dm3q transport_id:7
emulator-5554          offline transport_id:2
0123456789ABCDEF       unauthorized usb:3-2 transport_id:3
8XV7N15A               no permissions (missing udev rules?); see [http://example.org/device.html] usb:1-4 transport_id:4
192.168.1.7:5555       device product:x model:device_transport_id:9 device:unauthorized transport_id:12

"""


def _soon(seconds: float = 20.0) -> Deadline:
    return Deadline.after(seconds)


def test_the_listing_is_understood() -> None:
    """Serial, state (one may hold spaces), model and transport id of each row; daemon chatter is left out."""
    assert parse_devices(LISTING) == (
        AttachedDevice(serial="R5CT30ABCDE", state="device", model="SM_S918B", transport_id=7),
        AttachedDevice(serial="emulator-5554", state="offline", transport_id=2),
        AttachedDevice(serial="0123456789ABCDEF", state="unauthorized", transport_id=3),
        AttachedDevice(serial="8XV7N15A", state="no permissions", transport_id=4),
        AttachedDevice(serial="192.168.1.7:5555", state="device", model="device_transport_id:9", transport_id=12),
    )


@pytest.mark.parametrize(
    "row",
    ["", "justaserial", "x nosuchstate", "\x1b[2Jx device", "a\u202eb device", "x devicex", "   "],
)
def test_rows_that_are_none_are_left_out(row: str) -> None:
    """What is not `SERIAL STATE …` in printable characters is no device."""
    assert parse_devices(f"List of devices attached\n{row}\ngood device\n") == (
        AttachedDevice(serial="good", state="device"),
    )


@pytest.mark.parametrize("serial", ["(no serial number)", "$(id)", "a b", "-s", "x;y", "????????????"])
def test_a_serial_that_cannot_be_passed_on_is_shown_but_not_used(serial: str) -> None:
    """A hostile or broken serial is listed with its reason, and is never put on a command line."""
    (row,) = parse_devices(f"List of devices attached\n{serial}  device transport_id:1\n")
    assert row.serial == serial
    assert state_problem(row) is not None
    with pytest.raises(UserError):
        AdbTransport(AdbClient(path=Path("/nowhere/adb"), version=(36, 0, 0)), serial)


def test_every_state_but_device_is_a_problem_with_a_hint() -> None:
    """Each state says what it is and what to do; waiting for permission is its own error."""
    for state in ("offline", "unauthorized", "authorizing", "no permissions", "bootloader", "recovery", "unknown"):
        problem = state_problem(AttachedDevice(serial="x", state=state))
        assert problem is not None
        assert problem.hint
        assert isinstance(problem, DeviceUnauthorized) == (state in ("unauthorized", "authorizing"))
    assert state_problem(AttachedDevice(serial="x", state="device")) is None


def _script(folder: Path, text: str) -> Path:
    path = folder / "adb"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_old_client_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """platform-tools 29 exits 0 on a cut link; naming it explicitly does not make it better."""
    path = _script(tmp_path, "echo 'Android Debug Bridge version 1.0.41'; echo 'Version 29.0.6-debian'")
    monkeypatch.setenv("EDGEKIT_ADB", str(path))
    with pytest.raises(DeviceUnusable, match=r"29\.0\.6 is too old") as caught:
        find_adb()
    assert caught.value.hint
    assert "34" in caught.value.hint


def test_an_old_client_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian 12's adb on PATH does not stop edgekit: the one adbutils carries is used."""
    _script(tmp_path, "echo 'Version 29.0.6-debian'")
    monkeypatch.delenv("EDGEKIT_ADB", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    adb = find_adb()
    assert adb.path.parent != tmp_path
    assert adb.version >= (34, 0, 0)


@pytest.mark.parametrize("text", ["echo hello", "exit 1", "echo 'Version x.y.z'"])
def test_what_is_not_adb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A program that does not tell its version as adb does is not used."""
    monkeypatch.setenv("EDGEKIT_ADB", str(_script(tmp_path, text)))
    with pytest.raises(DeviceUnusable, match="does not tell its version"):
        find_adb()
    monkeypatch.setenv("EDGEKIT_ADB", str(tmp_path / "nosuch"))
    with pytest.raises(DeviceUnusable, match="nosuch"):
        find_adb()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AdbClient, int]]:
    """A private adb server for the tests of this file."""
    with AdbServer(tmp_path_factory.mktemp("adb")) as made:
        yield made.client, made.port


def _device(server: tuple[AdbClient, int], fake: FakeAdbd, folder: Path) -> AdbDevice:
    return AdbDevice(AdbTransport(server[0], fake.serial), root=PurePosixPath(folder / "device"))


def test_the_fake_answers_as_a_device(server: tuple[AdbClient, int], tmp_path: Path) -> None:
    """The real client and server talk to the fake: streams, status and arguments are as on a real adbd."""
    with FakeAdbd() as fake, _device(server, fake, tmp_path) as device:
        done = device.run(["sh", "-c", 'printf %s "$1"; echo err >&2; exit 9', "sh", "a'b $(id)"], _soon())
        assert (done.stdout, done.stderr, done.returncode) == ("a'b $(id)", "err\n", 9)


def test_no_stream_cut_after_any_byte_is_accepted(server: tuple[AdbClient, int], tmp_path: Path) -> None:
    """adbd's connection closed after every single byte of a shell's stream: DeviceLost each time."""
    # A packet header of 5, 20 bytes, a sentinel of 37; a header of 5, a sentinel of 37: whole at 104.
    positions = range(104)
    outcomes: dict[int, object] = {}

    def cut_at(mine: range) -> None:
        with FakeAdbd() as fake, _device(server, fake, tmp_path / str(mine.start)) as device:
            for position in mine:
                again(device)
                fake.cut_reply_after = position
                try:
                    outcomes[position] = device.run(["printf", "x" * 20], _soon(10))
                except DeviceLost as e:
                    outcomes[position] = e if fake.cut_reply_after is None else "the cut did not happen"

    workers = 8  # most of the time is the server's pause before it connects again
    threads = [threading.Thread(target=cut_at, args=(positions[i::workers],)) for i in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == list(positions)
    assert not {p: o for p, o in outcomes.items() if not isinstance(o, DeviceLost)}


def test_an_unauthorized_device_is_told_apart(server: tuple[AdbClient, int], tmp_path: Path) -> None:
    """`adb connect` exits 0 for a device that asks for permission; opening it is DeviceUnauthorized with the fix."""
    with (
        FakeAdbd(mode="unauthorized") as fake,
        pytest.raises(DeviceUnauthorized) as caught,
        _device(server, fake, tmp_path),
    ):
        pass
    assert caught.value.hint
    assert "Allow USB debugging" in caught.value.hint


def test_a_device_without_shell_v2_is_refused(server: tuple[AdbClient, int], tmp_path: Path) -> None:
    """Without shell_v2 exit codes are lost: refused at once, with the Android version that has it."""
    with (
        FakeAdbd(features="cmd") as fake,
        pytest.raises(DeviceUnusable, match="shell_v2"),
        _device(server, fake, tmp_path),
    ):
        pass


def test_a_device_that_says_nothing_does_not_hang(server: tuple[AdbClient, int]) -> None:
    """A port that accepts and is silent: an error by the deadline plus two seconds."""
    with FakeAdbd(mode="mute") as fake:
        began = time.monotonic()
        with pytest.raises((DeviceLost, DeviceTimeout, DeviceUnusable)):
            AdbTransport(server[0], fake.serial).open(_soon(1.5))
        assert time.monotonic() - began < 3.5
    server[0].run(["disconnect", fake.serial], _soon())


def test_public_addresses_are_refused(server: tuple[AdbClient, int]) -> None:
    """adbd over TCP has no authentication worth the name: `adb connect` goes to private addresses only."""
    for serial in ("8.8.8.8:5555", "example.org:5555"):
        with pytest.raises(DeviceUnusable, match="private addresses"):
            AdbTransport(server[0], serial).open(_soon(5))


def test_the_list_tells_why_each_cannot_be_used(
    server: tuple[AdbClient, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`edgekit devices`: ready ones with facts, others with state, reason and hint; this host is always there."""
    client, port = server
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    with FakeAdbd(mode="unauthorized") as locked, FakeAdbd(features="cmd") as old:
        for fake in (locked, old):
            client.run(["connect", fake.serial], _soon())
        assert {row.state for row in attached(client, _soon())} >= {"device", "unauthorized"}
        statuses = {status.spec: status for status in list_devices()}
        for fake in (locked, old):
            client.run(["disconnect", fake.serial], _soon())
    assert statuses["local"].usable
    assert statuses["local"].info is not None
    unauthorized = statuses[f"adb:{locked.serial}"]
    assert (unauthorized.usable, unauthorized.state) == (False, "unauthorized")
    assert unauthorized.hint
    too_old = statuses[f"adb:{old.serial}"]
    assert not too_old.usable
    assert "shell_v2" in (too_old.reason or "")
    assert "board:amd64" in statuses
