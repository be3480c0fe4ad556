"""What the device draws while it infers, where its power can be read: idle before, busy, idle after.

The reading is done by the supervisor, in a thread that sleeps between readings; the measured process only infers and
says from when to when. Never run on a board with such sensors by edgekit's own tests: they use a tree of files.
"""

import glob
import math
import os
import re
import subprocess
import threading
import time
from functools import partial
from typing import Any, Callable, Optional

from .conditions import battery, integer, system
from .files import read_text

IDLE_SECONDS = 5.0
BUSY_SECONDS = 10.0
_PERIOD_SECONDS = 0.1
_LEAST = 20
"""Readings of each kind, at the least, for a mean that is worth stating."""
_BLOCKS = 10
_RAIL = re.compile(r"^\s*(\S+)_([AV])\s+(?:current|volt)\(\d+\)=([0-9.]+)[AV]\s*$", re.MULTILINE)

Reading = tuple[int, float]
"""(monotonic ns, milliwatts)"""


class NoEnergy(Exception):
    """Why the energy cannot be told."""


def parse_pmic(text: str) -> Optional[float]:
    """Milliwatts over all rails of `vcgencmd pmic_read_adc` (Raspberry Pi 5) that tell volts and amperes."""
    rails: dict[str, dict[str, float]] = {}
    for name, kind, value in _RAIL.findall(text):
        try:
            rails.setdefault(name, {})[kind] = float(value)
        except ValueError:
            continue
    products = [rail["A"] * rail["V"] for rail in rails.values() if len(rail) == 2]
    return sum(products) * 1000 if products else None


def power_reader() -> tuple[str, Callable[[], Optional[float]]]:
    """(what is read, what reads it); raises NoEnergy where nothing tells, or what tells is being charged."""
    if battery()[1]:
        raise NoEnergy("the battery is being charged: its current is not the device's")
    for supply in sorted(glob.glob(system("/sys/class/power_supply/*"))):
        if read_text(os.path.join(supply, "type")) == "Battery" and _supply_mw(supply) is not None:
            return os.path.basename(supply), partial(_supply_mw, supply)
    if _pmic_mw() is not None:
        return "Raspberry Pi PMIC", _pmic_mw
    raise NoEnergy("nothing here tells what the device draws (no battery with a current, no vcgencmd pmic_read_adc)")


def _supply_mw(folder: str) -> Optional[float]:
    """Milliwatts from `power_now` (µW), else from `current_now` (µA, of either sign) and `voltage_now` (µV)."""
    power, current, voltage = (
        integer(read_text(os.path.join(folder, name))) for name in ("power_now", "current_now", "voltage_now")
    )
    if power:
        return abs(power) / 1000
    return abs(current) * voltage / 1e9 if current and voltage and voltage > 0 else None


def _pmic_mw() -> Optional[float]:
    try:
        done = subprocess.run(["vcgencmd", "pmic_read_adc"], capture_output=True, text=True, timeout=2)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_pmic(done.stdout) if done.returncode == 0 else None


class Meter:
    """Reads the power a few times a second, in a thread, from `start` to `stop`."""

    def __init__(self) -> None:
        self.source, self._read = power_reader()
        self.readings: list[Reading] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.wait(_PERIOD_SECONDS):
            value = self._read()
            if value is not None:
                self.readings.append((time.monotonic_ns(), value))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def account(readings: list[Reading], begun_ns: int, ended_ns: int, inferences: int, source: str) -> dict[str, Any]:
    """The `energy` of a result: the mean while busy less the mean while idle, times the time, per inference.

    The error is that of the two means, each from the spread of ten consecutive blocks (readings beside one another are
    not independent). Raises NoEnergy where there are too few readings.
    """
    busy = [mw for at, mw in readings if begun_ns <= at <= ended_ns]
    idle = [mw for at, mw in readings if at < begun_ns or at > ended_ns]
    if len(busy) < _LEAST or len(idle) < _LEAST:
        raise NoEnergy(f"only {len(idle)} readings while idle and {len(busy)} while busy; {_LEAST} of each are needed")
    (idle_mw, idle_error), (busy_mw, busy_error) = _mean(idle), _mean(busy)
    seconds = (ended_ns - begun_ns) / 1e9
    return {
        "source": source,
        "idle_mw": idle_mw,
        "idle_error_mw": idle_error,
        "busy_mw": busy_mw,
        "busy_error_mw": busy_error,
        "seconds": seconds,
        "inferences": inferences,
        "mj_per_inference": (busy_mw - idle_mw) * seconds / inferences,
        "error_mj": math.hypot(idle_error, busy_error) * seconds / inferences,
    }


def _mean(values: list[float]) -> tuple[float, float]:
    """(mean, its standard error over blocks)."""
    size = len(values) // _BLOCKS
    blocks = [sum(values[i * size : (i + 1) * size]) / size for i in range(_BLOCKS)]
    mean = sum(values) / len(values)
    variance = sum((b - sum(blocks) / _BLOCKS) ** 2 for b in blocks) / (_BLOCKS - 1)
    return mean, math.sqrt(variance / _BLOCKS)
