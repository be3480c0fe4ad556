"""A device for a while: held, probed, and asked whether it is fit before the first new job and not before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import doubles

from edgekit.benchmarks import session
from edgekit.benchmarks.devices.local import LocalDevice
from edgekit.benchmarks.harness import measure
from edgekit.benchmarks.values import DeviceState, RunStatus
from edgekit.errors import DeviceBatteryLow, DeviceBusy
from edgekit.store import ResultStore


class Battery:
    """What the device is said to have left, and how often it was asked."""

    def __init__(self, percent: int) -> None:
        self.percent = percent
        self.asked = 0

    def __call__(self, device: Any, _deadline: object) -> DeviceState:
        self.asked += 1
        return DeviceState(spec=device.spec, battery_percent=self.percent)


@pytest.fixture
def battery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Battery:
    """`local` in the test's own folder, with a battery."""
    told = Battery(90)
    monkeypatch.setattr(session, "read_state", told)
    monkeypatch.setattr(session, "open_device", lambda _spec: LocalDevice(root=tmp_path / "device"))
    return told


def run_on(place: session.Session, folder: Path, **options: Any) -> RunStatus:
    artifact = doubles.artifact(folder / "m")
    run = measure(
        place.device,
        place.info,
        artifact,
        doubles.inputs(),
        doubles.QUICK,
        store=place.store,
        work_dir=folder / "work",
        runtime=doubles.DOUBLE,
        **options,
    )
    return run.status


def test_a_fit_device_is_asked_once(battery: Battery, tmp_path: Path) -> None:
    """The state is one more command: not one for each job."""
    with ResultStore(tmp_path / "store") as store, session.measuring_on("local", store) as place:
        assert run_on(place, tmp_path) is RunStatus.OK
        assert run_on(place, tmp_path, fresh=True) is RunStatus.OK
    assert battery.asked == 1


def test_an_unfit_device_is_not_measured_on(battery: Battery, tmp_path: Path) -> None:
    """Nothing is begun; when the device has recovered the same session goes on."""
    battery.percent = 5
    with ResultStore(tmp_path / "store") as store, session.measuring_on("local", store) as place:
        with pytest.raises(DeviceBatteryLow, match="5 %"):
            run_on(place, tmp_path)
        battery.percent = 60
        assert run_on(place, tmp_path) is RunStatus.OK


def test_what_was_measured_is_shown_without_a_battery(battery: Battery, tmp_path: Path) -> None:
    """A stored run needs no fit device."""
    with ResultStore(tmp_path / "store") as store:
        with session.measuring_on("local", store) as place:
            run_on(place, tmp_path)
        battery.percent = 5
        with session.measuring_on("local", store) as place:
            assert run_on(place, tmp_path) is RunStatus.OK


def test_the_device_is_this_sessions_alone(battery: Battery, tmp_path: Path) -> None:
    """A second session on the same store is turned away while the first has the device."""
    with (
        ResultStore(tmp_path / "store") as store,
        session.measuring_on("local", store),
        pytest.raises(DeviceBusy),
        session.measuring_on("local", store, wait_seconds=0.1),
    ):
        pass
