"""The state of a device now: battery, heat, load, space and clock, by one script in one round trip.

The script is for adb, ssh and this host alike: Linux's `/proc`, `/sys/class/thermal` and `/sys/class/power_supply`,
and Android's `dumpsys` where there is one. As with the facts, everything it prints is cleaned before it is believed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from edgekit.benchmarks.devices.android import (
    Battery,
    BatteryStatus,
    Thermal,
    parse_battery,
    parse_thermal,
    plausible_milli_c,
)
from edgekit.benchmarks.devices.base import Deadline, Device
from edgekit.benchmarks.devices.facts import parse_facts
from edgekit.benchmarks.values import DeviceState

__all__ = ["STATE_SCRIPT", "device_state", "read_state"]

MAX_CLOCK_OFFSET_S = 5
"""A wall clock further off than this is noted (Tradefed resets it at the same distance)."""

# $1 goes before /proc and /sys (empty, or a tree of a test's own); $2 is edgekit's folder.
STATE_SCRIPT = r"""
say() { [ -n "$2" ] && printf '%s=%s\n' "$1" "$2"; }
first() { { read -r x < "$2"; } 2>/dev/null && say "$1" "$x"; }
limited() { if command -v timeout >/dev/null 2>&1; then timeout 5 "$@"; else "$@"; fi; }
say now "$(date +%s)"
first load "$1/proc/loadavg"
first uptime "$1/proc/uptime"
say df "$(df -kP "$2" 2>/dev/null | tail -n 1)"
for z in "$1"/sys/class/thermal/thermal_zone[0-9]*; do
  { read -r k < "$z/type"; } 2>/dev/null || k=${z##*/}
  { read -r t < "$z/temp"; } 2>/dev/null && say zone "$t $k"
done
i=0
for s in "$1"/sys/class/power_supply/*; do
  i=$((i + 1))
  for f in type scope status capacity temp online; do
    { read -r v < "$s/$f"; } 2>/dev/null && say supply "$i $f $v"
  done
done
if command -v dumpsys >/dev/null 2>&1; then
  limited dumpsys battery 2>&1 | head -n 60 | sed 's/^/battery=/'
  limited dumpsys thermalservice 2>&1 | head -n 600 | sed 's/^/thermal=/'
fi
:
"""

_DF = re.compile(r"(?:.*\s)?[0-9]+\s+-?[0-9]+\s+(?P<kib>[0-9]{1,15})\s+[0-9-]+%\s+/.*")
# Zones that are registered as thermal and hold mA, mV or percent (Qualcomm's battery-current limits).
_NOT_A_ZONE = re.compile(r"soc|.*(?:[iv]bat|bcl|socd).*", re.IGNORECASE)
_STATUS: dict[str, BatteryStatus] = {
    "unknown": "unknown",
    "charging": "charging",
    "discharging": "discharging",
    "not charging": "not charging",
    "full": "full",
}


def read_state(device: Device, deadline: Deadline) -> DeviceState:
    """The state of `device`, which is entered; one command. Raises what the link raises."""
    argv = ["sh", "-c", STATE_SCRIPT, "sh", "", str(device.root)]
    before = time.time()
    said = device.run(argv, deadline).stdout
    return device_state(said, spec=device.spec, asked_between=(before, time.time()))


def device_state(text: str, *, spec: str, asked_between: tuple[float, float] | None = None) -> DeviceState:
    """DeviceState from what STATE_SCRIPT printed while this host's wall clock went through `asked_between`.

    Never raises: what is absent, or no number, or out of range is None with its reason in `unmeasured`.
    """
    facts = parse_facts(text)
    android = parse_battery(facts.values.get("battery", ()))
    thermal = parse_thermal(facts.values.get("thermal", ())) or Thermal()
    battery = android or _supply_battery(facts.values.get("supply", ())) or Battery()
    name, milli_c = _hottest(thermal.milli_c or _zones(facts.values.get("zone", ())))
    offset = _clock_offset(facts.number("now"), asked_between)
    notes = []
    if battery.is_overridden:
        notes.append("battery values are overridden; `dumpsys battery reset` there ends that")
    if thermal.is_overridden:
        notes.append("the thermal status is overridden; `cmd thermalservice reset` there ends that")
    if offset is not None and abs(offset) > MAX_CLOCK_OFFSET_S:
        notes.append(f"its clock is {abs(offset)} s {'ahead of' if offset > 0 else 'behind'} this host's")
    values = {
        "battery_percent": battery.percent,
        "battery_status": battery.status,
        "battery_milli_c": battery.milli_c,
        "thermal_status": thermal.status,
        "hottest_milli_c": milli_c,
        "load_average_1m": _leading_number(facts.one("load")),
        "free_bytes": _free_bytes(facts.one("df")),
        "clock_offset_s": offset,
        "uptime_s": _leading_number(facts.one("uptime")),
    }
    unmeasured = {field: _REASONS[field] for field, value in values.items() if value is None}
    return DeviceState(
        spec=spec,
        hottest_zone=name,
        power_sources=battery.sources,
        notes=tuple(notes),
        unmeasured=unmeasured,
        **values,
    )


_REASONS = {
    "battery_percent": "it shows no battery",
    "battery_status": "it shows no battery status",
    "battery_milli_c": "it shows no battery temperature",
    "thermal_status": "it has no thermal service (Android 10 and newer do)",
    "hottest_milli_c": "no thermal zone can be read",
    "load_average_1m": "/proc/loadavg cannot be read",
    "free_bytes": "df does not tell",
    "clock_offset_s": "its wall clock cannot be read",
    "uptime_s": "/proc/uptime cannot be read",
}


def _hottest(milli_c: dict[str, int]) -> tuple[str | None, int | None]:
    if not milli_c:
        return None, None
    name = max(sorted(milli_c), key=lambda zone: milli_c[zone])
    return name, milli_c[name]


def _zones(rows: Sequence[str]) -> dict[str, int]:
    """`{"cpu-thermal": 48312}` from `48312 cpu-thermal` a row; the hottest where a type comes twice."""
    found: dict[str, int] = {}
    for row in rows:
        value, _, kind = row.partition(" ")
        if not re.fullmatch(r"-?[0-9]{1,7}", value) or _NOT_A_ZONE.fullmatch(kind):
            continue
        # The kernel's unit is the milli-degree; old phones' drivers give whole degrees.
        milli_c = plausible_milli_c(int(value) * (1000 if 0 < abs(int(value)) < 200 else 1))
        if milli_c is not None:
            name = kind[:60] or "zone"
            found[name] = max(milli_c, found.get(name, milli_c))
    return found


def _supply_battery(rows: Sequence[str]) -> Battery | None:
    """The battery of the device itself among Linux's power supplies (a mouse's has scope Device)."""
    supplies: dict[str, dict[str, str]] = {}
    for row in rows:
        index, _, rest = row.partition(" ")
        key, _, value = rest.partition(" ")
        supplies.setdefault(index, {}).setdefault(key, value.strip())
    sources = [
        s["type"][:20] for s in supplies.values() if s.get("online") == "1" and s.get("type", "Battery") != "Battery"
    ]
    for supply in supplies.values():
        if supply.get("type") != "Battery" or supply.get("scope") == "Device":
            continue
        capacity, tenths = supply.get("capacity", ""), supply.get("temp", "")
        return Battery(
            percent=int(capacity) if re.fullmatch(r"[0-9]{1,2}|100", capacity) else None,
            status=_STATUS.get(supply.get("status", "").lower()),
            milli_c=plausible_milli_c(int(tenths) * 100) if re.fullmatch(r"-?[0-9]{1,6}", tenths) else None,
            sources=tuple(sorted(set(sources))),
        )
    return None


def _clock_offset(now: int | None, asked_between: tuple[float, float] | None) -> int | None:
    """The least offset in whole seconds with which the device can have read `now` in that time."""
    if now is None or asked_between is None or now > 1 << 40:
        return None
    before, after = asked_between
    if now + 1 < before:
        return -int(before - now - 1)
    return int(now - after) if now > after else 0


def _free_bytes(row: str | None) -> int | None:
    match = _DF.fullmatch(row or "")
    return int(match["kib"]) * 1024 if match else None


def _leading_number(text: str | None) -> float | None:
    match = re.match(r"[0-9]{1,12}(?:\.[0-9]{1,6})?(?=\s|\Z)", text or "")
    return float(match[0]) if match else None
