"""What changes on a device: battery, heat, load, space and clock, as several kinds of device tell them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_android import BATTERY, THERMAL_10, THERMAL_14, battery, thermal

from edgekit.benchmarks.devices.android import parse_battery, parse_thermal
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.facts import PROBE_SCRIPT, device_info
from edgekit.benchmarks.devices.local import LocalDevice
from edgekit.benchmarks.devices.posix import PosixDevice
from edgekit.benchmarks.devices.process import run_bounded
from edgekit.benchmarks.devices.state import STATE_SCRIPT, device_state, read_state

SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "mksh": ["mksh"], "busybox": ["busybox", "sh"]}

# An older build: no dock, no charging policy, the charge overridden by `dumpsys battery set`.
BATTERY_OLD = """Current Battery Service state:
  (UPDATES STOPPED -- use 'reset' to restart)
  AC powered: true
  USB powered: false
  Wireless powered: false
  status: 5
  health: 2
  present: true
  level: 50
  scale: 200
  voltage: 4300
  temperature: -15
  technology: Li-poly
"""


def test_a_battery_is_understood() -> None:
    """Percent of the scale, the status by its number, temperature from tenths of a degree, what feeds it."""
    found = parse_battery(BATTERY.splitlines())
    assert found is not None
    assert (found.percent, found.status, found.milli_c) == (83, "charging", 31_200)
    assert (found.sources, found.is_overridden) == (("USB",), False)


def test_an_older_battery_is_understood_and_its_override_told() -> None:
    """A scale that is not 100, frost, fewer lines; values set by hand are not passed off as measured."""
    found = parse_battery(BATTERY_OLD.splitlines())
    assert found is not None
    assert (found.percent, found.status, found.milli_c, found.sources) == (25, "full", -1_500, ("AC",))
    assert found.is_overridden


@pytest.mark.parametrize(
    "text",
    ["", "Can't find service: battery", BATTERY.replace("present: true", "present: false"), "level: many\n"],
)
def test_no_battery_is_none(text: str) -> None:
    """A missing service (which exits with 0) and a board without a battery are no battery, not one at 0 %."""
    assert parse_battery(text.splitlines()) is None


@pytest.mark.parametrize(
    ("line", "percent", "milli_c"),
    [
        ("level: 83", 83, 31_200),
        ("level: 101", None, 31_200),
        ("level: -1", None, 31_200),
        ("level: 83\n  temperature: 99999", 83, None),
    ],
)
def test_impossible_battery_values_are_none(line: str, percent: int | None, milli_c: int | None) -> None:
    """A charge above its scale or a temperature that melts tin is not a measurement."""
    found = parse_battery(BATTERY.replace("  level: 83", f"  {line}").splitlines())
    assert found is not None
    assert (found.percent, found.milli_c) == (percent, milli_c)


def test_the_thermal_service_is_understood() -> None:
    """Only current rows of real temperatures: no cached row, no battery current or voltage, no NaN, no unknown kind."""
    found = parse_thermal(THERMAL_14.splitlines())
    assert found is not None
    assert found.status == 0
    assert found.milli_c == {"BIG": 44_500, "battery": 31_200, "VIRTUAL-SKIN": 33_107}


def test_android_10_has_its_own_rows() -> None:
    """`Name: …, Type: …, Status: …, Value: …`."""
    found = parse_thermal(THERMAL_10.splitlines())
    assert found is not None
    assert (found.status, found.milli_c) == (1, {"CPU0": 51_300, "quiet_therm": 38_800})


def test_a_missing_thermal_service_is_none() -> None:
    """`Can't find service` comes with exit status 0; an impossible status is not one."""
    assert parse_thermal(["Can't find service: thermalservice"]) is None
    assert parse_thermal([]) is None
    found = parse_thermal(thermal(7).splitlines())
    assert found is not None
    assert found.status is None
    overridden = parse_thermal(THERMAL_14.replace("IsStatusOverride: false", "IsStatusOverride: true").splitlines())
    assert overridden is not None
    assert overridden.is_overridden


def _prefixed(text: str, key: str) -> str:
    return "".join(f"{key}={line}\n" for line in text.splitlines())


def test_a_phones_state_goes_before_sysfs() -> None:
    """dumpsys is believed before thermal zones, which a phone's shell may read in part."""
    text = (
        _prefixed(battery(percent=7, status=3), "battery")
        + _prefixed(thermal(4), "thermal")
        + "zone=99000 some\ndf=/dev/block/dm-9 115249236 83482188 31767048 73% /data\nload=1.52 1.31 1.2 2/3000 9\n"
    )
    state = device_state(text, spec="adb:x")
    assert (state.battery_percent, state.battery_status, state.thermal_status) == (7, "discharging", 4)
    assert (state.hottest_zone, state.hottest_milli_c) == ("BIG", 44_500)
    assert (state.free_bytes, state.load_average_1m) == (31_767_048 * 1024, 1.52)


def test_nothing_told_is_none_with_reasons() -> None:
    """Every field that is None has its reason."""
    state = device_state("", spec="adb:x")
    told = state.model_dump(exclude={"spec", "power_sources", "notes", "unmeasured", "hottest_zone"})
    assert {name for name, value in told.items() if value is None} == set(told) == set(state.unmeasured)


@pytest.mark.parametrize(
    ("now", "between", "offset"),
    [
        (1000, (1000.2, 1000.9), 0),
        (1000, (999.0, 1001.0), 0),
        (1000, (1000.99, 1002.0), 0),  # the device reads 1000 until 1001
        (1010, (1000.0, 1001.0), 9),
        (990, (1000.0, 1001.0), -9),
    ],
)
def test_a_clock_is_off_only_when_it_must_be(now: int, between: tuple[float, float], offset: int) -> None:
    """The least offset that fits: a slow link is no wrong clock."""
    state = device_state(f"now={now}\n", spec="adb:x", asked_between=between)
    assert state.clock_offset_s == offset
    assert bool(state.notes) == (abs(offset) > 5)


def test_sysfs_rows_that_are_no_temperatures_are_left_out() -> None:
    """Qualcomm registers currents, voltages and the charge as thermal zones; old drivers give whole degrees."""
    rows = ["4100 vbat", "83 soc", "1200 ibat-lvl0", "3000 bcl-lvl1", "40 old-tsens", "48312 cpu-thermal", "x y", "-1"]
    state = device_state("".join(f"zone={row}\n" for row in rows), spec="ssh:pi")
    assert (state.hottest_zone, state.hottest_milli_c) == ("cpu-thermal", 48_312)
    state = device_state("zone=61 soc-thermal\nzone=999999999 mad\n", spec="ssh:pi")
    assert (state.hottest_zone, state.hottest_milli_c) == ("soc-thermal", 61_000)


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


LAPTOP = {
    "proc/loadavg": "0.42 0.40 0.38 1/345 6789\n",
    "proc/uptime": "8642.11 17000.00\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "71250\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "66000\n",
    "sys/class/thermal/thermal_zone2/type": "broken\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/AC/online": "1\n",
    "sys/class/power_supply/hidpp_battery_0/type": "Battery\n",
    "sys/class/power_supply/hidpp_battery_0/scope": "Device\n",
    "sys/class/power_supply/hidpp_battery_0/capacity": "5\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/status": "Not charging\n",
    "sys/class/power_supply/BAT0/capacity": "97\n",
    "sys/class/power_supply/BAT0/temp": "305\n",
}


@pytest.mark.parametrize("shell", SHELLS.values(), ids=SHELLS)
def test_the_script_reads_a_linux_in_every_shell(shell: list[str], tmp_path: Path) -> None:
    """/proc and /sys through the shells devices have; a mouse's battery is not the device's."""
    try:
        subprocess.run([*shell, "-c", ":"], check=True)
    except FileNotFoundError:
        pytest.skip(f"no {shell[0]} here")
    root = _tree(tmp_path / "a tree", LAPTOP)
    before = time.time()
    reply = run_bounded([*shell, "-c", STATE_SCRIPT, "sh", str(root), str(tmp_path)], Deadline.after(20), device="d")
    state = device_state(reply.stdout.decode(), spec="ssh:x", asked_between=(before, time.time()))
    assert (reply.returncode, reply.stderr) == (0, b"")
    assert (state.battery_percent, state.battery_status, state.battery_milli_c) == (97, "not charging", 30_500)
    assert (state.power_sources, state.thermal_status) == (("Mains",), None)
    assert (state.hottest_zone, state.hottest_milli_c) == ("cpu-thermal", 71_250)
    assert (state.load_average_1m, state.uptime_s, state.clock_offset_s) == (0.42, 8642.11, 0)
    assert state.free_bytes is not None
    assert state.free_bytes > 0


def test_this_hosts_state_is_one_command(local_device: LocalDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round trip, and this host's clock agrees with itself."""
    calls: list[object] = []
    run = LocalDevice.run
    monkeypatch.setattr(LocalDevice, "run", lambda *a, **k: calls.append(a) or run(*a, **k))
    state = read_state(local_device, Deadline.after(20))
    assert len(calls) == 1
    assert state.clock_offset_s == 0
    assert state.free_bytes


@pytest.mark.parametrize(
    "place", ["ssh_device", pytest.param("board", marks=[pytest.mark.needs_root, pytest.mark.board])]
)
def test_a_boards_state_is_told_over_its_link(place: str, request: pytest.FixtureRequest) -> None:
    """The same script over a real sshd and a real adbd."""
    device: PosixDevice = request.getfixturevalue(place)
    state = read_state(device, Deadline.after(20))
    assert state.spec == device.spec
    assert state.clock_offset_s == 0
    assert None not in (state.free_bytes, state.load_average_1m, state.uptime_s)


# A Tensor G3: four, four and one core; the kernel scales each cluster as one.
TENSOR = {
    core: {"cpuinfo_max_freq": clock, "related_cpus": related, "cpu_capacity": capacity}
    for cores, clock, related, capacity in (
        (range(4), "1704000", "0 1 2 3", "165"),
        (range(4, 8), "2367000", "4 5 6 7", "690"),
        (range(8, 9), "2914000", "8", "1024"),
    )
    for core in cores
}


def _cpu_tree(root: Path, cores: dict[int, dict[str, str]], siblings: dict[int, str] | None = None) -> str:
    """What PROBE_SCRIPT prints where /sys has these cores."""
    files = {}
    for core, facts in cores.items():
        for name, value in facts.items():
            folder = "" if name == "cpu_capacity" else "cpufreq/"
            files[f"sys/devices/system/cpu/cpu{core}/{folder}{name}"] = value + "\n"
    for core, listed in (siblings or {}).items():
        files[f"sys/devices/system/cpu/cpu{core}/topology/core_siblings_list"] = listed + "\n"
    script = PROBE_SCRIPT.replace("\nR=\n", f"\nR='{_tree(root, files)}'\n")
    return run_bounded(["sh", "-c", script], Deadline.after(20), device="d").stdout.decode()


def test_clusters_are_named_little_mid_and_big(tmp_path: Path) -> None:
    """By capacity, from /sys; the slowest first."""
    info = device_info(_cpu_tree(tmp_path, TENSOR), spec="adb:x", kind="adb")
    assert [(c.name, c.cores, c.max_khz, c.capacity) for c in info.clusters] == [
        ("little", (0, 1, 2, 3), 1704000, 165),
        ("mid", (4, 5, 6, 7), 2367000, 690),
        ("big", (8,), 2914000, 1024),
    ]


def test_two_alike_clusters_are_two_and_have_no_names(tmp_path: Path) -> None:
    """Two groups of four equal cores, each scaled as one, are two clusters, neither of them big."""
    cores = {
        core: {"cpuinfo_max_freq": "1800000", "related_cpus": "0 1 2 3" if core < 4 else "4 5 6 7"} for core in range(8)
    }
    info = device_info(_cpu_tree(tmp_path, cores), spec="adb:x", kind="adb")
    assert [(c.cores, c.name) for c in info.clusters] == [((0, 1, 2, 3), None), ((4, 5, 6, 7), None)]


def test_cores_scaled_one_by_one_are_one_cluster(tmp_path: Path) -> None:
    """x86 scales every core by itself, and favours some by a few percent: no little and big of that."""
    cores = {
        core: {"cpuinfo_max_freq": "5200000" if core == 2 else "5000000", "related_cpus": str(core)}
        for core in range(4)
    }
    info = device_info(_cpu_tree(tmp_path, cores), spec="ssh:x", kind="ssh")
    assert [(c.cores, c.name) for c in info.clusters] == [((0, 1, 3), None), ((2,), None)]


def test_without_clocks_the_packages_tell_clusters(tmp_path: Path) -> None:
    """Capacities without cpufreq: cores of one capacity that lie apart are apart."""
    cores = {core: {"cpu_capacity": "446" if core < 4 else "1024"} for core in range(6)}
    siblings = {core: "0-3" if core < 4 else "4-5" for core in range(6)}
    info = device_info(_cpu_tree(tmp_path, cores, siblings), spec="ssh:x", kind="ssh")
    assert [(c.name, c.cores) for c in info.clusters] == [("little", (0, 1, 2, 3)), ("big", (4, 5))]


def test_state_is_no_part_of_the_fingerprint() -> None:
    """The same device hotter or fuller is the same device: nothing of DeviceState is in DeviceInfo."""
    text = "prop.ro.serialno=S\nprop.ro.build.version.release=16\n"
    plain = device_info(text, spec="adb:S", kind="adb")
    warm = device_info(text + "zone=90000 cpu\ndf=x 1 1 1 1% /\nload=9.9\nnow=1\n", spec="adb:S", kind="adb")
    assert plain.fingerprint() == warm.fingerprint()


_LINES = st.one_of(
    st.sampled_from([line for text in (BATTERY, BATTERY_OLD, THERMAL_10, THERMAL_14) for line in text.splitlines()]),
    st.text(max_size=60),
    st.builds(
        lambda key, value: f"{key}: {value}",
        st.sampled_from(["level", "scale", "temperature", "status", "present", "Thermal Status"]),
        st.one_of(st.integers(), st.floats(), st.text(max_size=8)),
    ),
    st.builds(
        lambda value, kind: f"Temperature{{mValue={value}, mType={kind}, mName=x, mStatus=0}}",
        st.one_of(st.floats(), st.integers(), st.text(max_size=8)),
        st.integers(-3, 12),
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(_LINES, max_size=40))
def test_no_dumpsys_output_breaks_the_parsers(lines: list[str]) -> None:
    """Never an exception, never a value out of its range, from any mixture of real and hostile lines."""
    lines = ["Current temperatures from HAL:", *lines]
    found = parse_battery(lines)
    assert found is None or found.percent is None or 0 <= found.percent <= 100
    heat = parse_thermal(lines)
    assert heat is None or heat.status is None or 0 <= heat.status <= 6
    for milli_c in [*(heat.milli_c.values() if heat else ()), *([found.milli_c] if found and found.milli_c else ())]:
        assert -40_000 <= milli_c <= 150_000


_KEYS = st.sampled_from(
    ["now", "load", "uptime", "df", "zone", "supply", "battery", "thermal", "max_khz.0", "capacity.0"]
)
_VALUES = st.one_of(
    st.text(max_size=40),
    st.builds(str, st.integers()),
    st.builds(lambda a, b: f"{a} {b}", st.integers(), st.text(max_size=12)),
    st.builds(
        lambda i, k, v: f"{i} {k} {v}", st.integers(0, 2), st.sampled_from(["type", "capacity", "temp"]), st.text()
    ),
    st.sampled_from(["1 type Battery", "1 capacity 55", "1 temp 99999", "/dev/x 1 1 9 1% /data"]),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(_KEYS, _VALUES), max_size=30), st.floats(0, 1e12))
def test_no_answer_breaks_the_state(rows: list[tuple[str, str]], moment: float) -> None:
    """Any `key=value` lines give a DeviceState (whose fields check their ranges) and a DeviceInfo."""
    text = "".join(f"{key}={value}\n" for key, value in rows)
    state = device_state(text, spec="adb:x", asked_between=(moment, moment + 1))
    assert state.hottest_milli_c is None or -40_000 <= state.hottest_milli_c <= 150_000
    assert device_info(text, spec="adb:x", kind="adb").spec == "adb:x"
