"""When a device is fit to be measured on, and what each breach is called."""

from __future__ import annotations

import pytest

from edgekit.benchmarks.devices.health import (
    Floors,
    health_problems,
    health_warnings,
    python_problem,
    require_healthy,
    require_python,
)
from edgekit.benchmarks.values import DeviceInfo, DeviceState
from edgekit.errors import Blame, DeviceBatteryLow, DeviceDiskFull, DeviceNoPython, DeviceTooHot
from edgekit.runtimes.catalog import ONNXRUNTIME
from edgekit.runtimes.wheels import target_of


def _state(**values: object) -> DeviceState:
    return DeviceState.model_validate({"spec": "adb:x", **values})


def _info(**values: object) -> DeviceInfo:
    return DeviceInfo.model_validate({"spec": "adb:x", "kind": "adb", "serial": "x", **values})


def test_a_device_that_tells_nothing_passes() -> None:
    """A board without a battery and sensors is measured on."""
    require_healthy(_state())


@pytest.mark.parametrize(
    ("values", "floors", "error"),
    [
        ({"battery_percent": 19}, Floors(), DeviceBatteryLow),
        ({"battery_percent": 20}, Floors(), None),
        ({"battery_percent": 39, "battery_status": "charging"}, Floors(battery_percent=40), DeviceBatteryLow),
        ({"battery_percent": 5}, Floors(battery_percent=0), None),
        ({"thermal_status": 3}, Floors(), DeviceTooHot),
        ({"thermal_status": 2, "hottest_milli_c": 95_000}, Floors(), None),
        ({"hottest_milli_c": 40_100}, Floors(temperature_c=40), DeviceTooHot),
        ({"hottest_milli_c": 40_000}, Floors(temperature_c=40), None),
        ({"battery_milli_c": 41_000, "hottest_milli_c": 30_000}, Floors(temperature_c=40), DeviceTooHot),
        ({"free_bytes": 255_999_999}, Floors(), DeviceDiskFull),
        ({"free_bytes": 256_000_000}, Floors(), None),
    ],
)
def test_the_floors(values: dict[str, object], floors: Floors, error: type[Exception] | None) -> None:
    """Each bound, on both sides of it."""
    if error is None:
        require_healthy(_state(**values), floors)
        return
    with pytest.raises(error) as caught:
        require_healthy(_state(**values), floors)
    assert caught.value.hint  # type: ignore[attr-defined]


def test_the_errors_say_whose_move_it_is() -> None:
    """Stable codes, the device's blame, and that waiting can help."""
    for error, code in ((DeviceBatteryLow, "DEVICE_BATTERY_LOW"), (DeviceTooHot, "DEVICE_TOO_HOT")):
        assert (error.code, error.blame, error.retryable) == (code, Blame.DEVICE, True)
    problems = health_problems(_state(battery_percent=3, thermal_status=5, free_bytes=0))
    assert [type(problem) for problem in problems] == [DeviceDiskFull, DeviceTooHot, DeviceBatteryLow]


def test_a_floor_that_cannot_be_checked_is_said() -> None:
    """Asked for and unreadable is a warning, not a pass in silence; not asked for is nothing."""
    assert not health_warnings(_info(), _state(), Floors())
    told = health_warnings(_info(), _state(), Floors(battery_percent=30, temperature_c=40))
    assert len(told) == 2
    assert all("not checked" in warning for warning in told)


def test_an_adbd_open_to_the_network_is_said() -> None:
    """CVE-2026-0073: over TCP, with a patch level before 2026-05, and not otherwise."""
    old, new = _info(security_patch="2026-04-05"), _info(security_patch="2026-05-01")
    assert "CVE-2026-0073" in health_warnings(old, None, is_tcp=True)[0]
    assert not health_warnings(old, None, is_tcp=False)
    assert not health_warnings(new, None, is_tcp=True)
    assert not health_warnings(_info(), None, is_tcp=True)


def test_a_phone_has_no_python_and_the_error_says_what_it_needs() -> None:
    """One error, wherever it is met: code, the app's native runner, and what can be done instead."""
    phone = _info(android_api=34, abi="aarch64")
    with pytest.raises(DeviceNoPython, match="native runner of edgekit's app") as caught:
        target_of(phone)
    assert caught.value.code == "DEVICE_NO_PYTHON"
    assert "edgekit doctor FILE --device adb:x" in (caught.value.hint or "")
    with pytest.raises(DeviceNoPython, match="no python3"):
        require_python(_info(os="Debian GNU/Linux 12"))
    with pytest.raises(DeviceNoPython) as caught:
        require_python(_info(os="Raspbian GNU/Linux 11"))
    assert "apt install python3" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("python", "is_fine"), [("3.8.19", False), ("3.9.0", True), ("3.13.5", True), ("2.7.18", False)]
)
def test_an_old_python_is_refused(python: str, is_fine: bool) -> None:
    """The runner needs 3.9; a host's own Python is its own affair."""
    assert (python_problem(_info(python=python)) is None) == is_fine
    assert python_problem(_info(kind="local", python=python)) is None


def test_no_runtime_is_asked_for_on_a_phone() -> None:
    """The phone's error comes before any wheel is looked for (ONNX Runtime has none for it anyway)."""
    assert ONNXRUNTIME.wheels
    with pytest.raises(DeviceNoPython):
        target_of(_info(android_api=34, abi="aarch64", libc="bionic"))
