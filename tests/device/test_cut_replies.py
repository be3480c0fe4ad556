"""A reply of 300 bytes, cut after every single one of them, is never taken for success: over adb and over ssh."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from support.adb_server import AdbServer
from support.fake_adbd import FakeAdbd
from support.links import again, soon
from support.sshd import Sshd, need_sshd

from edgekit.benchmarks.devices.adb import AdbDevice, AdbTransport
from edgekit.benchmarks.devices.posix import PosixDevice
from edgekit.benchmarks.devices.ssh import SshDevice, SshTransport, parse_target
from edgekit.errors import DeviceError, DeviceLost

REPLY_BYTES = 300
SENTINEL_BYTES = 37
"""`\\n@<32 digits>:0@`."""
TEXT = "r" * (REPLY_BYTES - SENTINEL_BYTES)
WORKERS = 8


def _ask(device: PosixDevice) -> object:
    """What a command gave, or the error it raised."""
    try:
        return device.run(["printf", "%s", TEXT], soon(10)).stdout
    except DeviceError as e:
        return e


def _shared(step: Callable[[range], None], positions: range) -> None:
    """`step` on every WORKERS-th of `positions`, in as many threads."""
    threads = [threading.Thread(target=step, args=(positions[i::WORKERS],)) for i in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("keeps_status", [False, True], ids=["link gone", "with exit status 0"])
def test_over_adb(tmp_path: Path, keeps_status: bool) -> None:
    """Standard output ends after byte n: adbd's connection is closed there, or the shell ends with status 0."""
    outcomes: dict[int, object] = {}
    with AdbServer(tmp_path / "adb") as server:

        def cut_at(mine: range) -> None:
            with FakeAdbd() as fake:
                transport = AdbTransport(server.client, fake.serial)
                with AdbDevice(transport, root=PurePosixPath(tmp_path / str(mine.start))) as device:
                    assert _ask(device) == TEXT
                    for position in mine:
                        fake.mangle = None
                        again(device)
                        if keeps_status:
                            fake.mangle = lambda stream, n=position: (
                                b"\x01" + n.to_bytes(4, "little") + stream[5 : 5 + n] + stream[5 + REPLY_BYTES :]
                            )
                        else:
                            fake.cut_reply_after = 5 + position  # a packet's kind and length come first
                        outcomes[position] = _ask(device)

        _shared(cut_at, range(REPLY_BYTES))
    assert sorted(outcomes) == list(range(REPLY_BYTES))
    assert not {p: o for p, o in outcomes.items() if not isinstance(o, DeviceLost)}


def test_over_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output ends after byte n, standard error is whole, and the session ends in order with status 0."""
    need_sshd()
    mark = 18  # what the transport prints first: its own mark, after what a login shell says
    limit = tmp_path / "limit"
    limit.write_text("1000000")
    settings = f'ForceCommand sh -c "$SSH_ORIGINAL_COMMAND" | head -c "$(cat {limit})"'
    with Sshd(tmp_path / "sshd", settings=settings) as sshd:
        for name, value in sshd.client(tmp_path / "client").environment().items():
            monkeypatch.setenv(name, value)
        root = PurePosixPath(tmp_path / "device")
        with SshDevice(SshTransport(parse_target("testboard")), root=root) as device:
            assert _ask(device) == TEXT
            outcomes = {}
            for position in range(mark + REPLY_BYTES):
                limit.write_text(str(position))
                outcomes[position] = _ask(device)
            limit.write_text(str(mark + REPLY_BYTES))
            assert _ask(device) == TEXT
    assert not {p: o for p, o in outcomes.items() if not isinstance(o, DeviceError)}
    assert all(isinstance(outcomes[p], DeviceLost) for p in range(mark, mark + REPLY_BYTES))
