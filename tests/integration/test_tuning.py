"""The ladder and the proof over real converters and a real runtime, on real digits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torchao")

import edgekit
from edgekit.artifact import Artifact, StepVerdict
from edgekit.report.write import read_report
from edgekit.tuning.values import RungStatus, TuneResult

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]

DIGITS = Path(__file__).parents[1] / "support" / "digits"

RECIPE = """
name: digits
workload: workload.py:workload
teacher: {train: {epochs: 8, batch_size: 64, learning_rate: 0.02, threads: 1}}
student:
  - prune: {macs_ratio: 0.5, round_to: 4}
  - distill: {epochs: 4, batch_size: 64, learning_rate: 0.02, threads: 1}
  - sparsify: {}
    keep_if_paid: true
  - qat: {epochs: 1, batch_size: 64, threads: 1, backends: [onnx]}
proof: {format: onnx, max_accuracy_drop_pp: 50, rounds: 1}
convert: {to: [onnx], schemes: [fp32, static_w8a8], calibration: 100, verification: 50}
plan: {cold_starts: 1, min_samples: 50, min_seconds: 0.1, warmup_max_seconds: 0.5}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and its workload; the teacher and the students are learned by the first test that needs them."""
    made = tmp_path_factory.mktemp("tuning")
    (made / "workload.py").write_text((DIGITS / "workload.py").read_text())
    (made / "recipe.yaml").write_text(RECIPE)
    return made


def command(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekit", *argv], cwd=folder, capture_output=True, text=True, check=False
    )


def test_each_step_is_judged_where_it_ran(folder: Path) -> None:
    """Prune and distill as one, sparsify alone and dropped where zeros bring nothing, qat by its int8 files."""
    done = command(folder, "run", "recipe.yaml", "-q")
    assert done.returncode == 0, done.stderr
    report = read_report(folder / "runs" / "latest" / "report.json")
    steps = {step.step: step for step in report.lineage}
    assert steps["prune"].proof == steps["distill"].proof
    assert steps["prune"].proof is not None
    assert steps["prune"].proof.judged_with == ("prune", "distill")
    for name in ("prune", "distill", "sparsify", "qat"):
        step = steps[name]
        assert step.proof is not None
        for effect in (step.before, step.after):
            assert effect is not None
            assert effect.file_bytes and effect.packed_bytes and effect.latency_min_ns and effect.latency_p50_ns  # noqa: PT018
            assert effect.latency_min_ns <= effect.latency_p50_ns
    sparse = steps["sparsify"]
    assert sparse.before is not None and sparse.after is not None and sparse.proof is not None  # noqa: PT018
    assert (sparse.after.nonzero_parameters or 0) < (sparse.before.nonzero_parameters or 0)
    assert sparse.proof.dropped == (sparse.proof.verdict is StepVerdict.NOT_PAID)
    before, after = steps["qat"].before, steps["qat"].after
    assert before is not None and after is not None  # noqa: PT018
    assert str(steps["qat"].proof.scheme) == "static_w8a8"  # type: ignore[union-attr]
    assert abs((before.file_bytes or 0) - (after.file_bytes or 0)) < 0.1 * (before.file_bytes or 1)
    int8 = next(passport for passport in report.artifacts if passport.scheme == "static_w8a8")
    assert int8.calibration is not None
    assert int8.calibration.rule == "trained"
    assert any(step.proof is not None for step in int8.lineage)
    again = command(folder, "run", "recipe.yaml", "-q")
    assert "Nothing to do" in again.stdout


def test_a_killed_climb_is_gone_on_with(folder: Path) -> None:
    """SIGKILL after the first rung: the second call keeps it, ends, and what passed is an int8 file that works."""
    argv = ["tune", "recipe.yaml", "--to", "onnx", "--max-drop", "90", "--rungs", "minmax,ranges,qat", "--device",
            "none", "--calibration", "100", "--epochs", "1"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit", *argv], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    stages = folder / "runs" / "stages"
    deadline = time.monotonic() + 300
    while not [p for p in stages.glob("tune-onnx-minmax-*/stage.json")] and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = command(folder, *argv, "--json", "-o", "tuned")
    assert done.returncode in (0, 1), done.stderr
    result = TuneResult.model_validate_json(done.stdout)
    first = result.rungs[0]
    assert first.was_there
    assert first.on_search is not None
    assert (done.returncode == 0) == (result.passed is not None)
    assert json.loads((folder / "tuned" / "tune.json").read_text())["rungs"]
    assert "Recovery ladder" in (folder / "tuned" / "tune.html").read_text()
    made = [rung for rung in result.rungs if rung.artifact is not None]
    for rung in made:
        assert Artifact.open(folder / str(rung.artifact)).passport.scheme == "static_w8a8"
    if result.passed is not None:
        assert result.output is not None
        assert (result.rungs[[r.name for r in result.rungs].index(result.passed)]).status is RungStatus.PASSED


def test_an_impossible_gate_is_the_callers_mistake(folder: Path) -> None:
    done = command(folder, "tune", "recipe.yaml", "--to", "onnx", "--max-drop", "0.01", "--device", "none")
    assert done.returncode == 2
    assert "cannot be shown" in done.stderr


@pytest.mark.parametrize("rung", ["bias-correction", "keep-float", "int16-activations", "distill", "qat"])
def test_every_rung_makes_a_file(folder: Path, rung: str) -> None:
    """Alone, of the pruned student: a file that opens, judged on data nothing was made with."""
    options = edgekit.TuneOptions(
        backend="onnx", max_drop=60, rungs=(rung,), device=None, calibration=100, epochs=1, workspace=folder / "runs"
    )
    (made,) = edgekit.tune(folder / "recipe.yaml", options=options).rungs
    assert made.status in (RungStatus.PASSED, RungStatus.MISSED, RungStatus.REFUTED), made.reason
    assert made.on_search is not None
    assert made.on_search.value.value > 0.3
    assert made.artifact is not None
    passport = Artifact.open(made.artifact).passport
    assert passport.calibration is not None
    assert (passport.calibration.rule == "trained") == (rung == "qat")
    assert passport.scheme == ("static_w8a16" if rung == "int16-activations" else "static_w8a8")
