"""One measurement at a time on one device, among all edgekit processes of this host.

The first line: it needs no store, so it also keeps two workspaces of one host apart. Processes on several hosts, and
one that stands still, are what leases are for (`lease`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import DeviceBusy, HostError
from edgekit.leases import Leases

__all__ = ["HostLock", "device_lock"]


@contextmanager
def device_lock(info: DeviceInfo, deadline: Deadline) -> Iterator[None]:
    """Hold `info`'s device for this process. Raises DeviceBusy, with the holder's pid, when it is not free in time."""
    with HostLock(info) as lock:
        lock.wait(deadline)
        yield


class HostLock:
    """The lock file of one device; a context manager, entered without the lock.

    Keyed by the identity read from the device: one phone on USB and over TCP has two adb serials and one lock. The
    kernel lets go of it when its holder ends, however it ends.
    """

    def __init__(self, info: DeviceInfo) -> None:
        self._spec = info.spec
        path = Path(tempfile.gettempdir()) / f"edgekit-device-{Leases.key(info.serial)[:24]}.lock"
        self._descriptor: int | None = _open_for_all(path)
        self._mutex = threading.Lock()
        self._is_held = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        with self._mutex:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def take(self) -> bool:
        """Whether the lock is held by this object now."""
        with self._mutex:
            if self._is_held or self._descriptor is None:
                return self._is_held
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            with contextlib.suppress(OSError):  # for the message only; another user's file may be read-only
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
            self._is_held = True
            return True

    def holder(self) -> int | None:
        """The pid that its holder wrote into it."""
        if self._descriptor is None:
            return None
        text = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else None

    def wait(self, deadline: Deadline, *, unless_held_by: int | None = None) -> bool:
        """Take the lock; False where the process `unless_held_by` has it. Raises DeviceBusy past the deadline."""
        while not self.take():
            holder = self.holder()
            if holder is not None and holder == unless_held_by:
                return False
            if deadline.remaining <= 0:
                raise DeviceBusy(
                    f"process {holder or 'unknown'} is measuring on it",
                    device=self._spec,
                    hint="wait for it to end, or end it",
                )
            time.sleep(min(0.05, deadline.remaining))
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
