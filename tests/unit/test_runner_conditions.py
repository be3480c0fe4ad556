"""What the runner reads of the system, on trees of files: conditions, gates, power."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from edgekit.runtimes.runner.conditions import ROOT_VARIABLE, battery, conditions, load_average, temperatures
from edgekit.runtimes.runner.energy import Meter, NoEnergy, account, parse_pmic, power_reader
from edgekit.runtimes.runner.gates import Gate
from edgekit.runtimes.runner.job import Plan

PMIC = """
    3V7_WL_SW_A current(0)=0.07025872A
    3V3_SYS_A current(1)=0.10148870A
      VDD_CORE_A current(7)=1.50000000A
    3V7_WL_SW_V volt(8)=3.70010300V
    3V3_SYS_V volt(9)=3.31108400V
      VDD_CORE_V volt(15)=0.80000000V
     EXT5V_V volt(24)=5.14480000V
      BATT_V volt(25)=0.00000000V
"""
"""As `vcgencmd pmic_read_adc` prints it on a Raspberry Pi 5; the last two rails have no current."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system of files, empty."""
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    return tmp_path


def write(path: Path, **files: object) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (path / name).write_text(f"{value}\n")


def put_battery(root: Path, **files: object) -> None:
    write(root / "sys/class/power_supply/BAT0", type="Battery", **files)


def put_zone(root: Path, number: int, kind: str, milli: object) -> None:
    write(root / f"sys/class/thermal/thermal_zone{number}", type=kind, temp=milli)


def plan(**limits: Any) -> Plan:
    """A plan that asks for nothing but these conditions."""
    nothing = {
        "max_temperature_c": None,
        "min_battery_percent": None,
        "allow_charging": True,
        "max_load": None,
        "gate_wait_seconds": 10.0,
    }
    others = dict.fromkeys(set(Plan._fields) - set(nothing))
    return Plan(**{**others, **nothing, **limits})


class Time:
    """A clock that sleeping moves, and something that happens on the way."""

    def __init__(self, after: float = 1e9, event: Any = None) -> None:
        self.now = 0.0
        self._after, self._event = after, event

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self._after and self._event:
            self._event()

    def gate(self, **limits: Any) -> Gate:
        return Gate(plan(**limits), sleep=self.sleep, now=lambda: self.now)


def test_conditions_hold_what_the_system_tells(root: Path) -> None:
    """Zones by type, clocks by core, battery, load; a value that is no number is absent."""
    put_zone(root, 0, "cpu-thermal", 45_000)
    put_zone(root, 1, "cpu-thermal", 46_000)
    put_zone(root, 2, "broken", "n/a")
    write(root / "sys/devices/system/cpu/cpu0/cpufreq", scaling_cur_freq=1_800_000, scaling_governor="schedutil")
    put_battery(root, capacity=80, status="Discharging")
    write(root / "proc", loadavg="0.25 0.10 0.05 1/100 42")
    told = conditions()
    assert told["temperature_milli_c"] == {"cpu-thermal": 45_000, "cpu-thermal:thermal_zone1": 46_000}
    assert told["cpu_khz"] == {"cpu0": 1_800_000}
    assert (told["governor"], told["battery_percent"], told["is_charging"]) == ("schedutil", 80, False)
    assert told["load_average_1m"] == 0.25
    assert abs(told["wall_ns"] - time.time_ns()) < 60e9


def test_a_mouse_is_not_the_devices_battery(root: Path) -> None:
    """A supply of scope Device powers something else; without a battery nothing is told."""
    write(root / "sys/class/power_supply/hid", type="Battery", scope="Device", capacity=5, status="Discharging")
    write(root / "sys/class/power_supply/usb", type="USB")
    assert battery() == (None, None)
    put_battery(root, capacity=250, status="Unknown")
    assert battery() == (None, None)
    assert temperatures() == {}
    assert load_average() is not None  # asked of the system where there is no file


def test_an_open_gate_does_not_wait(root: Path) -> None:
    """Cool, charged, not charging, idle: no time passes and nothing is flagged."""
    put_zone(root, 0, "soc", 40_000)
    put_battery(root, capacity=80, status="Discharging")
    write(root / "proc", loadavg="0.1 0 0")
    gate = Time().gate(max_temperature_c=50.0, min_battery_percent=20, allow_charging=False, max_load=1.0)
    assert (gate.wait(), gate.flags, gate.unmeasured) == (0, [], {})


def test_a_gate_waits_until_the_device_has_cooled(root: Path) -> None:
    """It opens when the hottest zone is under the limit; what was waited is told, and is no flag."""
    put_zone(root, 0, "soc", 71_000)
    put_zone(root, 1, "skin", 30_000)
    clock = Time(4, lambda: put_zone(root, 0, "soc", 60_000))
    gate = clock.gate(max_temperature_c=65.0)
    assert gate.wait() == 4
    assert gate.flags == []


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_temperature_c": 65.0}, "soc is at 71.0 °C, over 65 °C"),
        ({"min_battery_percent": 20}, "the battery is at 7 %, under 20 %"),
        ({"allow_charging": False}, "the battery is being charged"),
        ({"max_load": 1.0}, "the load is 3.50, over 1"),
    ],
)
def test_a_gate_that_stays_shut_is_passed_and_flagged(root: Path, limits: dict[str, Any], said: str) -> None:
    """The limit on waiting holds for the whole job; after it everything is measured, once flagged."""
    put_zone(root, 0, "soc", 71_000)
    put_battery(root, capacity=7, status="Charging")
    write(root / "proc", loadavg="3.50 2 1")
    clock = Time()
    gate = clock.gate(**limits)
    assert gate.wait() == 10
    assert gate.wait() == 0
    assert gate.flags == [f"measured all the same: {said}, after 10 s of waiting"]


def test_a_condition_is_flagged_once_however_often_it_is_let_pass(root: Path) -> None:
    """A hundred repeats over the bound, each at another temperature, are one flag: a result holds 64 at the most."""
    gate = Time().gate(max_temperature_c=60.0, min_battery_percent=50, gate_wait_seconds=0)
    for milli in range(61_000, 71_000, 100):
        put_zone(root, 0, "cpu", milli)
        gate.wait()
    assert [flag.partition(",")[0] for flag in gate.flags] == ["measured all the same: cpu is at 61.0 °C"]


def test_what_a_gate_cannot_read_is_named(root: Path) -> None:
    """A condition that nothing tells about does not hold up the job, and does not pass for met."""
    gate = Time().gate(max_temperature_c=65.0, min_battery_percent=20, allow_charging=False)
    assert gate.wait() == 0
    assert set(gate.unmeasured) == {"gate.max_temperature_c", "gate.min_battery_percent", "gate.allow_charging"}


def test_the_pis_rails_add_up() -> None:
    """Volts times amperes over the rails that tell both; anything else gives nothing."""
    expected = 1000 * (0.07025872 * 3.700103 + 0.1014887 * 3.311084 + 1.5 * 0.8)
    assert parse_pmic(PMIC) == pytest.approx(expected)
    assert parse_pmic("VCHI initialization failed") is None
    assert parse_pmic("X_A current(1)=1.2.3A\nX_V volt(1)=1V") is None


def test_a_supplys_power_is_read(root: Path) -> None:
    """power_now where it is there, else current times voltage, whatever the current's sign."""
    put_battery(root, status="Discharging", current_now=-500_000, voltage_now=4_000_000)
    source, read = power_reader()
    assert (source, read()) == ("BAT0", 2000)
    put_battery(root, status="Discharging", power_now=1_500_000)
    assert power_reader()[1]() == 1500


def test_energy_is_refused_while_charging_or_where_nothing_tells(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is given; a number is not."""
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(NoEnergy, match="nothing here tells"):
        power_reader()
    put_battery(root, status="Charging", current_now=500_000, voltage_now=4_000_000)
    with pytest.raises(NoEnergy, match="being charged"):
        power_reader()


def test_energy_is_what_is_drawn_beyond_idle() -> None:
    """1 W idle and 3 W busy over 10 s in 1000 inferences is 20 mJ each; steady readings have no error."""
    second = 10**9
    idle = [(i * second // 10, 1000.0) for i in range(50)]
    busy = [(10 * second + i * second // 10, 3000.0) for i in range(100)]
    told = account(idle + busy, 10 * second, 20 * second, 1000, "BAT0")
    assert told["mj_per_inference"] == pytest.approx(20)
    assert told["error_mj"] == 0
    uneven = [(at, mw + 100 * (i // 10 % 2)) for i, (at, mw) in enumerate(busy)]
    noisy = account(idle + uneven, 10 * second, 20 * second, 1000, "BAT0")
    # ten block means, half 3000 and half 3100 mW: their standard deviation is 52.7 mW, of the mean 16.7
    assert noisy["busy_error_mw"] == pytest.approx(16.67, abs=0.01)
    assert noisy["error_mj"] == pytest.approx(0.1667, abs=0.0001)
    with pytest.raises(NoEnergy, match="readings"):
        account(idle[:5] + busy, 10 * second, 20 * second, 1000, "BAT0")


def test_the_meter_reads_while_it_runs(root: Path) -> None:
    """Readings have times of the monotonic clock and stop with it."""
    put_battery(root, status="Discharging", power_now=2_000_000)
    meter = Meter()
    meter.start()
    time.sleep(0.5)
    meter.stop()
    assert meter.readings
    assert {mw for _, mw in meter.readings} == {2000.0}
