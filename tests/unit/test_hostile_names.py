"""Names with spaces, quotes, `;`, `$()`, line breaks, markup and escapes: shown as they are, and nothing more."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from support import doubles

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.local import LocalDevice
from edgekit.benchmarks.devices.room import free_room_script
from edgekit.cli.app import _VisibleFormatter, fail, run_command_line
from edgekit.cli.shown import shown
from edgekit.errors import CommandError, DeviceLost

NAMES = [
    "a b",
    'it\'s "both"',
    "$(touch CANARY)",
    "-rf",
    "new\nline",
    "\x1b[31mred\x1b]0;title\x07",
    "ü☃🤖",
    "<script>alert(1)</script>".replace("/", "∕"),
    "[bold red]x[/]".replace("/", "∕"),
    "\u202egnp.exe",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of one Relu."""
    onnx = pytest.importorskip("onnx")
    make, floats = onnx.helper, onnx.TensorProto.FLOAT
    values = [make.make_tensor_value_info(name, floats, [1, 4]) for name in "xy"]
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    path: Path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_model_file_of_any_name_is_shown_and_not_run(
    model: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`inspect` reads it, in a table without terminal escapes and as JSON with the name to the letter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path(f"{name}.onnx").write_bytes(model.read_bytes())
    assert run_command_line(["inspect", "--", f"./{name}.onnx"]) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "\u202e" not in told
    assert run_command_line(["inspect", "--json", "--", f"./{name}.onnx"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == f"{name}.onnx"
    assert not Path("CANARY").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.onnx"]


@pytest.mark.parametrize("kind", ["local", "adb", "ssh", "board", "nosuch"])
@pytest.mark.parametrize("name", ["-s", "$(touch CANARY)", "\x1b[31mx", "a\nb", "x" * 300])
def test_a_device_of_any_name_is_an_error_of_ours(
    model: Path,
    kind: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A name that cannot be a device's: exit status 2 or 3 and a hint, no traceback, and no escape on the terminal."""
    monkeypatch.chdir(tmp_path)
    status = run_command_line(["benchmark", str(model), "--device", f"{kind}:{name}", "-w", str(tmp_path / "w")])
    told = capsys.readouterr().err
    assert status in (2, 3)
    assert "try:" in told
    assert "\x1b" not in told
    assert "Traceback" not in told
    assert not Path("CANARY").exists()


def test_what_a_device_said_is_shown_in_errors_logs_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """Escapes in a command's output never reach the terminal as escapes: error, log line, table cell."""
    evil = "\x1b]0;owned\x07\x1b[2J[red]"
    error = CommandError(device="adb:x", argv=["ls"], returncode=1, stdout="", stderr=evil)
    assert fail(error, as_json=True) == 3
    said = capsys.readouterr()
    assert "\x1b" not in said.err
    assert "\\x1b]0;owned" in said.err
    assert json.loads(said.out)["error"]["retryable"] is False
    record = logging.LogRecord("edgekit", logging.WARNING, "x", 1, "%s", (DeviceLost(evil, device="d"),), None)
    assert "\x1b" not in _VisibleFormatter("%(message)s").format(record)
    assert shown(evil).startswith("\\x1b]0;owned")
    assert "\\[red]" in shown(evil)


def test_an_artifact_of_any_name_is_measured(local_device: LocalDevice, tmp_path: Path) -> None:
    """The shown name never becomes a path on the device or the host, whatever is in it."""
    from edgekit.artifact import Artifact
    from edgekit.benchmarks.harness import measure
    from edgekit.benchmarks.journal import MemoryStore

    plain = doubles.artifact(tmp_path / "model")
    name = "../../x;$(touch CANARY)\n<b>\x1b[31m"
    artifact = Artifact(path=plain.path, passport=plain.passport.model_copy(update={"name": name}))
    info = local_device.probe(Deadline.after(30))
    store = MemoryStore(tmp_path / "outputs")
    options = {"store": store, "work_dir": tmp_path / "work", "runtime": doubles.DOUBLE}
    run = measure(local_device, info, artifact, doubles.inputs(), doubles.QUICK, **options)  # type: ignore[arg-type]
    assert run.status == "ok"
    assert {p.name for p in tmp_path.iterdir()} <= {"model", "outputs", "work", "device"}


@pytest.mark.parametrize("name", ["a b", "it's", "$(touch CANARY)", ";x", "new\nline", "*", "ü☃", "-rf", '"'])
def test_a_folder_of_any_name_holds_a_device(name: str, tmp_path: Path) -> None:
    """The path of edgekit's folder is data in every script: files, jobs, room and ghosts work below any name."""
    source = tmp_path / "source"
    source.write_bytes(b"content")
    with LocalDevice(root=tmp_path / name) as device:
        path = device.put(source, Deadline.after(20))
        sent: list[object] = []
        device._transport.send = lambda *a, **k: sent.append(a)  # type: ignore[method-assign]
        assert device.put(source, Deadline.after(20)) == path
        del device._transport.send  # type: ignore[method-assign]
        assert sent == []
        old, job = "aaaa.1", "bbbb.1"
        device.write(device.job_dir(job) / "job.json", b"{}", Deadline.after(20))
        device.start(old, ["sleep", "60"], Deadline.after(20))
        device.start(job, ["sleep", "60"], Deadline.after(20), alone=True)
        assert [device.is_alive(n, Deadline.after(20)) for n in (old, job)] == [False, True]
        device.kill(job, Deadline.after(20))
        device.pull(device.job_dir(job) / "job.json", tmp_path / "got", Deadline.after(20), max_bytes=10)
        assert (tmp_path / "got").read_bytes() == b"{}"
        assert device._query(free_room_script(device.root, 1, []), Deadline.after(20)).split() == ["1", "7"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["source", "got", name])


def test_a_process_may_have_any_name(local_device: LocalDevice, tmp_path: Path) -> None:
    """`/proc/PID/stat` with brackets, digits and line breaks in the name: the job is found alive, and killed."""
    program = tmp_path / "a) Z 1 1\n(b"
    program.write_bytes(Path("/bin/sleep").resolve().read_bytes())
    program.chmod(0o755)
    job = "abcdef.1"
    # `exec -a` would change the arguments only; the name in stat is that of the file
    assert local_device.start(job, [str(program), "1000"], Deadline.after(20))
    named: list[int] = []
    end = time.monotonic() + 10
    while not named and time.monotonic() < end:
        named = [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == [str(program), "1000"]]
    assert len(named) == 1
    assert local_device.is_alive(job, Deadline.after(20))
    local_device.kill(job, Deadline.after(20))
    assert not local_device.is_alive(job, Deadline.after(20))
    for pid in named:
        assert not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()


def test_an_interrupted_command_leaves_nothing(local_device: LocalDevice) -> None:
    """Ctrl-C while a command runs: the command is dead when the interrupt arrives."""
    mark = f"71{os.getpid()}{int(time.monotonic() * 1000) % 100000}"
    timer = threading.Timer(0.4, lambda: os.kill(os.getpid(), 2))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        local_device.run(["sleep", mark], Deadline.after(20))
    timer.join()
    assert subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, check=False).returncode == 1
