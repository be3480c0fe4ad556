"""The inventory: what a file may say, what its names mean, and that reading it runs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.benchmarks.devices.adb_attached import AdbChoice, parse_choice, parse_devices, state_problem
from edgekit.benchmarks.devices.adb_server import chosen_servers, server_socket
from edgekit.benchmarks.devices.inventory import (
    entry_of,
    floors_for,
    inventory_path,
    load_inventory,
    read_inventory,
    require_runtime,
    with_floors_of,
)
from edgekit.benchmarks.devices.registry import open_device, resolve
from edgekit.benchmarks.values import Plan
from edgekit.cli.app import run_command_line
from edgekit.errors import UserError
from edgekit.pipeline.learning import WorkloadIdentity
from edgekit.pipeline.run import RunOptions, open_run, run_id_of
from edgekit.recipe import Recipe

INVENTORY = """\
schema_version: 1
devices:
  here:
    device: local
    tags: [host, x86]
    floors: {battery_percent: 35, temperature_c: 70}
    runtime: litert
  pixel:
    device: adb:R5CT30ABCDE
    tags: [phone, arm64]
    adb_server: 10.0.0.7:5037
    power_cycle: [touch, "%s"]
    notes: rack 2
  other: {device: "ssh:pi@10.0.0.9", tags: arm64}
"""


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with three devices, chosen by the environment."""
    path = tmp_path / "lab.yaml"
    path.write_text(INVENTORY % (tmp_path / "it ran"))
    monkeypatch.setenv("EDGEKIT_INVENTORY", str(path))
    return path


def test_names_and_tags_are_specs(inventory: Path) -> None:
    """A name, `tag:` and `adb:tag:` open what the file says; one word may stand for a list of one."""
    assert resolve("here") == ("local", "here")
    assert resolve("pixel") == ("adb:R5CT30ABCDE@10.0.0.7:5037", "pixel")
    assert resolve("tag:host") == ("local", "here")
    assert resolve("adb:tag:arm64") == ("adb:R5CT30ABCDE@10.0.0.7:5037", "pixel")
    assert resolve("ssh:elsewhere") == ("ssh:elsewhere", None)
    assert open_device("here").spec == "local"
    assert load_inventory().devices["other"].tags == ("arm64",)


def test_a_tag_must_fit_exactly_one(inventory: Path) -> None:
    """None or several is an error that lists them."""
    with pytest.raises(UserError, match="2 devices have the tag 'arm64': pixel, other"):
        resolve("tag:arm64")
    with pytest.raises(UserError, match="did you mean 'phone'"):
        resolve("tag:fone")
    with pytest.raises(UserError, match="did you mean 'pixel'"):
        open_device("pixl")


def test_floors_and_runtimes_follow_the_device(inventory: Path) -> None:
    """By its name, by the spec in the file, and by the spec of what was opened; others have the defaults."""
    assert floors_for("here").battery_percent == floors_for("local").battery_percent == 35
    assert floors_for("adb:R5CT30ABCDE@10.0.0.7:5037").temperature_c is None
    assert floors_for("adb:unknown").battery_percent == 20
    # what the entry sets is waited for before each repeat; what the plan sets itself stays
    assert with_floors_of("here", Plan()).min_battery_percent == 35
    assert with_floors_of("here", Plan(min_battery_percent=50)).min_battery_percent == 50
    assert with_floors_of("adb:unknown", Plan()) == Plan()
    assert entry_of("adb:R5CT30ABCDE") == ("pixel", load_inventory().devices["pixel"])
    require_runtime("local", "litert")
    require_runtime("pixel", "onnxruntime")
    with pytest.raises(UserError, match="allows litert on here, not onnxruntime"):
        require_runtime("local", "onnxruntime")


def test_only_the_explicit_command_runs_power_cycle(inventory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Listing and opening run nothing; `--power-cycle NAME` runs the words as they are, without a shell."""
    trace = inventory.parent / "it ran"
    assert run_command_line(["devices", "--no-probe", "here"]) == 0
    assert not trace.exists()
    assert run_command_line(["devices", "--power-cycle", "pixel"]) == 0
    assert trace.exists()
    assert run_command_line(["devices", "--power-cycle", "other"]) == 2
    assert run_command_line(["devices", "--power-cycle", "nosuch"]) == 2
    assert "has no power_cycle command" in capsys.readouterr().err


def test_a_power_cycle_that_fails_is_said(inventory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its status and last words; a program that is not there; no shell expands anything."""
    text = INVENTORY % "x"
    for command, said in (
        ("[sh, -c, 'echo no hub >&2; exit 4']", "ended with 4: no hub"),
        ("[nosuchprogram]", "nosuchprogram"),
        ("[ls, '$(id)']", "$(id)"),
    ):
        inventory.write_text(text.replace('[touch, "x"]', command))
        assert run_command_line(["devices", "--power-cycle", "pixel"]) == 5
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("devices:\n  a: {device: local, tagz: [x]}\n", "2: devices.a.tagz: unknown key; did you mean 'tags'?"),
        ("devices:\n  a:\n    device: local\n    floors: {battery: 3}\n", "4: devices.a.floors.battery: unknown key"),
        ("devices:\n  a: {device: local, floors: {battery_percent: 120}}\n", "2: devices.a.floors.battery_percent"),
        ("devices:\n  a: {tags: [x]}\n", "devices.a.device: Field required"),
        ("device:\n  a: {}\n", "1: device: unknown key; did you mean 'devices'?"),
        ("devices:\n  adb: {device: local}\n", "is a kind of device"),
        ("devices:\n  'a b': {device: local}\n", "must be letters"),
        ("devices:\n  a: {device: 'tag:x'}\n", "give the device itself"),
        ("devices:\n  a: {device: local, adb_server: 'h:1'}\n", "goes with `adb:SERIAL`"),
        ("devices:\n  a: {device: 'adb:x', adb_server: 'h'}\n", "is not an adb server"),
        ("devices:\n  a: {device: local, power_cycle: reboot}\n", "devices.a.power_cycle"),
        ("devices:\n  a: {device: local, tags: ['-x']}\n", "must be letters"),
        ("devices:\n  a: {device: lokal}\n", "2: devices.a.device: unknown device 'lokal'; did you mean 'local'?"),
        ("devices:\n  a: {device: 'adb:-s $(id)'}\n", "cannot be an adb serial"),
        ("devices:\n  a: {device: 'ssh:-oProxyCommand=x'}\n", "cannot be a host"),
        ("devices:\n  a: {device: local, runtime: litrt}\n", "unknown runtime 'litrt'; did you mean 'litert'?"),
        ("devices: [a]\n", "devices"),
        ("- a\n", "an inventory is a mapping"),
        ("devices: {a: {device: local}, a: {device: adb}}\n", "stands twice"),
        ("schema_version: 2\n", "schema_version"),
        ("devices: &x {}\nother: *x\n", "aliases"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    """Unknown keys, wrong values, names that cannot be: an error with the file, mostly the line, and the near miss."""
    path = tmp_path / "devices.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_inventory(path)
    assert str(path) in caught.value.message
    assert said in caught.value.message


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen one, which must be there; then the folder's; then the user's; else none, which is empty."""
    monkeypatch.delenv("EDGEKIT_INVENTORY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    assert inventory_path() is None
    assert not load_inventory().devices
    users = tmp_path / "config" / "edgekit" / "devices.yaml"
    users.parent.mkdir(parents=True)
    users.write_text("devices: {mine: {device: local}}\n")
    assert list(load_inventory().devices) == ["mine"]
    Path("devices.yaml").write_text("devices: {ours: {device: local}}\n")
    assert list(load_inventory().devices) == ["ours"]
    Path("empty.yaml").write_text("")
    monkeypatch.setenv("EDGEKIT_INVENTORY", "empty.yaml")
    assert not load_inventory().devices
    monkeypatch.setenv("EDGEKIT_INVENTORY", "nosuch.yaml")
    with pytest.raises(UserError, match=r"nosuch\.yaml"):
        load_inventory()


def test_the_options_may_stand_anywhere(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--inventory FILE` and `--adb-server HOST:PORT` before or behind the command, joined or apart."""
    monkeypatch.delenv("EDGEKIT_INVENTORY")
    monkeypatch.setenv("EDGEKIT_ADB_SERVER", "")
    assert run_command_line(["devices", "--no-probe", "here", "--inventory", str(inventory)]) == 0
    assert run_command_line([f"--inventory={inventory}", "devices", "here", "--no-probe"]) == 0
    servers = ["--adb-server=10.0.0.1:5037", "devices", "here", "--no-probe", "--adb-server", "[::1]:5038"]
    assert run_command_line(servers) == 0
    assert chosen_servers() == ("10.0.0.1:5037", "[::1]:5038")
    assert run_command_line(["devices", "here", "--adb-server", "nothing"]) == 2
    assert run_command_line(["compare", "--inventory", str(inventory), "x", "y"]) >= 10


def test_servers_from_adbs_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address alone has adb's port; the port alone is left to adb, which starts its server there."""
    monkeypatch.delenv("EDGEKIT_ADB_SERVER", raising=False)
    monkeypatch.setenv("ANDROID_ADB_SERVER_ADDRESS", "10.0.0.7")
    monkeypatch.delenv("ANDROID_ADB_SERVER_PORT", raising=False)
    assert chosen_servers() == ("10.0.0.7:5037",)
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "5040")
    assert chosen_servers() == ("10.0.0.7:5040",)
    monkeypatch.delenv("ANDROID_ADB_SERVER_ADDRESS")
    assert chosen_servers() == (None,)
    assert server_socket("localhost:5040") == "tcp:127.0.0.1:5040"


@pytest.mark.parametrize(
    ("argument", "choice"),
    [
        (None, AdbChoice()),
        ("R5CT30ABCDE", AdbChoice(serial="R5CT30ABCDE")),
        ("10.0.0.5:5555", AdbChoice(serial="10.0.0.5:5555")),
        ("[fe80::1]:5555@[::1]:5037", AdbChoice(serial="[fe80::1]:5555", server="[::1]:5037")),
        ("model:Pixel 8@h:1", AdbChoice(model="Pixel 8", server="h:1")),
        ("@10.0.0.7:5037", AdbChoice(server="10.0.0.7:5037")),
    ],
)
def test_what_may_stand_behind_adb(argument: str | None, choice: AdbChoice) -> None:
    """A serial, a model or nothing, and a server behind `@`."""
    assert parse_choice(argument) == choice


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_no_argument_reaches_adb_unchecked(argument: str) -> None:
    """Whatever is typed is a choice made of harmless characters, or a UserError; nothing begins with a dash."""
    try:
        choice = parse_choice(argument)
    except UserError:
        return
    for part in (choice.serial, choice.model, choice.server):
        assert part is None or (part.isascii() and part.isprintable() and not part.startswith("-"))


_ROWS = st.lists(
    st.one_of(
        st.text(max_size=80),
        st.builds(
            lambda serial, state, rest: f"{serial}  {state} {rest}",
            st.text(max_size=20),
            st.sampled_from(["device", "offline", "unauthorized", "no permissions (x)", "recovery", "dev ice"]),
            st.text(max_size=40),
        ),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(_ROWS)
def test_no_list_of_adbs_breaks_it(rows: list[str]) -> None:
    """Whatever a server answers: printable serials, each once, each a device or with a reason and a remedy."""
    found = parse_devices("\n".join(["List of devices attached", *rows]))
    assert len({row.serial for row in found}) == len(found)
    for row in found:
        assert row.serial.isprintable()
        assert len(row.serial) <= 128
        problem = state_problem(row)
        assert problem.hint if problem else row.state == "device"


def test_a_list_without_end_is_cut() -> None:
    """A server that lists a million devices, or one with an endless name, costs no more than a real one."""
    text = "List of devices attached\n" + "".join(f"s{n} device\n" for n in range(100_000))
    assert len(parse_devices(text)) == 512
    assert parse_devices(f"List of devices attached\n{'x ' * 500_000}device\n") == ()


def _recipe(*devices: dict[str, object]) -> Recipe:
    return Recipe.model_validate({"name": "r", "workload": "w.py:w", "devices": devices})


def test_a_run_knows_which_device_a_name_meant(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a name goes to another phone, a finished run is another run; specs give the id they always gave."""
    identity = WorkloadIdentity(source="s", params={}, train=None, calibration=None, evaluation=None)
    named, plain = _recipe({"spec": "pixel"}), _recipe({"spec": "local"})
    before, plain_id = run_id_of(named, identity), run_id_of(plain, identity)
    assert run_id_of(named, identity) == before
    inventory.write_text((INVENTORY % "x").replace("R5CT30ABCDE", "ANOTHER"))
    assert run_id_of(named, identity) != before
    monkeypatch.delenv("EDGEKIT_INVENTORY")
    assert run_id_of(plain, identity) == plain_id


def test_a_misspelt_device_is_said_before_training(inventory: Path, tmp_path: Path) -> None:
    """Not after the hours it takes; a device the recipe can do without is said when its turn comes."""
    options = RunOptions(workspace=tmp_path / "runs", base=tmp_path)
    with pytest.raises(UserError, match="did you mean 'pixel'"):
        open_run(_recipe({"spec": "pixle"}), options)
    with pytest.raises(UserError, match=r"w\.py"):  # it went on to the workload, which is not there
        open_run(_recipe({"spec": "pixle", "required": False}), options)
