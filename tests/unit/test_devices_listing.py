"""`edgekit devices`: fake phones behind the real adb client and server, each with its state, cause and remedy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.adb_server import AdbServer
from support.fake_adbd import FakeAdbd
from support.fake_android import FakePhone, battery, thermal

from edgekit.api import benchmark
from edgekit.artifact import Artifact, Format, Passport, Scheme, TensorSpec
from edgekit.benchmarks.devices.adb_attached import attached, choose
from edgekit.benchmarks.devices.adb_client import AdbClient
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.listing import list_devices
from edgekit.benchmarks.devices.registry import device_lock
from edgekit.benchmarks.values import DeviceStatus
from edgekit.cli.app import run_command_line
from edgekit.errors import DeviceNoPython, DeviceUnusable
from edgekit.schema import sha256_of

PYTHON = Path(sys.executable)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AdbClient, int]]:
    """A private adb server for the tests of this file."""
    with AdbServer(tmp_path_factory.mktemp("adb")) as made:
        yield made.client, made.port


@pytest.fixture(autouse=True)
def own_surroundings(server: tuple[AdbClient, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """adb's default server is the private one; no inventory, cache or device lock but the test's own."""
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server[1]))
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("EDGEKIT_INVENTORY", "EDGEKIT_ADB_SERVER", "ANDROID_ADB_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def _soon() -> Deadline:
    return Deadline.after(20)


@contextmanager
def _connected(client: AdbClient, folder: Path, phones: dict[str, FakePhone]) -> Iterator[dict[str, FakeAdbd]]:
    """The phones, attached; each has its own serial number and its name as adb's model."""
    with ExitStack() as stack:
        fakes = {}
        for name, phone in phones.items():
            path = phone.install(folder / name / "bin")
            fakes[name] = stack.enter_context(FakeAdbd(path=path, model=name))
            client.run(["connect", fakes[name].serial], _soon())
            stack.callback(client.run, ["disconnect", fakes[name].serial], _soon())
        deadline = _soon()
        while {row.serial for row in attached(client, _soon()) if row.state == "device"} < {
            f.serial for f in fakes.values()
        }:
            assert deadline.remaining
            time.sleep(0.05)
        yield fakes


def _phone(serial: str, **answers: object) -> FakePhone:
    properties = {"ro.serialno": serial, **answers.pop("properties", {})}  # type: ignore[dict-item]
    return FakePhone(properties=properties, python=answers.pop("python", PYTHON), **answers)  # type: ignore[arg-type]


def _by_spec(statuses: tuple[DeviceStatus, ...]) -> dict[str, DeviceStatus]:
    return {status.spec: status for status in statuses}


def test_each_sick_device_has_one_cause_and_a_remedy(server: tuple[AdbClient, int], tmp_path: Path) -> None:
    """Ready, too hot, battery low and no Python, each told from the others, with facts, state and code."""
    phones = {
        "well": _phone("S1"),
        "hot": _phone("S2", thermal=thermal(4)),
        "low": _phone("S3", battery=battery(percent=7, status=3)),
        "plain": _phone("S4", python=None, properties={"ro.build.version.security_patch": "2026-04-01"}),
    }
    with _connected(server[0], tmp_path, phones) as fakes:
        found = _by_spec(list_devices())
        told = {name: found[f"adb:{fake.serial}"] for name, fake in fakes.items()}
    assert {name: (s.state, s.usable, s.code) for name, s in told.items()} == {
        "well": ("ready", True, None),
        "hot": ("too hot", False, "DEVICE_TOO_HOT"),
        "low": ("battery low", False, "DEVICE_BATTERY_LOW"),
        "plain": ("no python", False, "DEVICE_NO_PYTHON"),
    }
    assert all(status.reason and status.hint for name, status in told.items() if name != "well")
    well = told["well"]
    assert well.info is not None
    assert well.conditions is not None
    assert (well.info.model, well.info.soc, well.info.abis) == (
        "Google Pixel 8",
        "Tensor G3",
        ("arm64-v8a", "armeabi-v7a"),
    )
    assert (well.info.security_patch, well.info.android_api) == ("2026-06-05", 36)
    assert (well.info.build_fingerprint or "").startswith("google/shiba/")
    assert (well.conditions.battery_percent, well.conditions.hottest_zone) == (83, "BIG")
    assert [name for name, status in told.items() if any("CVE-2026-0073" in w for w in status.warnings)] == ["plain"]


def test_offline_and_unauthorized_are_told_without_being_asked(server: tuple[AdbClient, int], tmp_path: Path) -> None:
    """adb's own states, each with its remedy, and quickly: nothing is waited for."""
    client = server[0]
    with _connected(client, tmp_path, {"gone": _phone("S1")}) as fakes, FakeAdbd(mode="unauthorized") as locked:
        client.run(["connect", locked.serial], _soon())
        fakes["gone"].go_away()
        deadline = _soon()
        while {row.state for row in attached(client, _soon())} != {"offline", "unauthorized"}:
            assert deadline.remaining
            time.sleep(0.02)
        found = _by_spec(list_devices())
        client.run(["disconnect", locked.serial], _soon())
    gone, shut = found[f"adb:{fakes['gone'].serial}"], found[f"adb:{locked.serial}"]
    assert (gone.state, gone.usable, gone.code) == ("offline", False, "DEVICE_UNUSABLE")
    assert (shut.state, shut.usable, shut.code) == ("unauthorized", False, "DEVICE_UNAUTHORIZED")
    assert "adb reconnect" in (gone.hint or "")
    assert "Allow USB debugging" in (shut.hint or "")


def test_one_device_under_two_serials_is_one(server: tuple[AdbClient, int], tmp_path: Path) -> None:
    """The identity that the device tells counts, not adb's names for it."""
    with _connected(server[0], tmp_path, {"a": _phone("SAME"), "b": _phone("SAME"), "c": _phone("C")}) as fakes:
        found = [status for status in list_devices() if status.spec.startswith("adb:")]
    assert len(found) == 2
    (twice,) = [status for status in found if status.also]
    assert {twice.spec, *twice.also} == {f"adb:{fakes['a'].serial}", f"adb:{fakes['b'].serial}"}


def test_a_device_in_use_is_busy_and_left_alone(server: tuple[AdbClient, int], tmp_path: Path) -> None:
    """While another measures on it, nothing beyond its identity is asked."""
    with _connected(server[0], tmp_path, {"a": _phone("BUSY1")}) as fakes:
        spec = f"adb:{fakes['a'].serial}"
        (free,) = list_devices(named=[spec])
        assert free.info is not None
        with device_lock(free.info, _soon()):
            (busy,) = list_devices(named=[spec])
    assert (free.state, busy.state, busy.code, busy.conditions) == ("ready", "busy", "DEVICE_BUSY", None)
    assert str(os.getpid()) in (busy.reason or "")


def test_models_choose_among_the_attached(server: tuple[AdbClient, int], tmp_path: Path) -> None:
    """Exactly one match, written as the shop writes it or as adb does; else an error that lists what fits."""
    phones = {"Pixel_8": _phone("S1"), "Pixel_9": _phone("S2"), "SM_S918B": _phone("S3"), "sm-s918b": _phone("S4")}
    with _connected(server[0], tmp_path, phones) as fakes:
        assert choose("model:pixel 8")[1] == choose("model:Pixel_8")[1] == fakes["Pixel_8"].serial
        with pytest.raises(DeviceUnusable, match="2 devices with the model 'SM-S918B' are attached") as caught:
            choose("model:SM-S918B")
        assert fakes["SM_S918B"].serial in caught.value.message
        with pytest.raises(DeviceUnusable, match="no device with the model 'Pixel_7' is attached; there are adb:"):
            choose("model:Pixel_7")
        with pytest.raises(DeviceUnusable, match="4 devices are attached"):
            choose(None)


def test_two_servers_are_asked_and_named(
    server: tuple[AdbClient, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each device is listed with its server and opened through it; a server that does not answer is a row."""
    with (
        AdbServer(tmp_path / "second") as second,
        _connected(server[0], tmp_path / "one", {"a": _phone("A1")}) as here,
        _connected(second.client, tmp_path / "two", {"b": _phone("B1")}) as there,
    ):
        first, other, dead = f"127.0.0.1:{server[1]}", f"localhost:{second.port}", "127.0.0.1:1"
        monkeypatch.setenv("EDGEKIT_ADB_SERVER", f"{first},{other},{dead}")
        found = {status.spec: status for status in list_devices()}
        a, b = found[f"adb:{here['a'].serial}@{first}"], found[f"adb:{there['b'].serial}@{other}"]
        assert (a.state, a.server, b.state, b.server) == ("ready", first, "ready", other)
        assert found[f"adb:@{dead}"].state == "unreachable"
        assert dead in (found[f"adb:@{dead}"].reason or "")
        monkeypatch.delenv("EDGEKIT_ADB_SERVER")
        assert [status.state for status in list_devices(named=[b.spec, f"adb:@{other}", "adb:model:b@" + other])] == [
            "ready"
        ]
        assert choose(f"@{other}")[1] == there["b"].serial


def test_the_inventory_names_what_is_attached(
    server: tuple[AdbClient, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By serial or model, once each, with tags and notes; its floors are the ones kept; what is absent is said."""
    inventory = tmp_path / "lab.yaml"
    with _connected(server[0], tmp_path, {"Pixel_8": _phone("S1"), "x": _phone("S2")}) as fakes:
        inventory.write_text(
            "devices:\n"
            "  shelf: {device: 'adb:model:Pixel_8', tags: [phone], floors: {battery_percent: 90}, notes: rack 2}\n"
            f"  box: {{device: 'adb:{fakes['x'].serial}', floors: {{temperature_c: 44.4}}}}\n"
            "  gone: {device: 'adb:NOSUCH'}\n"
            "  far: {device: 'adb:X1', adb_server: '127.0.0.1:1'}\n"
        )
        monkeypatch.setenv("EDGEKIT_INVENTORY", str(inventory))
        found = list_devices()
        (named,) = list_devices(named=["tag:phone"])
    by_name = {status.name: status for status in found if status.name}
    assert {name: status.state for name, status in by_name.items()} == {
        "shelf": "battery low",
        "box": "too hot",
        "gone": "not attached",
        "far": "unreachable",
    }
    assert (by_name["shelf"].tags, by_name["shelf"].notes) == (("phone",), "rack 2")
    assert by_name["shelf"].spec == named.spec == f"adb:{fakes['Pixel_8'].serial}"
    assert named.state == "battery low"
    assert len([status for status in found if status.spec.startswith("adb")]) == 4


def test_a_hostile_device_cannot_dress_up(
    server: tuple[AdbClient, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Markup, escapes and endless text from a device's properties are shown as text, or not at all."""
    nasty = {"ro.product.model": "[red]x[/red]\x1b[2J<b>", "ro.soc.model": "[/]" + "y" * 5000}
    with _connected(server[0], tmp_path, {"[bold]m": _phone("S1", properties=nasty)}) as fakes:
        spec = f"adb:{fakes['[bold]m'].serial}"
        assert run_command_line(["devices", spec]) == 0
        shown = capsys.readouterr().out
        assert run_command_line(["devices", spec, "--json"]) == 0
        (record,) = json.loads(capsys.readouterr().out)
    assert "[red]x[/red]" in shown
    assert "\x1b" not in shown
    assert len(record["info"]["soc"]) <= 200


def test_a_benchmark_on_a_phone_says_what_it_needs(server: tuple[AdbClient, int], tmp_path: Path) -> None:
    """One clear error before anything is sent: the phone's folder stays empty."""
    model = tmp_path / "tiny.tflite"
    model.write_bytes(b"no runtime reads this before the phone is asked for its Python")
    tensor = TensorSpec(name="x", shape=(1, 4), dtype="float32")
    passport = Passport(
        name="tiny",
        format=Format.TFLITE,
        scheme=Scheme.FP32,
        file=model.name,
        sha256=sha256_of(model),
        size_bytes=model.stat().st_size,
        inputs=(tensor,),
        outputs=(tensor,),
        ops=(),
    )
    with _connected(server[0], tmp_path, {"a": _phone("S1", python=None)}) as fakes:
        with pytest.raises(DeviceNoPython, match="native runner of edgekit's app") as caught:
            benchmark(Artifact(path=model, passport=passport), f"adb:{fakes['a'].serial}", workspace=tmp_path / "runs")
        assert not list((tmp_path / "a" / "edgekit" / "cas").iterdir())
    assert caught.value.hint


def test_ctrl_c_ends_what_was_asked(server: tuple[AdbClient, int], tmp_path: Path) -> None:
    """A device that hangs does not hold the terminal, and no adb client is left behind."""
    phone = _phone("S1")
    with _connected(server[0], tmp_path, {"a": phone}) as fakes:
        slow = tmp_path / "a" / "bin" / "mkdir"
        slow.unlink()
        slow.write_text("#!/bin/sh\nexec sleep 30\n")
        slow.chmod(0o755)
        argv = [sys.executable, "-m", "edgekit", "devices"]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = _soon()
        while not _clients_of(fakes["a"].serial):
            assert deadline.remaining
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=15)
        assert process.returncode == 130
        assert "stopped" in said
        assert not _clients_of(fakes["a"].serial)


def _clients_of(serial: str) -> list[str]:
    """Command lines of `adb … shell` for this serial."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:  # it ended
            continue
        if serial in words and "shell" in words:
            found.append(" ".join(words))
    return found
