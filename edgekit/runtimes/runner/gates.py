"""Waiting until the device is fit to be measured: cool, charged, on battery, idle, as the plan asks."""

import glob
import time
from typing import Callable, Optional

from .conditions import battery, load_average, temperatures
from .files import read_json
from .job import Job, Plan

_LOOK_SECONDS = 1.0


class Gate:
    """The plan's conditions. It waits for `gate_wait_seconds` in all; when they are over, it says so and lets pass.

    `waited_seconds` were used up by the same job before, in other processes.
    """

    def __init__(
        self,
        plan: Plan,
        waited_seconds: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._sleep = sleep
        self._now = now
        self.waited_seconds = waited_seconds
        self._flagged: dict[str, str] = {}
        self.unmeasured: dict[str, str] = {}

    def wait(self, beat: Callable[[], None] = lambda: None) -> float:
        """Seconds waited until the device was fit, or the time for waiting was used up."""
        begun = self._now()
        while True:
            why = self._closed()
            waited = self._now() - begun
            left = self._plan.gate_wait_seconds - self.waited_seconds - waited
            if why is None or left <= 0:
                break
            self._sleep(min(_LOOK_SECONDS, left))
            beat()
        self.waited_seconds += waited
        if why is not None:
            kind, reason = why
            flag = f"measured all the same: {reason}, after {self.waited_seconds:.0f} s of waiting"
            self._flagged.setdefault(kind, flag)
        return waited

    @property
    def flags(self) -> list[str]:
        """What the device was let pass with; one a condition, the first time."""
        return list(self._flagged.values())

    def _closed(self) -> Optional[tuple[str, str]]:
        """(condition, why the device is not fit now); None when it is, or nothing tells."""
        for kind, look in (("heat", self._hot), ("battery", self._battery), ("load", self._loaded)):
            why = look()
            if why is not None:
                return kind, why
        return None

    def _hot(self) -> Optional[str]:
        limit = self._plan.max_temperature_c
        if limit is None:
            return None
        zones = temperatures()
        if not zones:
            self.unmeasured["gate.max_temperature_c"] = "there is no thermal zone that can be read"
            return None
        zone = max(zones, key=lambda name: zones[name])
        degrees = zones[zone] / 1000
        return f"{zone} is at {degrees:.1f} °C, over {limit:g} °C" if degrees > limit else None

    def _battery(self) -> Optional[str]:
        least, may_charge = self._plan.min_battery_percent, self._plan.allow_charging
        if least is None and may_charge:
            return None
        percent, charging = battery()
        if least is not None and percent is None:
            self.unmeasured["gate.min_battery_percent"] = "there is no battery that can be read"
        if not may_charge and charging is None:
            self.unmeasured["gate.allow_charging"] = "there is no battery that tells whether it is charged"
        if least is not None and percent is not None and percent < least:
            return f"the battery is at {percent} %, under {least} %"
        return "the battery is being charged" if charging and not may_charge else None

    def _loaded(self) -> Optional[str]:
        limit = self._plan.max_load
        if limit is None:
            return None
        load = load_average()
        if load is None:
            self.unmeasured["gate.max_load"] = "the system does not tell its load"
            return None
        return f"the load is {load:.2f}, over {limit:g}" if load > limit else None


def waited_seconds_of(job: Job) -> float:
    """What the job's cold starts, which are saved, have waited for the gates."""
    saved = (read_json(path) or {} for path in glob.glob(glob.escape(job.directory) + "/phase-cold-*.json"))
    return float(sum(found.get("waited_ns", 0) for found in saved)) / 1e9
