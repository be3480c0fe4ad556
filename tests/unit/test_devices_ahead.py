"""A large file that is surely new is sent while it is hashed: whole or not at all, and nothing is left behind."""

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.local import LocalDevice
from edgekit.errors import DeviceLost, IntegrityError

SIZE = (4 << 20) + 7

Send = Callable[[Path, PurePosixPath, Deadline], None]


def soon() -> Deadline:
    return Deadline.after(30)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "large file's $(name).bin"
    path.write_bytes(os.urandom(SIZE))
    return path


def watch(
    device: LocalDevice, monkeypatch: pytest.MonkeyPatch, *, broken: dict[int, Callable[[Path], None]] | None = None
) -> list[str]:
    """The names that files are sent to, in order; `broken` does something to what arrived in the n-th sending."""
    sent: list[str] = []
    transport = device._transport
    real: Send = transport.send

    def send(path: Path, destination: PurePosixPath, deadline: Deadline) -> None:
        sent.append(destination.name)
        real(path, destination, deadline)
        if broken and len(sent) in broken:
            broken[len(sent)](Path(destination))

    monkeypatch.setattr(transport, "send", send)
    return sent


def check_whole(device: LocalDevice, source: Path, final: PurePosixPath) -> None:
    assert Path(final).read_bytes() == source.read_bytes()
    assert [p for p in Path(device.root / "cas").iterdir() if p.name.startswith(".")] == [], "nothing is left behind"


def test_a_new_large_file_is_sent_once_and_a_second_put_sends_nothing(
    local_device: LocalDevice, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent ahead of its hash, found by it afterwards."""
    sent = watch(local_device, monkeypatch)
    final = local_device.put(source, soon())
    assert len(sent) == 1
    assert sent[0].startswith(".ahead.")
    check_whole(local_device, source, final)
    assert local_device.put(source, soon()) == final
    assert len(sent) == 1


def test_a_file_of_a_size_that_is_there_is_hashed_first(
    local_device: LocalDevice, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the same file: only where the hash says it is another one is it sent."""
    other = tmp_path / "other"
    other.write_bytes(os.urandom(SIZE))
    local_device.put(other, soon())
    sent = watch(local_device, monkeypatch)
    check_whole(local_device, source, local_device.put(source, soon()))
    assert len(sent) == 1
    assert not sent[0].startswith(".ahead.")


def test_what_arrived_changed_is_sent_again(
    local_device: LocalDevice, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short on the way ahead: the usual way follows; changed there too, it is an error, and nothing is left."""
    sent = watch(local_device, monkeypatch, broken={1: lambda path: os.truncate(path, SIZE // 2)})
    check_whole(local_device, source, local_device.put(source, soon()))
    assert len(sent) == 2
    another = source.with_name("another")
    another.write_bytes(os.urandom(SIZE + 1))
    always = {n: lambda path: os.truncate(path, 5) for n in range(9)}
    watch(local_device, monkeypatch, broken=always)
    with pytest.raises(IntegrityError):
        local_device.put(another, soon())
    check_whole(local_device, source, local_device.put(source, soon()))


def test_a_link_lost_on_the_way_ahead_is_tried_the_usual_way(
    local_device: LocalDevice, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss costs the time, not the file."""

    def lose(path: Path) -> None:
        os.truncate(path, 100)
        raise DeviceLost("cut", device="local")

    sent = watch(local_device, monkeypatch, broken={1: lose})
    check_whole(local_device, source, local_device.put(source, soon()))
    assert len(sent) == 2
