"""The state of the device: load, temperatures, clocks, power."""

import glob
import os
import time
from typing import Any, Optional

from .files import read_text

ROOT_VARIABLE = "EDGEKIT_SYSTEM_ROOT"
"""Tests set this to a folder with a `sys` and a `proc` of their own."""


def system(path: str) -> str:
    """`path` of the system, below the root that tests may set."""
    return os.environ.get(ROOT_VARIABLE, "") + path


def conditions() -> dict[str, Any]:
    """What the kernel tells about this moment; what it does not tell is None or absent."""
    percent, charging = battery()
    return {
        "monotonic_ns": time.monotonic_ns(),
        "wall_ns": time.time_ns(),
        "load_average_1m": load_average(),
        "temperature_milli_c": temperatures(),
        "cpu_khz": _clocks("scaling_cur_freq"),
        "cpu_limit_khz": _clocks("scaling_max_freq"),
        "governor": read_text(system("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "battery_percent": percent,
        "is_charging": charging,
    }


def boot_id() -> Optional[str]:
    """Changes with each boot of the device; None where the kernel does not tell."""
    return read_text("/proc/sys/kernel/random/boot_id") or None


def load_average() -> Optional[float]:
    """Runnable processes over the last minute, this one included; None where the system does not tell."""
    text = read_text(system("/proc/loadavg"))
    try:
        return float(text.split()[0]) if text else os.getloadavg()[0]
    except (OSError, AttributeError, ValueError, IndexError):
        return None


def integer(text: Optional[str]) -> Optional[int]:
    """The number in the text of a system file, or None."""
    try:
        return int(text) if text else None
    except ValueError:
        return None


def temperatures() -> dict[str, int]:
    """Thermal zone type to milli-degrees; a second zone of the same type gets its zone's number."""
    found: dict[str, int] = {}
    for zone in sorted(glob.glob(system("/sys/class/thermal/thermal_zone*"))):
        value = integer(read_text(os.path.join(zone, "temp")))
        if value is None:
            continue
        kind = read_text(os.path.join(zone, "type")) or os.path.basename(zone)
        found[kind if kind not in found else f"{kind}:{os.path.basename(zone)}"] = value
    return found


def battery() -> tuple[Optional[int], Optional[bool]]:
    """(percent, whether it is being charged) of the first battery; None where there is none, or it does not tell."""
    for supply in sorted(glob.glob(system("/sys/class/power_supply/*"))):
        if read_text(os.path.join(supply, "type")) != "Battery":
            continue
        if read_text(os.path.join(supply, "scope")) == "Device":  # a mouse's, not this device's
            continue
        percent = integer(read_text(os.path.join(supply, "capacity")))
        status = read_text(os.path.join(supply, "status"))
        known = status in ("Charging", "Discharging", "Full", "Not charging")
        return (
            percent if percent is not None and 0 <= percent <= 100 else None,
            status in ("Charging", "Full") if known else None,
        )
    return None, None


def _clocks(name: str) -> dict[str, int]:
    """CPU (`cpu0`) to kHz, from the file `name` of its cpufreq."""
    found: dict[str, int] = {}
    for cpu in sorted(glob.glob(system("/sys/devices/system/cpu/cpu[0-9]*"))):
        value = integer(read_text(os.path.join(cpu, "cpufreq", name)))
        if value is not None:
            found[os.path.basename(cpu)] = value
    return found
