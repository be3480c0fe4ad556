"""The main job, whole: from a recipe to a report, through kills, changes and second runs."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.report.model import Report, Verdict
from edgekit.report.write import read_report
from edgekit.store import ResultStore

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]

DIGITS = Path(__file__).parents[1] / "support" / "digits"


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of these tests' own, so that an edgekit that measures on this host meanwhile does not lock them out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def edgekit(*argv: str, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *argv], cwd=folder, capture_output=True, text=True, check=False
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def attempts(workspace: Path, report: Report) -> dict[str, int]:
    """Job key to the number of recorded attempts."""
    with ResultStore(workspace) as store:
        return {row.run.job_key: len(store.attempts(row.run.job_key)) for row in report.rows if row.run}


def stable(report: Report) -> list[tuple[Any, ...]]:
    """What must not depend on how often the run was interrupted."""
    return [
        (r.id, r.artifact, r.device, r.size_bytes, r.status, r.accuracy, r.agreement, r.sqnr_db, r.non_finite)
        for r in report.rows
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the digits recipe that was run once."""
    folder = tmp_path_factory.mktemp("pipeline")
    shutil.copytree(DIGITS, folder, dirs_exist_ok=True)
    edgekit("run", "recipe.yaml", "--quiet", folder=folder)
    return folder


def the_report(folder: Path) -> Report:
    return read_report(folder / "runs" / "latest" / "report.json")


def test_the_report_has_every_row(finished: Path) -> None:
    """Six students and the teacher on the device, each measured whole."""
    report = the_report(finished)
    assert report.verdict is Verdict.PASS, report.verdict_reasons
    assert len(report.rows) == 7
    assert [row.is_baseline for row in report.rows].count(True) == 1
    for row in report.rows:
        assert row.status == "ok", (row.id, row.error)
        assert row.latency is not None
        assert row.latency.samples >= 50
        assert row.run is not None
        assert len(row.run.cold_starts) == 2
        assert row.cold_load_ns is not None
        assert row.peak_rss_bytes is not None
        assert row.accuracy is not None
        assert row.accuracy.total == row.run.evaluated == 360
        assert row.agreement is not None


def test_fp32_artifacts_answer_as_pytorch_does(finished: Path) -> None:
    """The device's fp32 outputs are PyTorch's up to rounding: 60 dB is a relative error of one in a thousand."""
    for row in the_report(finished).rows:
        if row.scheme == "fp32":
            assert row.sqnr_exact or (row.sqnr_db is not None and row.sqnr_db > 60), row.id


def test_the_baseline_agrees_with_the_teacher(finished: Path) -> None:
    """The teacher, converted and measured, has the PyTorch teacher's accuracy and all of its answers."""
    report = the_report(finished)
    (row,) = [row for row in report.rows if row.is_baseline]
    assert row.agreement is not None
    assert row.agreement.value == 1.0
    assert report.baseline is not None
    assert row.accuracy == report.baseline.accuracy


def test_int8_artifacts_are_int8(finished: Path) -> None:
    """The passports, read from the files, show int8 compute and nothing left in float; TFLite takes int8."""
    passports = [p for p in the_report(finished).artifacts if p.scheme == "static_w8a8"]
    assert len(passports) == 3
    for passport in passports:
        assert passport.unquantized_ops == (), passport.name
        assert any(op.dtype in ("int8", "uint8") for op in passport.ops), passport.name
        assert not any(op.dtype == "float32" for op in passport.ops), passport.name
        if passport.format == "tflite":
            assert {t.dtype for t in (*passport.inputs, *passport.outputs)} == {"int8"}


def test_lineage_tells_what_each_step_did(finished: Path) -> None:
    """Pruning shows fewer MACs, distillation shows accuracy, both with before and after."""
    teacher, prune, distill, *quantized = the_report(finished).lineage
    assert (teacher.step, prune.step, distill.step) == ("teacher", "prune", "distill")
    assert len(quantized) == 3
    assert all(s.before and s.after and (s.after.size_bytes or 0) < (s.before.size_bytes or 0) for s in quantized)
    assert prune.before is not None
    assert prune.after is not None
    assert prune.before.macs is not None
    assert prune.after.macs is not None
    assert prune.after.macs <= 0.55 * prune.before.macs
    assert distill.after is not None
    assert distill.after.accuracy is not None


def test_a_second_run_does_nothing(finished: Path) -> None:
    """Nothing is trained, converted or measured again, and the report stays as it was."""
    before = the_report(finished)
    counted = attempts(finished / "runs", before)
    written = (finished / "runs" / "latest" / "report.html").stat().st_mtime_ns
    done = edgekit("run", "recipe.yaml", folder=finished)
    assert "Nothing to do" in done.stdout
    assert the_report(finished) == before
    assert attempts(finished / "runs", before) == counted
    assert (finished / "runs" / "latest" / "report.html").stat().st_mtime_ns == written


def test_a_changed_gate_measures_nothing_again(finished: Path) -> None:
    """Only the decision changes: same runs, other verdict, exit status 1."""
    before = the_report(finished)
    counted = attempts(finished / "runs", before)
    done = edgekit("run", "recipe.yaml", "--set", "gates.max_size_bytes=100", "-q", folder=finished, check=False)
    assert done.returncode == 1, done.stderr
    after = the_report(finished)
    assert after.verdict is Verdict.FAIL
    assert [row.run for row in after.rows] == [row.run for row in before.rows]
    assert attempts(finished / "runs", after) == counted
    edgekit("run", "recipe.yaml", "-q", folder=finished)


def test_fresh_measures_again_and_keeps_both(finished: Path) -> None:
    """`--fresh` adds an attempt to each job and publishes the new one."""
    before = the_report(finished)
    edgekit("run", "recipe.yaml", "--fresh", "-q", folder=finished)
    after = the_report(finished)
    assert set(attempts(finished / "runs", after).values()) == {2}
    assert all(a.run != b.run for a, b in zip(after.rows, before.rows, strict=True))
    assert stable(after) == stable(before)


def test_json_is_the_report(finished: Path) -> None:
    """`--json` prints exactly what report.json holds."""
    done = edgekit("run", "recipe.yaml", "--json", "-q", folder=finished)
    assert Report.model_validate(json.loads(done.stdout)) == the_report(finished)


def test_kills_at_any_moment_resume_to_the_same_table(finished: Path, tmp_path: Path) -> None:
    """SIGKILL, again and again: the run ends with the very table of one that was left alone, nothing doubled."""
    shutil.copytree(DIGITS, tmp_path, dirs_exist_ok=True)
    rng = random.Random(0)
    kills = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgekit", "run", "recipe.yaml", "-q"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=rng.uniform(6, 18) if kills < 6 else None)
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 2
    assert process.returncode == 0
    resumed = the_report(tmp_path)
    assert stable(resumed) == stable(the_report(finished))
    assert [a.sha256 for a in resumed.artifacts] == [a.sha256 for a in the_report(finished).artifacts]
    assert set(attempts(tmp_path / "runs", resumed).values()) == {1}


def test_ctrl_c_leaves_a_resumable_run(tmp_path: Path) -> None:
    """SIGINT ends with status 130 and one sentence; the same command then finishes."""
    shutil.copytree(DIGITS, tmp_path, dirs_exist_ok=True)
    argv = [sys.executable, "-m", "edgekit", "run", "recipe.yaml", "--set", "convert.to=[onnx]", "-q"]
    process = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("runs/stages/1-prune-*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr
    assert subprocess.run(argv, cwd=tmp_path, check=False).returncode == 0
