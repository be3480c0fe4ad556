"""One measurement at a time on one device, among all edgekit processes of this host."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import DeviceBusy, HostError

__all__ = ["device_lock"]


@contextmanager
def device_lock(info: DeviceInfo, deadline: Deadline) -> Iterator[None]:
    """Hold `info`'s device for this process. Raises DeviceBusy, with the holder's pid, when it is not free in time.

    Keyed by the identity read from the device: one phone on USB and over TCP has two adb serials and one lock. The
    kernel lets go of it when its holder ends, however it ends.
    """
    key = hashlib.sha256(info.serial.encode()).hexdigest()[:24]
    path = Path(tempfile.gettempdir()) / f"edgekit-device-{key}.lock"
    descriptor = _open_for_all(path)
    try:
        while not _try_lock(descriptor):
            if deadline.remaining <= 0:
                holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
                raise DeviceBusy(
                    f"process {holder if holder.isdigit() else 'unknown'} is measuring on it",
                    device=info.spec,
                    hint="wait for it to end, or end it",
                )
            time.sleep(min(0.05, deadline.remaining))
        with contextlib.suppress(OSError):  # for the message only; another user's file may be read-only
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open_for_all(path: Path) -> int:
    """The lock file, made so that every user of the host can lock it; never through a link."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        os.fchmod(descriptor, 0o666)
        return descriptor
    except FileExistsError:
        pass
    try:
        return os.open(path, flags)
    except OSError as e:
        raise HostError(f"cannot open the device lock {path}: {e.strerror}") from e
