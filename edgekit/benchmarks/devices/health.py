"""Whether a device is fit to be measured on: floors for battery, heat and space, and what each breach is called."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from edgekit.benchmarks.values import DeviceInfo, DeviceState
from edgekit.errors import DeviceBatteryLow, DeviceDiskFull, DeviceError, DeviceNoPython, DeviceTooHot
from edgekit.schema import Record

__all__ = [
    "Floors",
    "health_problems",
    "health_warnings",
    "python_problem",
    "require_healthy",
    "require_python",
]

MIN_FREE_BYTES = 256 * 1000 * 1000
"""Less than this, and a runtime's wheels and a model may not fit."""
SEVERE = 3
"""The thermal status from which Android slows the processor noticeably (`THERMAL_STATUS_SEVERE`)."""
OLDEST_PYTHON = (3, 9)
SAFE_PATCH = "2026-05"
"""From here on adbd over TCP is not open to CVE-2026-0073, which lets anyone on the network in."""

_LEVELS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")


class Floors(Record):
    """What a device must keep to be measured on."""

    battery_percent: Annotated[int, Field(ge=0, le=100)] = 20
    """At least this much (Tradefed stops at the same); devices without a battery pass."""
    temperature_c: Annotated[float, Field(gt=0, le=150)] | None = None
    """No sensor hotter than this; None asks only that the thermal status is below severe."""


def health_problems(state: DeviceState, floors: Floors | None = None) -> tuple[DeviceError, ...]:
    """Every reason not to measure on a device in this state, the hardest to cure first."""
    floors = floors or Floors()
    found = (_space(state), _heat(state, floors), _battery(state, floors))
    return tuple(problem for problem in found if problem is not None)


def require_healthy(state: DeviceState, floors: Floors | None = None) -> None:
    """Raise DeviceDiskFull, DeviceTooHot or DeviceBatteryLow when the device should not be measured on now."""
    for problem in health_problems(state, floors):
        raise problem


def _space(state: DeviceState) -> DeviceDiskFull | None:
    if state.free_bytes is None or state.free_bytes >= MIN_FREE_BYTES:
        return None
    return DeviceDiskFull(
        f"{state.free_bytes / 1e6:.0f} MB are free, and a runtime and a model may need {MIN_FREE_BYTES // 10**6}",
        device=state.spec,
        hint="free some there; edgekit's own folder may be removed when nothing is running",
    )


def _heat(state: DeviceState, floors: Floors) -> DeviceTooHot | None:
    hint = "let it cool: off the charger, screen off, out of its case"
    if state.thermal_status is not None and state.thermal_status >= SEVERE:
        shown = f"{state.thermal_status} ({_LEVELS[state.thermal_status]})"
        return DeviceTooHot(f"its thermal status is {shown}: it slows itself down", device=state.spec, hint=hint)
    hottest = _hottest(state)
    if floors.temperature_c is None or hottest is None or hottest[1] <= floors.temperature_c * 1000:
        return None
    name, milli_c = hottest
    return DeviceTooHot(
        f"{name} is at {milli_c / 1000:.1f} °C, above the {floors.temperature_c:g} °C allowed",
        device=state.spec,
        hint=hint,
    )


def _hottest(state: DeviceState) -> tuple[str, int] | None:
    zones = [(state.hottest_zone or "a zone", state.hottest_milli_c), ("the battery", state.battery_milli_c)]
    known = [(name, value) for name, value in zones if value is not None]
    return max(known, key=lambda zone: zone[1]) if known else None


def _battery(state: DeviceState, floors: Floors) -> DeviceBatteryLow | None:
    if state.battery_percent is None or state.battery_percent >= floors.battery_percent:
        return None
    status = f" and {state.battery_status}" if state.battery_status not in (None, "unknown") else ""
    return DeviceBatteryLow(
        f"the battery is at {state.battery_percent} %{status}, below the {floors.battery_percent} % asked for",
        device=state.spec,
        hint="charge it" if state.battery_status != "charging" else "wait until it is charged",
    )


def health_warnings(
    info: DeviceInfo | None, state: DeviceState | None, floors: Floors | None = None, *, is_tcp: bool = False
) -> tuple[str, ...]:
    """What does not stop a measurement: doubtful values, floors that cannot be checked, an adbd open to the network."""
    found = list(state.notes) if state else []
    asked = floors.model_fields_set if floors else set()
    if state and floors and floors.temperature_c is not None and _hottest(state) is None:
        found.append(f"no temperature can be read, so the bound of {floors.temperature_c:g} °C is not checked")
    if state and "battery_percent" in asked and state.battery_percent is None:
        found.append("no battery can be read, so its floor is not checked")
    patch = info.security_patch if info else None
    if is_tcp and patch is not None and patch < SAFE_PATCH:
        found.append(
            f"adb over the network with the security patch of {patch}: anyone on that network can get in "
            f"(CVE-2026-0073, fixed in {SAFE_PATCH}); use USB, or update it"
        )
    return tuple(found)


def python_problem(info: DeviceInfo) -> DeviceNoPython | None:
    """Why edgekit's runner cannot start on the device, or None. The runner is Python; a phone has none.

    The runner of the app will speak the same `job.json`: this is the place that will choose it.
    """
    if info.kind == "local":
        return None
    if info.android_api is not None and info.python is None:
        return DeviceNoPython(
            "an Android phone has no Python, which edgekit's runner needs; measuring there needs the native runner "
            "of edgekit's app, which this version does not have",
            device=info.spec,
            hint=f"`edgekit doctor FILE --device {info.spec}` checks a file for it; measure on a board with Python",
        )
    if info.python is None:
        return DeviceNoPython("there is no python3 on it", device=info.spec, hint=_python_hint(info))
    version = re.match(r"([0-9]{1,2})\.([0-9]{1,3})", info.python)
    if version is not None and (int(version[1]), int(version[2])) < OLDEST_PYTHON:
        needed = ".".join(map(str, OLDEST_PYTHON))
        return DeviceNoPython(
            f"its Python {info.python} is older than {needed}", device=info.spec, hint=_python_hint(info)
        )
    return None


def _python_hint(info: DeviceInfo) -> str:
    if re.search(r"debian|ubuntu|raspbian|mint", info.os or "", re.IGNORECASE):
        return "there: `apt install python3`"
    return "install Python 3.9 or newer there, as `python3`"


def require_python(info: DeviceInfo) -> None:
    """Raise DeviceNoPython when edgekit's runner cannot start on the device."""
    problem = python_problem(info)
    if problem is not None:
        raise problem
