"""The harness on a real local device with a runtime double: measured once, resumed, recorded whatever happens."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from support import doubles

from edgekit.artifact import Artifact, Delegate, Format
from edgekit.benchmarks import harness
from edgekit.benchmarks.devices import launching
from edgekit.benchmarks.devices.base import Deadline, Launch, Watched
from edgekit.benchmarks.devices.local import LocalDevice, LocalTransport
from edgekit.benchmarks.devices.transport import OnOutput, Reply
from edgekit.benchmarks.harness import measure
from edgekit.benchmarks.inputs import InputSet, prepare_inputs, random_inputs, read_outputs
from edgekit.benchmarks.journal import MemoryStore
from edgekit.benchmarks.values import DeviceInfo, Plan, Run, RunStatus, RuntimeFacts
from edgekit.benchmarks.waiting import Watcher
from edgekit.errors import DeviceLost, Interrupted, InvalidResultError, WorkloadError


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "outputs")


@pytest.fixture
def info(local_device: LocalDevice) -> DeviceInfo:
    return local_device.probe(Deadline.after(30))


def run_once(
    device: Any, info: DeviceInfo, artifact: Artifact, store: MemoryStore, tmp_path: Path, **options: Any
) -> Run:
    plan = options.pop("plan", doubles.QUICK)
    values = options.pop("inputs", doubles.inputs())
    return measure(
        device, info, artifact, values, plan, store=store, work_dir=tmp_path / "work", runtime=doubles.DOUBLE, **options
    )


def test_a_measurement_is_recorded_with_its_outputs(
    local_device: LocalDevice, info: DeviceInfo, store: MemoryStore, tmp_path: Path
) -> None:
    """The run has every sample, its outputs are the model's and lie in the store, and nothing stays on the device."""
    artifact = doubles.artifact(tmp_path / "model")
    phases: list[str] = []
    run = run_once(local_device, info, artifact, store, tmp_path, on_progress=lambda phase, _part: phases.append(phase))
    assert (run.status, run.attempt, run.evaluated) == (RunStatus.OK, 1, 10)
    assert set(run.host_ns) == {"push", "run", "pull", "total"}
    assert run.device_fingerprint == info.fingerprint()
    assert run.outputs_sha256 is not None
    (outputs,) = read_outputs(store.outputs_path(run.outputs_sha256), artifact.passport, 10, device="local")
    # One product of four terms below 8 in float32: at most four roundings.
    np.testing.assert_allclose(outputs, doubles.inputs().arrays[0] @ doubles.weights(), atol=4 * 8 * 2**-24)
    assert set(phases) <= {"cold-0", "cold-1", "warm", "memory", "accuracy"}
    assert list(Path(local_device.root / "jobs").iterdir()) == []


class NoDevice:
    """A device that must not be touched."""

    spec = "local"

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the device was asked to {name}")


def test_the_same_job_is_not_measured_twice(
    local_device: LocalDevice, info: DeviceInfo, store: MemoryStore, tmp_path: Path
) -> None:
    """A stored result is returned without touching the device; another plan, other inputs or `fresh` measure."""
    artifact = doubles.artifact(tmp_path / "model")
    run = run_once(local_device, info, artifact, store, tmp_path)
    assert run_once(NoDevice(), info, artifact, store, tmp_path) == run
    with pytest.raises(AssertionError, match="asked"):
        run_once(NoDevice(), info, artifact, store, tmp_path, plan=doubles.QUICK.model_copy(update={"threads": 2}))
    with pytest.raises(AssertionError, match="asked"):
        run_once(NoDevice(), info, artifact, store, tmp_path, inputs=doubles.inputs(11))
    other = info.model_copy(update={"governor": "powersave"})
    with pytest.raises(AssertionError, match="asked"):
        run_once(NoDevice(), other, artifact, store, tmp_path)
    again = run_once(local_device, info, artifact, store, tmp_path, fresh=True)
    assert (again.attempt, again.job_key) == (2, run.job_key)


def test_outputs_that_were_deleted_are_measured_again(
    local_device: LocalDevice, info: DeviceInfo, store: MemoryStore, tmp_path: Path
) -> None:
    """A stored run without its outputs file cannot be evaluated, so it does not count as stored."""
    artifact = doubles.artifact(tmp_path / "model")
    run = run_once(local_device, info, artifact, store, tmp_path)
    store.outputs_path(run.outputs_sha256 or "").unlink()
    assert run_once(local_device, info, artifact, store, tmp_path).attempt == 2


@pytest.mark.parametrize(
    ("behaviour", "plan", "status", "said"),
    [
        ({"raise": "no such op"}, doubles.QUICK, RunStatus.FAILED, "no such op"),
        ({"crash_at": 2}, doubles.QUICK, RunStatus.CRASHED, "SIGSEGV"),
        (
            {"sleep_ms": 60_000},
            doubles.QUICK.model_copy(update={"timeout_seconds": 1.5}),
            RunStatus.TIMED_OUT,
            "timeout",
        ),
    ],
)
def test_what_the_model_does_wrong_is_a_recorded_run(
    local_device: LocalDevice,
    info: DeviceInfo,
    store: MemoryStore,
    tmp_path: Path,
    behaviour: dict[str, Any],
    plan: Plan,
    status: RunStatus,
    said: str,
) -> None:
    """A refused, crashed or hanging model raises nothing and leaves a row that says why; it is not published."""
    run = run_once(local_device, info, doubles.artifact(tmp_path / "m", **behaviour), store, tmp_path, plan=plan)
    assert run.status is status
    assert said in (run.error or "")
    assert store.runs[(run.job_key, 1)] == run
    assert store.selected(run.job_key) is None
    assert store.pending(run.job_key) is None


def test_a_runner_that_cannot_start_is_a_failed_run(
    local_device: LocalDevice, info: DeviceInfo, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that ends at once with an error is told by its own words, not waited for until the timeout."""
    monkeypatch.setattr("edgekit.runtimes.pack.runner_bytes", lambda: b"raise SystemExit('no numpy here')")
    run = run_once(local_device, info, doubles.artifact(tmp_path / "m"), store, tmp_path)
    assert run.status is RunStatus.FAILED
    assert "no numpy here" in (run.error or "")


HARNESS = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from support import doubles
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.local import LocalDevice
from edgekit.benchmarks.harness import measure
from edgekit.store import ResultStore
tmp = Path({tmp!r})
artifact = doubles.artifact(tmp / "model", sleep_ms=20)
with LocalDevice(root=tmp / "device") as device, ResultStore(tmp / "store") as store:
    run = measure(device, device.probe(Deadline.after(30)), artifact, doubles.inputs(), doubles.QUICK, store=store,
                  work_dir=tmp / "work", runtime=doubles.DOUBLE)
    print(run.status, run.attempt, len(store.attempts(run.job_key)), flush=True)
"""


def spawn(tmp_path: Path) -> "subprocess.Popen[str]":
    script = HARNESS.format(tests=str(Path(__file__).parents[1]), tmp=str(tmp_path))
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def wait_for_loads(folder: Path, count: int) -> None:
    end = time.monotonic() + 60
    while len(doubles.loads(folder)) < count:
        assert time.monotonic() < end, "the job never got there"
        time.sleep(0.01)


@pytest.mark.parametrize("loads", [1, 3, 5], ids=["cold", "warm", "accuracy"])
def test_a_killed_harness_finds_its_job_again(tmp_path: Path, loads: int) -> None:
    """kill -9 of the harness in any phase: the job goes on, the next harness takes its result, nothing ran twice."""
    first = spawn(tmp_path)
    wait_for_loads(tmp_path / "model", loads)
    first.kill()
    first.wait()
    out, _ = spawn(tmp_path).communicate(timeout=120)
    assert out.split() == ["ok", "1", "1"], "one attempt, one row"
    assert len(doubles.loads(tmp_path / "model")) == 5


@pytest.mark.parametrize("whole_group", [False, True], ids=["runner", "runner and wrapper"])
def test_a_runner_killed_under_the_harness_is_started_again(tmp_path: Path, whole_group: bool) -> None:
    """kill -9 on the device while the harness waits: same attempt, finished phases kept, one row, and it says so."""
    process = spawn(tmp_path)
    wait_for_loads(tmp_path / "model", 3)
    (job,) = [p for p in (tmp_path / "device" / "jobs").iterdir() if (p / "started" / "process").exists()]
    leader = int((job / "started" / "process").read_text().split()[0])
    if whole_group:
        os.killpg(leader, signal.SIGKILL)
    else:
        supervisor = next(
            int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and is_supervisor(p, str(job))
        )
        os.kill(supervisor, signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert out.split() == ["ok", "1", "1"]
    assert len(doubles.loads(tmp_path / "model")) == 6, "five phases and the one that was cut off"


def is_supervisor(proc: Path, job: str) -> bool:
    try:
        words = (proc / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"run" in words and job.encode() in words and b"sh" not in words


def test_ctrl_c_leaves_the_job_running_and_resumable(tmp_path: Path) -> None:
    """SIGINT returns control at once; the job goes on and the next call takes its result."""
    process = spawn(tmp_path)
    wait_for_loads(tmp_path / "model", 3)
    process.send_signal(signal.SIGINT)
    process.wait(10)
    assert process.returncode != 0
    out, _ = spawn(tmp_path).communicate(timeout=120)
    assert out.split() == ["ok", "1", "1"]
    assert len(doubles.loads(tmp_path / "model")) == 5


def begun_then(end: BaseException) -> Callable[[LocalDevice, Launch, Watcher], Watched]:
    """A `launch` that begins the job and then ends with `end`."""

    def launch(device: LocalDevice, job: Launch, watcher: Watcher) -> Watched:
        watched = device.launch(job, Deadline.after(30), seconds=0.2, on_line=watcher)
        if not watched.missing:
            raise end
        return watched

    return launch


def test_ctrl_c_is_an_edgekit_error(
    local_device: LocalDevice, info: DeviceInfo, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KeyboardInterrupt becomes Interrupted with a hint, and the attempt stays pending."""

    monkeypatch.setattr(harness, "launch", begun_then(KeyboardInterrupt()))
    with pytest.raises(Interrupted, match="interrupted"):
        run_once(local_device, info, doubles.artifact(tmp_path / "m", sleep_ms=5), store, tmp_path)
    monkeypatch.undo()
    assert run_once(local_device, info, doubles.artifact(tmp_path / "m", sleep_ms=5), store, tmp_path).attempt == 1


def test_a_reboot_voids_the_attempt(
    local_device: LocalDevice, info: DeviceInfo, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that was cut off by a restart of the device is recorded as lost, and a new one gives the result."""
    artifact = doubles.artifact(tmp_path / "m")

    monkeypatch.setattr(harness, "launch", begun_then(DeviceLost("gone", device="local")))
    with pytest.raises(DeviceLost):
        run_once(local_device, info, artifact, store, tmp_path)
    monkeypatch.undo()
    wait_for_loads(tmp_path / "m", 1)
    rebooted = info.model_copy(update={"boot_id": "another"})
    run = run_once(local_device, rebooted, artifact, store, tmp_path)
    assert (run.attempt, run.status) == (2, RunStatus.OK)
    assert store.runs[(run.job_key, 1)].status is RunStatus.LOST


class Tampered:
    """A local device whose results are changed on the way."""

    def __init__(self, device: LocalDevice, edit: Any) -> None:
        self._device = device
        self._edit = edit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def launch(self, *arguments: Any, **options: Any) -> Watched:
        return self._edited(self._device.launch(*arguments, **options))

    def watch(self, *arguments: Any, **options: Any) -> Watched:
        return self._edited(self._device.watch(*arguments, **options))

    def _edited(self, watched: Watched) -> Watched:
        if watched.result is None:
            return watched
        result = json.loads(watched.result)
        self._edit(result)
        return dataclasses.replace(watched, result=json.dumps(result).encode())


def lie_about_time(result: dict[str, Any]) -> None:
    result["phase_ns"]["cold"] += 10**12


def lie_about_outputs(result: dict[str, Any]) -> None:
    result["outputs"]["sha256"] = "0" * 64


def lie_about_samples(result: dict[str, Any]) -> None:
    result["latency_ns"] = result["latency_ns"][:1]


@pytest.mark.parametrize(
    ("edit", "field"),
    [(lie_about_time, "phase_ns"), (lie_about_outputs, "outputs.sha256"), (lie_about_samples, "latency_ns")],
)
def test_a_lying_device_gives_no_numbers(
    local_device: LocalDevice, info: DeviceInfo, store: MemoryStore, tmp_path: Path, edit: Any, field: str
) -> None:
    """A result that cannot be true is refused by field; its attempt is recorded without a number, and not pending."""
    with pytest.raises(InvalidResultError) as caught:
        run_once(Tampered(local_device, edit), info, doubles.artifact(tmp_path / "m"), store, tmp_path)
    assert caught.value.field == field
    (run,) = store.runs.values()
    assert (run.status, run.latency_ns, run.outputs_sha256) == (RunStatus.FAILED, (), None)
    assert not list((tmp_path / "outputs").glob("*.npz"))


class Counting(LocalTransport):
    """This host, with what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def shell(self, script: str, deadline: Deadline, *, on_output: OnOutput | None = None) -> Reply:
        self.calls.append("shell")
        return super().shell(script, deadline, on_output=on_output)

    def send(self, source: Path, destination: PurePosixPath, deadline: Deadline) -> None:
        self.calls.append("send")
        super().send(source, destination, deadline)

    def receive(self, source: PurePosixPath, destination: Path, deadline: Deadline, *, max_bytes: int) -> None:
        self.calls.append("receive")
        super().receive(source, destination, deadline, max_bytes=max_bytes)


def test_three_commands_a_job(local_device: LocalDevice, info: DeviceInfo, store: MemoryStore, tmp_path: Path) -> None:
    """With its files there, a job is one call that starts it and waits, the fetch of its outputs, and the removal."""
    local_device._transport = transport = Counting()
    artifact = doubles.artifact(tmp_path / "m")
    run_once(local_device, info, artifact, store, tmp_path)
    # what misses is told by the first call; each of the four files is then sent, and hashed there, without a question
    assert transport.calls == ["shell", *["send", "shell"] * 4, "shell", "receive", "shell"]
    transport.calls.clear()
    run = run_once(local_device, info, artifact, store, tmp_path, fresh=True)
    assert run.attempt == 2
    assert transport.calls == ["shell", "receive", "shell"]


def test_a_large_result_is_pulled(
    local_device: LocalDevice, info: DeviceInfo, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result too large to come with the call that waits for it is fetched as a file, and is the same."""
    monkeypatch.setattr(launching, "INLINE_RESULT_BYTES", 10)
    local_device._transport = transport = Counting()
    run = run_once(local_device, info, doubles.artifact(tmp_path / "m"), store, tmp_path)
    assert run.status is RunStatus.OK
    assert transport.calls.count("receive") == 2


def test_inputs_are_written_once_per_type(tmp_path: Path) -> None:
    """Artifacts that take the same type share the files; another scale makes another file."""
    passport = doubles.artifact(tmp_path).passport
    first = prepare_inputs(doubles.inputs(), passport, tmp_path / "in")
    assert prepare_inputs(doubles.inputs(), passport, tmp_path / "in") == first
    assert len(list((tmp_path / "in").iterdir())) == 1


@pytest.mark.parametrize(
    "array",
    [np.zeros((5, 3), np.float32), np.full((5, 4), np.nan, np.float32), np.zeros((5, 4, 1), np.float32)],
    ids=["shape", "not finite", "rank"],
)
def test_inputs_that_do_not_fit_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    """Before a device is touched, naming the input."""
    with pytest.raises(WorkloadError, match="x"):
        prepare_inputs(InputSet(arrays=(array,)), doubles.artifact(tmp_path).passport, tmp_path)


def test_random_inputs_fit_the_passport_and_repeat(tmp_path: Path) -> None:
    """Seeded: the same numbers for the same seed, so the same job key."""
    passport = doubles.artifact(tmp_path).passport
    a, b = (random_inputs(passport, seed=3) for _ in range(2))
    np.testing.assert_array_equal(a.arrays[0], b.arrays[0])
    assert prepare_inputs(a, passport, tmp_path).sha256 == prepare_inputs(b, passport, tmp_path).sha256


@pytest.fixture(autouse=True)
def no_ghosts(tmp_path: Path) -> Iterator[None]:
    """No process of a test outlives it."""
    yield
    with LocalDevice(root=tmp_path / "device") as device:
        for job in Path(device.root / "jobs").iterdir():
            device.kill(job.name, Deadline.after(10))


@pytest.mark.parametrize(
    ("format", "delegate", "total", "expected"),
    [
        (Format.EXECUTORCH, "XNNPACK", None, (12, 13)),
        (Format.EXECUTORCH, None, None, (None, None)),
        (Format.EXECUTORCH, "Vulkan", None, (None, None)),
        (Format.EXECUTORCH, "XNNPACK", 7, (None, 7)),
        (Format.ONNX, "XNNPACK", None, (None, None)),
    ],
)
def test_a_delegate_that_the_file_fixes_has_the_files_nodes(
    tmp_path: Path, format: Format, delegate: str | None, total: int | None, expected: tuple[int | None, int | None]
) -> None:
    """ExecuTorch's runtime counts no nodes, its program does; what a runtime counted, or may leave out, stays."""
    passport = doubles.artifact(tmp_path).passport.model_copy(
        update={"format": format, "delegates": (Delegate(name="XnnpackBackend", nodes=12, total=13),)}
    )
    facts = RuntimeFacts(name="executorch", version="1", threads=1, delegate=delegate, total_nodes=total)
    found = harness._with_nodes(facts, Artifact(path=Path("m"), passport=passport))
    assert found is not None
    assert (found.delegate_nodes, found.total_nodes) == expected
