"""The smallest example, whole: scikit-learn's digits to int8 in three formats, measured here."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.report.write import read_report

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]

RECIPE = Path(__file__).parents[2] / "examples" / "vision" / "recipe.yaml"


def test_the_vision_example_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every artifact is int8, right on most digits, and passes the recipe's gates; the curves are kept."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    argv = ["run", str(RECIPE), "--data", "digits", "-w", str(tmp_path / "runs"), "--set", "plan.min_seconds=0.1"]
    argv += ["--set", "plan.cold_starts=1", "--set", "plan.min_samples=50", "--set", "plan.memory=false"]
    done = subprocess.run([sys.executable, "-m", "edgekit", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    report = read_report(tmp_path / "runs" / "latest")
    students = [row for row in report.rows if row.scheme == "static_w8a8"]
    assert len(students) == 3
    for row in students:
        assert row.accuracy is not None
        # The teacher is at 97 % and more; int8 may cost 3 points and 359 digits decide no finer than 2.
        assert row.accuracy.value > 0.9
    assert list((tmp_path / "runs" / "stages").glob("teacher-*/logs/events.out.tfevents*"))
