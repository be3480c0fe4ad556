"""What makes a `FakeAdbd` answer as a phone: getprop and dumpsys with a phone's answers, and no Python.

The outputs follow AOSP's sources (BatteryService and ThermalManagerService, of Android 10 and of 13 and newer); they
were not recorded from a phone.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["BATTERY", "THERMAL_10", "THERMAL_14", "FakePhone", "battery", "thermal"]

PROPERTIES = {
    "ro.serialno": "R5CT30ABCDE",
    "ro.product.manufacturer": "Google",
    "ro.product.model": "Pixel 8",
    "ro.soc.model": "Tensor G3",
    "ro.soc.manufacturer": "Google",
    "ro.build.version.release": "16",
    "ro.build.version.sdk": "36",
    "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a",
    "ro.build.fingerprint": "google/shiba/shiba:16/BP2A.250605.031/13578606:user/release-keys",
    "ro.build.version.security_patch": "2026-06-05",
}

BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Dock powered: false
  Max charging current: 500000
  Max charging voltage: 5000000
  Charge counter: 3105000
  status: 2
  health: 2
  present: true
  level: 83
  scale: 100
  voltage: 4187
  temperature: 312
  technology: Li-ion
  Charging state: 1
  Charging policy: 1
"""

THERMAL_14 = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 2
\tkilled: false
\tbroadcasts count: -1
ThermalStatusListeners:
\tcallbacks: 5
\tkilled: false
\tbroadcasts count: -1
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=99.9, mType=0, mName=STALE, mStatus=6}
HAL Ready: true
HAL connection:
\tThermalHAL AIDL 2 connected: yes
Current temperatures from HAL:
\tTemperature{mValue=44.5, mType=0, mName=BIG, mStatus=0}
\tTemperature{mValue=31.2, mType=2, mName=battery, mStatus=0}
\tTemperature{mValue=33.107002, mType=3, mName=VIRTUAL-SKIN, mStatus=0}
\tTemperature{mValue=2200.0, mType=6, mName=vbat, mStatus=0}
\tTemperature{mValue=83.0, mType=8, mName=soc, mStatus=0}
\tTemperature{mValue=NaN, mType=9, mName=TPU, mStatus=0}
\tTemperature{mValue=91.0, mType=-1, mName=unknown, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
Temperature static thresholds from HAL:
\tTemperatureThreshold{mType=3, mName=VIRTUAL-SKIN, mHotThrottlingThresholds=[NaN, 39.0, 43.0, 45.0, 46.5, 52.0, 55.0]}
Temperature headroom thresholds:
\t[NaN, 0.8, 0.93, 1.0, 1.05, 1.23, 1.33]
"""

THERMAL_10 = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
\tkilled: false
\tbroadcasts count: -1
ThermalStatusListeners:
\tcallbacks: 1
\tkilled: false
\tbroadcasts count: -1
Thermal Status: 1
Cached temperatures:
\tName: STALE, Type: 0, Status: 6, Value: 99.900002
HAL Ready: true
HAL connection:
\tThermalHAL 2.0 connected: yes
Current temperatures from HAL:
\tName: CPU0, Type: 0, Status: 0, Value: 51.299999
\tName: quiet_therm, Type: 3, Status: 1, Value: 38.799999
\tName: ibat, Type: 7, Status: 0, Value: 1200.000000
"""

_PROGRAMS = "cat cut date df grep head id ls mkdir mv printf rm sed sh sha256sum sleep sort tail timeout tr uname wc"


def battery(*, percent: int = 83, status: int = 2) -> str:
    """`dumpsys battery` at this charge."""
    return BATTERY.replace("level: 83", f"level: {percent}").replace("status: 2", f"status: {status}")


def thermal(status: int) -> str:
    """`dumpsys thermalservice` in this state."""
    return THERMAL_14.replace("Thermal Status: 0", f"Thermal Status: {status}")


@dataclass(frozen=True, kw_only=True)
class FakePhone:
    """A phone's answers."""

    properties: dict[str, str] = field(default_factory=dict)
    battery: str = BATTERY
    thermal: str = THERMAL_14
    python: Path | None = None
    """A board's: what `python3` is there."""

    def install(self, folder: Path) -> Path:
        """A folder of programs for `FakeAdbd(path=…)`: the host's few that the scripts use, getprop and dumpsys."""
        folder.mkdir(parents=True)
        for name in _PROGRAMS.split():
            found = next((p for p in (Path("/bin") / name, Path("/usr/bin") / name) if p.exists()), None)
            if found is not None:  # printf and others are the shell's own
                (folder / name).symlink_to(found)
        if self.python is not None:
            (folder / "python3").symlink_to(self.python)
        properties = {**PROPERTIES, **self.properties}
        cases = "\n".join(f"{name}) echo {shlex.quote(value)} ;;" for name, value in properties.items())
        _program(folder / "getprop", f"case $1 in\n{cases}\n*) echo ;;\nesac")
        answers = "\n".join(
            f"{name}) cat <<'END'\n{text.rstrip()}\nEND\n;;"
            for name, text in (("battery", self.battery), ("thermalservice", self.thermal))
            if text
        )
        _program(folder / "dumpsys", f'case $1 in\n{answers}\n*) echo "Can\'t find service: $1" ;;\nesac')
        return folder


def _program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
