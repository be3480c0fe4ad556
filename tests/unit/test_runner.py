"""The runner by itself: phases in fresh processes, saved, resumed, and failures that become results."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import doubles

from edgekit.benchmarks.result import RunnerResult, parse_result
from edgekit.benchmarks.values import Plan
from edgekit.runtimes import runner
from edgekit.runtimes.pack import pack_runner, runner_bytes
from edgekit.runtimes.runner import MAX_SAMPLES
from edgekit.runtimes.runner.sampling import calls_per_sample, is_settled, quartiles, sample, warm_up

JOB = "k.1"
SOURCES = sorted(Path(runner.__file__).parent.rglob("*.py"))


def prepare(folder: Path, plan: Plan = doubles.QUICK, count: int = 10, batch: int = 1, **behaviour: object) -> None:
    """A job folder for the double runtime."""
    model = doubles.artifact(folder, **behaviour)
    np.save(folder / "x.npy", doubles.inputs(count).arrays[0])
    job = {
        "schema_version": 2,
        "job": JOB,
        "runtime": "double",
        "backend_file": str(doubles.BACKEND),
        "model": str(model.path),
        "inputs": [{"name": "x", "path": str(folder / "x.npy")}],
        "outputs": ["y"],
        "batch": batch,
        "plan": plan.model_dump(mode="json"),
    }
    (folder / "job.json").write_text(json.dumps(job))


def start(folder: Path) -> "subprocess.Popen[bytes]":
    path, _ = pack_runner(folder)
    return subprocess.Popen([sys.executable, str(path), "run", str(folder)])


def finish(folder: Path) -> None:
    assert start(folder).wait(120) == 0


def result_of(folder: Path, plan: Plan = doubles.QUICK, count: int = 10) -> RunnerResult:
    text = (folder / "result.json").read_bytes()
    return parse_result(text, device="here", job=JOB, plan=plan, inputs=count)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} never came"
        time.sleep(0.01)


def test_a_job_gives_a_whole_valid_result(tmp_path: Path) -> None:
    """Every phase that was asked for is in the result, the outputs are the model's, progress says done."""
    prepare(tmp_path, count=11, batch=4)
    finish(tmp_path)
    result = result_of(tmp_path, count=11)
    assert (result.status, len(result.cold_starts), result.evaluated, result.starts) == ("ok", 2, 11, 1)
    assert len(result.latency_ns) >= doubles.QUICK.min_samples
    assert set(result.phase_ns) == {"cold", "warm", "memory", "accuracy"}
    with np.load(tmp_path / "outputs.npz") as outputs:
        # 4 products summed in float32, in whatever order the batch makes BLAS take: 4 roundings of values below 8.
        expected = doubles.inputs(11).arrays[0] @ doubles.weights()
        np.testing.assert_allclose(outputs["output_0"], expected, atol=4 * 8 * 2**-24)
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["state"], progress["done"], progress["total"]) == ("done", 5, 5)


def test_each_phase_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Two cold starts, warm, memory, accuracy: five processes load the model once each."""
    prepare(tmp_path)
    finish(tmp_path)
    pids = doubles.loads(tmp_path)
    assert len(pids) == 5
    assert len(set(pids)) == 5


def test_a_model_that_crashes_gives_a_result_that_says_so(tmp_path: Path) -> None:
    """A segmentation fault in the model's process is status crashed with its signal, not the runner's death."""
    prepare(tmp_path, crash_at=3)
    finish(tmp_path)
    result = result_of(tmp_path)
    assert (result.status, result.signal) == ("crashed", signal.SIGSEGV)
    assert result.error is not None
    assert "warm: the process died by SIGSEGV" in result.error
    assert len(result.cold_starts) == 2, "what was measured before the crash is kept"
    assert "warm" in result.unmeasured["latency_ns"]


def test_a_model_that_is_refused_gives_the_reason(tmp_path: Path) -> None:
    """An exception while loading is status failed; the first line of the error is the exception's message."""
    prepare(tmp_path, **{"raise": "no such op"})
    finish(tmp_path)
    result = result_of(tmp_path)
    assert result.status == "failed"
    assert (result.error or "").splitlines()[0] == "cold-0: ValueError: no such op"


def test_a_delegate_that_cannot_be_had_fails_the_run(tmp_path: Path) -> None:
    """Nothing falls back silently: an absent delegate is a failure."""
    plan = doubles.QUICK.model_copy(update={"delegate": "xnnpack"})
    prepare(tmp_path, plan=plan)
    finish(tmp_path)
    result = result_of(tmp_path, plan=plan)
    assert result.status == "failed"
    assert "delegate xnnpack" in (result.error or "")


def test_cores_that_are_not_there_fail_the_run(tmp_path: Path) -> None:
    """A pinning that was asked for and cannot be done is a failure, not a run on other cores."""
    plan = doubles.QUICK.model_copy(update={"cores": (4095,)})
    prepare(tmp_path, plan=plan)
    finish(tmp_path)
    assert "cannot pin" in (result_of(tmp_path, plan=plan).error or "")


def test_the_plans_timeout_ends_the_job(tmp_path: Path) -> None:
    """A model that never ends its inference is status timed_out, its process gone."""
    plan = doubles.QUICK.model_copy(update={"timeout_seconds": 2.0})
    prepare(tmp_path, plan=plan, sleep_ms=60_000)
    finish(tmp_path)
    assert result_of(tmp_path, plan=plan).status == "timed_out"
    assert not alive(int(doubles.loads(tmp_path)[-1]))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_killed_runner_continues_without_repeating_a_phase(tmp_path: Path) -> None:
    """kill -9 in the middle of `warm`: its child ends too; the next start keeps the cold starts, one result comes."""
    prepare(tmp_path, sleep_ms=20)
    process = start(tmp_path)
    wait_for(tmp_path / "phase-cold-1.json")
    while len(doubles.loads(tmp_path)) < 3:
        time.sleep(0.01)
    child = int(doubles.loads(tmp_path)[2])
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while alive(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(child), "a child that outlives its supervisor shares the processor with the next measurement"
    colds = [(tmp_path / f"phase-cold-{i}.json").read_bytes() for i in range(2)]
    finish(tmp_path)
    assert [(tmp_path / f"phase-cold-{i}.json").read_bytes() for i in range(2)] == colds
    assert len(doubles.loads(tmp_path)) == 6, "five phases, and the one that was cut off again"
    result = result_of(tmp_path)
    assert (result.status, result.starts) == ("ok", 2)


def test_a_killed_evaluation_continues_after_its_last_chunk(tmp_path: Path) -> None:
    """Chunks of outputs that were saved before the kill are not computed again."""
    plan = doubles.QUICK.model_copy(update={"cold_starts": 0, "memory": False, "min_samples": 1, "warmup_min_runs": 1})
    prepare(tmp_path, plan=plan, count=600, sleep_ms=2)
    process = start(tmp_path)
    wait_for(tmp_path / "chunk-00000.npz")
    process.kill()
    process.wait()
    first = (tmp_path / "chunk-00000.npz").stat().st_mtime_ns
    finish(tmp_path)
    assert (tmp_path / "chunk-00000.npz").stat().st_mtime_ns == first
    assert result_of(tmp_path, plan=plan, count=600).evaluated == 600


def test_a_finished_job_is_not_run_again(tmp_path: Path) -> None:
    """Starting the runner where a result lies does nothing."""
    prepare(tmp_path)
    finish(tmp_path)
    before = (tmp_path / "result.json").read_bytes()
    finish(tmp_path)
    assert (tmp_path / "result.json").read_bytes() == before
    assert len(doubles.loads(tmp_path)) == 5


def test_the_packed_runner_is_the_same_every_time(tmp_path: Path) -> None:
    """Its sha256 is part of a job's key, so equal sources must give equal bytes."""
    runner_bytes.cache_clear()
    first = runner_bytes()
    for source in SOURCES:
        os.utime(source)
    runner_bytes.cache_clear()
    assert runner_bytes() == first


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.name)
def test_the_runner_needs_only_python_3_9_and_the_runtimes(source: Path) -> None:
    """Boards have Python 3.9 and no edgekit: the syntax must parse there, the imports be there."""
    tree = ast.parse(source.read_text(), feature_version=(3, 9))
    allowed = set(sys.stdlib_module_names) | {
        "numpy", "ai_edge_litert", "onnxruntime", "executorch_numpy_runtime", "torch",
    }  # fmt: skip
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            assert name.partition(".")[0] in allowed, f"{source.name} imports {name}"
            if name.partition(".")[0] == "torch":
                assert source.name == "executorch.py"


def test_the_golden_files_are_what_the_runner_reads_and_writes(tmp_path: Path) -> None:
    """Schema version 2 is frozen: the golden job parses, and a result has the golden result's fields."""
    golden = Path(__file__).parents[1] / "golden"
    prepare(tmp_path)
    written = json.loads((tmp_path / "job.json").read_text())
    assert json.loads((golden / "job.v2.json").read_text()).keys() == written.keys()
    finish(tmp_path)
    expected = json.loads((golden / "result.v2.json").read_text())
    got = json.loads((tmp_path / "result.json").read_text())
    assert got.keys() == expected.keys()
    for part in ("runtime", "memory", "before", "after", "outputs"):
        assert got[part].keys() == expected[part].keys(), part
    assert got["cold_starts"][0].keys() == expected["cold_starts"][0].keys()
    parse_result((golden / "result.v2.json").read_bytes(), device="golden", job=JOB, plan=doubles.QUICK, inputs=10)


def test_settled_is_when_the_quartiles_of_two_halves_agree() -> None:
    """Falling durations are not settled, equal ones are; fewer than 20 never are; a slow first one is an outlier."""
    assert not is_settled([100] * 19)
    assert is_settled([100] * 20)
    assert not is_settled(list(range(200, 100, -5)))
    assert not is_settled([500] + [100] * 19)
    assert is_settled([900] * 20 + [100, 101] * 40)  # what is long past is not looked at
    assert not is_settled([110] * 10 + [100] * 10)
    assert quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)


def test_warming_up_is_bounded_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that never settles is warmed up for the plan's time and said not to have settled."""
    clock = Clock(monkeypatch)
    samples, settled = warm_up([lambda: clock.advance(clock.now + 1_000_000)], 4, 0.1)
    # 1, 2, 4, … ms: the sum reaches 100 ms at the seventh (127 ms)
    assert (len(samples), settled) == (7, False)
    assert warm_up([lambda: clock.advance(1_000_000)], 4, 9) == ([1_000_000] * 20, True)


def test_sampling_goes_on_until_both_minima_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough samples too early go on to the minimum time; too few at the minimum time go on to the minimum count."""
    clock = Clock(monkeypatch)
    by_time = sample([lambda: clock.advance(1_000_000)], None, 10, 0.05, 9)
    assert (len(by_time["latency_ns"]), by_time["stopped_by"]) == (50, "minimum reached")
    assert [b["samples"] for b in by_time["blocks"]] == [10] * 5
    by_count = sample([lambda: clock.advance(1_000_000)], None, 10, 0.001, 9)
    assert len(by_count["latency_ns"]) == 10
    cut = sample([lambda: clock.advance(1_000_000_000)], None, 10, 0.001, 3)
    assert (len(cut["latency_ns"]), cut["stopped_by"]) == (3, "max_seconds")


def test_what_comes_before_a_block_is_kept_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait between blocks costs neither samples nor sampling time."""
    clock = Clock(monkeypatch)

    def wait() -> dict[str, int]:
        clock.advance(10**12)
        return {"at": clock.now}

    found = sample([lambda: clock.advance(1_000_000)], None, 10, 0.05, 9, wait)
    assert len(found["latency_ns"]) == 50
    assert set(found["latency_ns"]) == {1_000_000}
    assert [b["at"] // 10**12 for b in found["blocks"]] == [1, 2, 3, 4, 5]


def test_a_quick_call_is_timed_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 100 µs a sample spans that long; its latency is one call's, and inputs are taken in turn."""
    clock = Clock(monkeypatch)
    seen = []

    def call(which: int) -> None:
        seen.append(which)
        clock.advance(2_000)

    found = sample([lambda: call(0), lambda: call(1), lambda: call(2)], 2_000, 10, 0.001, 9)
    assert found["calls_per_sample"] == 50
    assert set(found["latency_ns"]) == {2_000}
    assert seen[:7] == [0, 1, 2, 0, 1, 2, 0]
    assert len(seen) == 50 * len(found["latency_ns"])
    assert calls_per_sample(100_000) == calls_per_sample(None) == 1
    assert calls_per_sample(60_000) == 2
    assert calls_per_sample(0.5) == 1000


def test_quick_models_are_thinned_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """More samples than a result may hold: every k-th is kept and the samples still span the whole time."""
    clock = Clock(monkeypatch)
    found = sample([lambda: clock.advance(100_000)], 100_000, 10, 10, 90)
    assert found["sampled_every"] == 5  # 100,000 samples into 20,000 places
    assert len(found["latency_ns"]) == MAX_SAMPLES
    promised_slow = sample([lambda: clock.advance(1000)], None, 10, 0.03, 9)  # 30,000 into 20,000: halved on the way
    assert (promised_slow["sampled_every"], len(promised_slow["latency_ns"])) == (2, 15_000)
    assert sum(b["samples"] for b in promised_slow["blocks"]) == 15_000


class Clock:
    """A clock that only moves when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        monkeypatch.setattr("edgekit.runtimes.runner.sampling.time.perf_counter_ns", lambda: self.now)

    def advance(self, ns: int) -> None:
        self.now += ns
