"""Holding a device for a while: a lease in the results store, kept alive by a thread, and the host's lock.

    with hold_device(info, Deadline.after(5), store) as held:
        measure(device, info, artifact, inputs, plan, store=held, ...)

What is begun or recorded through `held` is checked against the lease in the same transaction. A holder that stood
still (SIGSTOP, a suspended laptop, a database that did not answer) for longer than its lease finds that out at its
next look at the device and gives up with LeaseLost, before it touches what is another's by now.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.lock import HostLock
from edgekit.benchmarks.journal import Store, StoreView
from edgekit.benchmarks.values import DeviceInfo, Run
from edgekit.errors import DeviceBusy, LeaseLost, StoreError
from edgekit.leases import Fence, Holder, Leases, Owner
from edgekit.store import ResultStore

__all__ = ["LeaseTiming", "hold_device", "holder"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTiming:
    """How often an owner says that it lives, and how long it may be silent before it is held for dead."""

    beat_seconds: float = 10.0
    expiry_seconds: float = 30.0


_TIMING = LeaseTiming()


@contextmanager
def hold_device(
    info: DeviceInfo, deadline: Deadline, store: Store, *, timing: LeaseTiming = _TIMING
) -> Iterator[Store]:
    """Hold `info`'s device; gives the store to measure with. Raises DeviceBusy, naming the holder, StoreError.

    A holder that cannot be told alive (on another host, or stopped) is watched past the deadline, until it beats
    (DeviceBusy) or has been silent for its expiry (taken over). A store that no other process shares has no leases.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(HostLock(info))
        if not isinstance(store, ResultStore):
            lock.wait(deadline)
            yield store
            return
        fence, former = _acquire(store.leases, info, deadline, timing)
        stack.callback(_release, store.leases, fence, info)
        # A stopped holder keeps the host's lock until it goes on; its lease, which is what counts, it has lost.
        lock.wait(deadline, unless_held_by=former.owner.pid if former is not None else None)
        heart = _Heart(store.leases, fence, timing, lock)
        stack.callback(heart.stop)
        heart.start()
        yield _FencedStore(store, fence, heart)


def holder(store: ResultStore, info: DeviceInfo) -> Holder | None:
    """Who holds the device in this store now, or None."""
    return store.leases.holder(info.serial)


def _acquire(leases: Leases, info: DeviceInfo, deadline: Deadline, timing: LeaseTiming) -> tuple[Fence, Holder | None]:
    """The lease, and the holder it was taken from for its silence."""
    owner = Owner.this_process()
    watched: Holder | None = None
    since, does_beat, pause = 0.0, False, 0.02
    while True:
        is_silent = watched is not None and time.monotonic() - since >= watched.expiry_seconds
        got = leases.acquire(
            info.serial,
            info.spec,
            owner,
            expiry_seconds=timing.expiry_seconds,
            silent=watched if is_silent else None,
        )
        if isinstance(got, Fence):
            if is_silent:
                log.warning("%s: taken over from %s, which fell silent", info.spec, watched)
            return got, watched if is_silent else None
        if watched is None or (got.token, got.beat) != (watched.token, watched.beat):
            does_beat = does_beat or (watched is not None and got.token == watched.token)
            watched, since = got, time.monotonic()
        if deadline.remaining <= 0 and (does_beat or got.owner.state() == "running"):
            raise DeviceBusy(f"{got} is measuring on it", device=info.spec, hint="wait for it to end, or end it")
        time.sleep(pause)
        pause = min(0.5, pause * 1.5, timing.expiry_seconds / 4)


def _release(leases: Leases, fence: Fence, info: DeviceInfo) -> None:
    try:
        leases.release(fence)
    except StoreError as e:
        log.warning("%s: its lease could not be given back and will be taken over: %s", info.spec, e.message)


def _clock() -> float:
    """Seconds that also pass while this host is suspended, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _Heart(threading.Thread):
    """Beats for a lease until stopped, and knows when it is lost."""

    def __init__(self, leases: Leases, fence: Fence, timing: LeaseTiming, lock: HostLock) -> None:
        super().__init__(name="edgekit-lease", daemon=True)
        self._leases = leases
        self._fence = fence
        self._timing = timing
        self._lock = lock
        self._stopping = threading.Event()
        self._confirmed = _clock()
        self._lost: LeaseLost | None = None

    def run(self) -> None:
        while not self._stopping.wait(self._timing.beat_seconds) and self._lost is None:
            self._lock.take()  # where a stopped process had it and has let go
            try:
                self._beat()
            except LeaseLost as e:
                log.warning("%s", e.message)
            except StoreError as e:
                log.warning("the lease could not be renewed, trying again: %s", e.message)

    def stop(self) -> None:
        self._stopping.set()
        self.join(5.0)

    def check(self) -> None:
        """Raise LeaseLost when the lease is lost; asks the store only when the last beat is too long ago to know."""
        if self._lost is not None:
            raise LeaseLost(self._lost.message, hint=self._lost.hint)
        if _clock() - self._confirmed > self._timing.expiry_seconds * 0.9:
            self._beat()

    def _beat(self) -> None:
        began = _clock()
        try:
            self._leases.beat(self._fence)
        except LeaseLost as e:
            self._lost = e
            raise
        self._confirmed = began


class _FencedStore(StoreView):
    """A results store as the holder of one lease sees it."""

    def __init__(self, store: ResultStore, fence: Fence, heart: _Heart) -> None:
        super().__init__(store)
        self._results = store
        self._fence = fence
        self._heart = heart

    def pending(self, job_key: str) -> int | None:
        self._heart.check()
        return super().pending(job_key)

    def begin(self, job_key: str) -> int:
        return self._results.begin(job_key, fence=self._fence)

    def record(self, run: Run) -> None:
        self._results.record(run, fence=self._fence)

    def check(self) -> None:
        self._heart.check()
