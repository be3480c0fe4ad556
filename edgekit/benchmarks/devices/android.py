"""What `dumpsys battery` and `dumpsys thermalservice` say, in the forms of Android 10 and later.

Formats: AOSP `BatteryService.dumpInternal` and `ThermalManagerService.dump`. Pure functions over lines that a device
sent: they never raise, and what is out of range or not a number is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Battery", "BatteryStatus", "Thermal", "parse_battery", "parse_thermal", "plausible_milli_c"]

BatteryStatus = Literal["unknown", "charging", "discharging", "not charging", "full"]

# android.os.BatteryManager.BATTERY_STATUS_*
_STATUS: dict[int, BatteryStatus] = {1: "unknown", 2: "charging", 3: "discharging", 4: "not charging", 5: "full"}
_SOURCES = ("AC", "USB", "Wireless", "Dock")
# android.os.Temperature: 6 to 8 are battery-current limits in mA, mV and percent, -1 is unknown.
_NOT_TEMPERATURES = frozenset({6, 7, 8})
_MIN_MILLI_C, _MAX_MILLI_C = -40_000, 150_000
_MAX_ROWS = 256
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_DECIMAL = re.compile(r"-?[0-9]{1,6}(?:\.[0-9]{1,12})?")
_FIELD = re.compile(r"\bm?(Value|Type|Name|Status)\s*[=:]\s*([^,{}]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """A phone's battery as its service tells it."""

    percent: int | None = None
    status: BatteryStatus | None = None
    milli_c: int | None = None
    sources: tuple[str, ...] = ()
    is_overridden: bool = False
    """Values set by `dumpsys battery set`, not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thermal:
    """A phone's thermal service."""

    status: int | None = None
    """0 none to 6 shutdown."""
    milli_c: dict[str, int] = field(default_factory=dict)
    """Sensor name to milli-degrees Celsius, read from the HAL at the time of asking."""
    is_overridden: bool = False


def plausible_milli_c(value: float) -> int | None:
    """`value` in milli-degrees Celsius, or None where no silicon has that temperature."""
    return round(value) if _MIN_MILLI_C <= value <= _MAX_MILLI_C else None


def parse_battery(lines: Iterable[str]) -> Battery | None:
    """The battery that `dumpsys battery` describes; None where there is none, or no such service."""
    values: dict[str, str] = {}
    is_overridden = False
    for line in lines:
        key, separator, value = line.partition(":")
        if "UPDATES STOPPED" in line:
            is_overridden = True
        elif separator:
            values.setdefault(key.strip().lower(), value.strip())
    level, scale = _integer(values.get("level")), _integer(values.get("scale", "100"))
    if values.get("present") == "false" or level is None:
        return None
    tenths = _integer(values.get("temperature"))
    return Battery(
        percent=level * 100 // scale if scale and 0 <= level <= scale else None,
        status=_STATUS.get(_integer(values.get("status")) or 0),
        milli_c=plausible_milli_c(tenths * 100) if tenths is not None else None,
        sources=tuple(s for s in _SOURCES if values.get(f"{s.lower()} powered") == "true"),
        is_overridden=is_overridden,
    )


def parse_thermal(lines: Iterable[str]) -> Thermal | None:
    """What `dumpsys thermalservice` says now; None where there is no such service (`Can't find service`, status 0).

    Only rows under `Current temperatures from HAL` count: the cached ones go stale.
    """
    status: int | None = None
    is_overridden = is_current = is_service = False
    milli_c: dict[str, int] = {}
    for line in lines:
        text = line.strip()
        key, separator, value = text.partition(":")
        if text.endswith(":"):
            is_current = text == "Current temperatures from HAL:"
        elif key == "Thermal Status" and separator:
            number = _integer(value)
            status = number if number is not None and 0 <= number <= 6 else None
            is_service = True
        elif key == "IsStatusOverride" and separator:
            is_overridden = value.strip() == "true"
            is_service = True
        elif is_current and len(milli_c) < _MAX_ROWS:
            row = _temperature(text)
            if row is not None:
                milli_c[row[0]] = max(row[1], milli_c.get(row[0], row[1]))
    if not is_service and not milli_c:
        return None
    return Thermal(status=status, milli_c=milli_c, is_overridden=is_overridden)


def _temperature(text: str) -> tuple[str, int] | None:
    """Name and milli-degrees of `Temperature{mValue=…, mType=…, mName=…, mStatus=…}` or Android 10's `Name: …` row."""
    fields = dict(_FIELD.findall(text))
    kind, value = _integer(fields.get("Type")), fields.get("Value", "").strip()
    if kind is None or kind < 0 or kind in _NOT_TEMPERATURES or not _DECIMAL.fullmatch(value):
        return None
    milli_c = plausible_milli_c(float(value) * 1000)
    return (fields.get("Name", "").strip()[:60] or f"type {kind}", milli_c) if milli_c is not None else None


def _integer(text: str | None) -> int | None:
    stripped = (text or "").strip()
    return int(stripped) if _INTEGER.fullmatch(stripped) else None
