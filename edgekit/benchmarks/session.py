"""A device for a while: opened, probed, held against others, and looked at before the first new job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgekit.benchmarks.devices.base import Deadline, Device
from edgekit.benchmarks.devices.health import require_healthy
from edgekit.benchmarks.devices.inventory import floors_for
from edgekit.benchmarks.devices.lease import hold_device
from edgekit.benchmarks.devices.registry import open_device
from edgekit.benchmarks.devices.state import read_state
from edgekit.benchmarks.journal import Store, StoreView
from edgekit.benchmarks.values import DeviceInfo
from edgekit.store import ResultStore

__all__ = ["Session", "measuring_on"]

_PROBE_SECONDS = 60.0
_STATE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What `measure` takes: the device, its facts, and the store as the holder of the device sees it."""

    device: Device
    info: DeviceInfo
    store: Store


@contextmanager
def measuring_on(spec: str, store: Store, *, wait_seconds: float = 5.0) -> Iterator[Session]:
    """The device `spec` names, connected, and this process's alone until the end; others are waited for so long.

    Before its first new job the device must be fit: DeviceTooHot, DeviceBatteryLow, DeviceDiskFull otherwise. What was
    measured before, or goes on there already, is not asked that. Raises DeviceBusy, and what opening raises.
    """
    with open_device(spec) as device:
        info = device.probe(Deadline.after(_PROBE_SECONDS))
        if isinstance(store, ResultStore):
            store.remember_device(info)
        with hold_device(info, Deadline.after(wait_seconds), store) as held:
            yield Session(device=device, info=info, store=_CheckedStore(held, device))


class _CheckedStore(StoreView):
    """A store that looks at the device's health when the first new attempt begins."""

    def __init__(self, store: Store, device: Device) -> None:
        super().__init__(store)
        self._device = device
        self._is_fit = False

    def begin(self, job_key: str) -> int:
        if not self._is_fit:
            state = read_state(self._device, Deadline.after(_STATE_SECONDS))
            require_healthy(state, floors_for(self._device.spec))
            self._is_fit = True
        return super().begin(job_key)
