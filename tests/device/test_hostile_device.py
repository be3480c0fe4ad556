"""A device that lies, floods and breaks the protocol, behind the real adb client: named errors, nothing believed."""

from __future__ import annotations

import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest
from support.adb_server import AdbServer
from support.fake_adbd import FakeAdbd
from support.links import again, soon

from edgekit.benchmarks.devices.adb import AdbDevice, AdbTransport, attached
from edgekit.errors import DeviceError, DeviceLost, EdgekitError, HungCommand, IntegrityError, OutputLimitError

TEXT = "x" * 40
EXIT_BYTES = 6
"""The last packet of a shell's stream: a kind, a length of four bytes, the status."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdbServer]:
    with AdbServer(tmp_path_factory.mktemp("adb")) as server:
        yield server


@pytest.fixture
def fake() -> Iterator[FakeAdbd]:
    with FakeAdbd() as fake:
        yield fake


@pytest.fixture
def device(server: AdbServer, fake: FakeAdbd, tmp_path: Path) -> Iterator[AdbDevice]:
    root = PurePosixPath(tmp_path / "device")
    with AdbDevice(AdbTransport(server.client, fake.serial), root=root) as device:
        yield device


def _packet(kind: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<BI", kind, len(data) if length is None else length) + data


LOST: dict[str, Callable[[bytes], bytes]] = {
    "a packet of 4 GiB": lambda s: _packet(1, b"short", 0xFFFFFFFF) + s,
    "nothing at all": lambda s: b"",
    "half a packet header": lambda s: s[:3],
    "unknown packet kinds only": lambda s: _packet(77, b"what") * 3,
    "text before the end mark is missing its end": lambda s: s.replace(b":0@", b":0"),
    "another status in one stream": lambda s: s.replace(b":0@", b":7@", 1),
    "text after the end mark": lambda s: s[:-EXIT_BYTES] + _packet(1, b"more") + s[-EXIT_BYTES:],
}


@pytest.mark.parametrize("name", LOST)
def test_a_stream_that_breaks_the_protocol_is_a_lost_link(device: AdbDevice, fake: FakeAdbd, name: str) -> None:
    """Whatever exit status the client makes of it, no part of it is taken for a reply; the next command works."""
    fake.mangle = LOST[name]
    with pytest.raises((DeviceLost, HungCommand)):
        device.run(["printf", TEXT], soon(5))
    fake.mangle = None
    again(device)
    assert device.run(["printf", TEXT], soon()).stdout == TEXT


WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "a packet of 4 GiB at the end": lambda s: s[:-EXIT_BYTES] + _packet(1, b"", 0xFFFFFFFF),
    "no exit packet": lambda s: s[:-EXIT_BYTES],
    "an exit packet without a status": lambda s: s[:-EXIT_BYTES] + _packet(3, b""),
    "another status in the exit packet": lambda s: s[:-1] + b"\x63",
    "data after the exit packet": lambda s: s + _packet(1, b"late"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_reply_counts_whatever_the_exit_packet_says(device: AdbDevice, fake: FakeAdbd, name: str) -> None:
    """The status is the one in the end mark: a reply is right or it is lost, never another."""
    fake.mangle = WHOLE[name]
    try:
        done = device.run(["sh", "-c", f"printf {TEXT}; exit 5"], soon(5))
    except DeviceLost:
        pass
    else:
        assert (done.stdout, done.returncode) == (TEXT, 5)
    fake.mangle = None
    again(device)


def test_a_packet_of_the_protocol_with_4_gib_ends_the_link(device: AdbDevice, fake: FakeAdbd) -> None:
    """The server refuses it and drops the device: DeviceLost (or no answer in time), and the device comes back."""
    code = int.from_bytes(b"WRTE", "little")
    fake.raw_reply = struct.pack("<6I", code, 1, 1, 0xFFFFFFFF, 0, code ^ 0xFFFFFFFF)
    with pytest.raises((DeviceLost, EdgekitError)) as caught:
        device.run(["true"], soon(4))
    assert caught.value.code in ("DEVICE_LOST", "DEVICE_TIMEOUT")
    fake.cut()
    again(device)


PULLED: dict[str, Callable[[bytes], bytes]] = {
    "a chunk of 4 GiB": lambda d: struct.pack("<4sI", b"DATA", 0xFFFFFFFF) + d[8:] if d[:4] == b"DATA" else d,
    "another file's content": lambda d: d[:8] + b"?" * (len(d) - 8) if d[:4] == b"DATA" else d,
    "nothing": lambda d: b"" if d[:4] == b"DATA" else d,
    "a failure with escapes": lambda d: struct.pack("<4sI", b"FAIL", 9) + b"\x1b[31mno\n!" if d[:4] == b"DATA" else d,
    "an unknown answer": lambda d: struct.pack("<4sI", b"WHAT", 0) if d[:4] == b"DATA" else d,
    "a size of 4 GiB": lambda d: struct.pack("<4sIII", b"STAT", 0o100644, 0xFFFFFFFF, 0) if d[:4] == b"STAT" else d,
    "a folder of files": lambda d: struct.pack("<4sIII", b"STAT", 0o040755, 0, 0) if d[:4] == b"STAT" else d,
    "a folder of escapes": lambda d: struct.pack("<4sIII", b"STAT", 0o040755, 0, 0) if d[:4] == b"STAT" else d,
}


@pytest.mark.parametrize("name", PULLED)
def test_a_pull_gives_the_file_or_an_error(device: AdbDevice, fake: FakeAdbd, tmp_path: Path, name: str) -> None:
    """The destination holds the right content or is as it was, and nothing else lies beside it."""
    data = b"content" * 1000
    device.write(device.root / "jobs" / "x", data, soon())
    place = tmp_path / "in"
    place.mkdir()
    (place / "got").write_bytes(b"before")
    fake.mangle_sync = PULLED[name]
    fake.listing = (b"plain", b"../escaped", b"/tmp/edgekit-escaped") if "escapes" in name else (b"plain",)
    outcome: str | None = None
    try:
        device.pull(device.root / "jobs" / "x", place / "got", soon(4), max_bytes=100_000)
    except DeviceError as e:
        outcome = e.code
    assert outcome in (None, "DEVICE_LOST", "DEVICE_TIMEOUT", "INTEGRITY", "OUTPUT_LIMIT", "DEVICE")
    assert (place / "got").read_bytes() == (data if outcome is None else b"before")
    assert [p.name for p in place.iterdir()] == ["got"]
    assert {p.name for p in tmp_path.iterdir()} <= {"in", "device"}  # `../escaped` of the folder's listing
    fake.mangle_sync = None
    again(device)


def test_a_file_without_end_is_cut_off(device: AdbDevice, fake: FakeAdbd, tmp_path: Path) -> None:
    """A device that goes on sending is stopped a little beyond the limit, long before the deadline."""
    fake.mangle_sync = lambda d: d * 2000 if d[:4] == b"DATA" else d  # 128 MB instead of 64 kB
    device.write(device.root / "jobs" / "x", b"y" * 65_536, soon())
    with pytest.raises((OutputLimitError, IntegrityError)):
        device.pull(device.root / "jobs" / "x", tmp_path / "got", soon(20), max_bytes=100_000)
    assert not (tmp_path / "got").exists()


def test_endless_output_is_cut_off_and_costs_little(device: AdbDevice, fake: FakeAdbd) -> None:
    """More than 16 MiB from one command is OutputLimitError; the host keeps no more of it than that."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fake.is_endless = True
    with pytest.raises(OutputLimitError):
        device.run(["true"], soon(30))
    fake.is_endless = False
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024  # KiB; S17 of the threat model
    fake.cut()
    again(device)


@pytest.mark.parametrize(
    "product", ["<script>alert(1)</script>", "$(touch CANARY)", "x" * 200_000, "\x1b[31mred", "a;b=c;d", "../../x"]
)
def test_a_banner_is_shown_or_dropped_but_obeyed_never(server: AdbServer, product: str, tmp_path: Path) -> None:
    """A product name of 200 kB, markup, escapes: the list of devices stays a list of short printable rows."""
    with FakeAdbd(model=product) as fake:
        server.client.run(["connect", fake.serial], soon())
        rows = attached(server.client, soon())
        assert all(len(row.serial) <= 128 and len(row.model or "") <= 100 for row in rows)
        assert all((row.model or "").isprintable() for row in rows)
        transport = AdbTransport(server.client, fake.serial)
        outcome = None
        try:
            with AdbDevice(transport, root=PurePosixPath(tmp_path / "device")) as device:
                assert device.run(["echo", "on"], soon()).stdout == "on\n"
        except EdgekitError as e:
            outcome = e.code
        assert outcome in (None, "DEVICE_UNUSABLE", "DEVICE_LOST", "DEVICE_TIMEOUT")
        server.client.run(["disconnect", fake.serial], soon())


@pytest.mark.parametrize("said", [b"", b"none", b"-1", b"99999999999999999999", b"1\n2\n3", b"\xff\xfe", b"7 7 7"])
def test_sizes_that_are_none_are_refused(device: AdbDevice, fake: FakeAdbd, tmp_path: Path, said: bytes) -> None:
    """What is said to be a file's size and hash is checked before it is used: an error, or the file is refused."""
    device.write(device.root / "jobs" / "x", b"y", soon())
    fake.substitutions[b"wc -c"] = b"printf '%b\\n' '" + said.replace(b"\n", b"\\n") + b"'; : "
    with pytest.raises(DeviceError) as caught:
        device.pull(device.root / "jobs" / "x", tmp_path / "got", soon(10), max_bytes=1000)
    assert caught.value.code in ("DEVICE", "INTEGRITY", "OUTPUT_LIMIT", "COMMAND")
    assert not (tmp_path / "got").exists()
