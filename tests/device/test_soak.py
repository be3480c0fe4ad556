"""The soak in its short form: real devices, faults and kills; and a harness that forgets is caught by it."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.benchmarks.devices.board import BoardDevice

pytestmark = [pytest.mark.needs_root, pytest.mark.board, pytest.mark.slow]

SOAK = Path(__file__).parents[2] / "scripts" / "soak.py"


def soak(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SOAK), "--no-report", "--plain-jobs", "0", *options],
        capture_output=True,
        text=True,
        timeout=850,
    )


def test_nothing_is_lost_or_doubled(board: BoardDevice, sshd: object) -> None:
    """100 jobs, 60 faults, 5 kills of the harness: every result there, once and true; nothing left behind."""
    done = soak("--jobs", "100", "--faults", "60", "--kills", "5")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "| harness killed | 0 |" not in done.stdout


def test_a_harness_that_forgets_its_attempts_is_caught(board: BoardDevice, sshd: object) -> None:
    """With a store that knows of no pending attempt, a kill leaves one that is never recorded: the soak fails."""
    done = soak("--jobs", "12", "--faults", "0", "--kills", "6", "--sabotage", "forgetful", "--boards", "1")
    assert done.returncode == 1, f"{done.stdout}\n{done.stderr}"
    assert "not as promised: " in done.stdout
    assert "unrecorded" in done.stdout.rpartition("not as promised: ")[2]
