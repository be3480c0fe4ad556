"""The state of the device: load, temperatures, clocks."""

import glob
import os
import time
from typing import Any, Optional

from .files import read_text


def conditions() -> dict[str, Any]:
    """What the kernel tells about this moment; what it does not tell is None or absent."""
    return {
        "monotonic_ns": time.monotonic_ns(),
        "load_average_1m": _load_average(),
        "temperature_milli_c": _temperatures("/sys/class/thermal"),
        "cpu_khz": _clocks("/sys/devices/system/cpu"),
        "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def boot_id() -> Optional[str]:
    """Changes with each boot of the device; None where the kernel does not tell."""
    return read_text("/proc/sys/kernel/random/boot_id") or None


def _load_average() -> Optional[float]:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _integer(text: Optional[str]) -> Optional[int]:
    try:
        return int(text) if text else None
    except ValueError:
        return None


def _temperatures(root: str) -> dict[str, int]:
    """Thermal zone type to milli-degrees; a second zone of the same type gets its zone's number."""
    found: dict[str, int] = {}
    for zone in sorted(glob.glob(os.path.join(root, "thermal_zone*"))):
        value = _integer(read_text(os.path.join(zone, "temp")))
        if value is None:
            continue
        kind = read_text(os.path.join(zone, "type")) or os.path.basename(zone)
        found[kind if kind not in found else f"{kind}:{os.path.basename(zone)}"] = value
    return found


def _clocks(root: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for cpu in sorted(glob.glob(os.path.join(root, "cpu[0-9]*"))):
        value = _integer(read_text(os.path.join(cpu, "cpufreq", "scaling_cur_freq")))
        if value is not None:
            found[os.path.basename(cpu)] = value
    return found
