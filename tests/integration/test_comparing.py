"""`edgekit compare` of two model files on this host, from the command line: every verdict with its exit status."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.onnx_stack import onnx_stack

from edgekit.store import ResultStore

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model, one of four times its cost, one of another batch, one that is no model."""
    folder = tmp_path_factory.mktemp("models")
    onnx_stack(folder / "one.onnx", layers=2, width=512)
    onnx_stack(folder / "four.onnx", layers=8, width=512)
    onnx_stack(folder / "batch.onnx", layers=2, width=512, batch=2)
    shutil.copy(folder / "one.onnx", folder / "same.onnx")
    (folder / "text.onnx").write_text("no model")
    return folder


def compare(folder: Path, *argv: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "edgekit", "compare", *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def test_four_times_the_work_is_told_from_both_sides(models: Path) -> None:
    """B of four times A's cost fails, exit 1; the other way about it passes, exit 0; every run is stored."""
    done = compare(models, "one.onnx", "four.onnx", "--device", "local", "--json", "-w", "slower")
    told = json.loads(done.stdout)
    assert (done.returncode, told.get("verdict")) == (1, "FAIL"), done.stdout[:2000] + done.stderr
    # 4 times the products; what each call costs besides lowers the ratio, and nothing raises it but load
    assert 1.03 < told["ratio_low"] < told["ratio"] < 8
    with ResultStore(models / "slower") as store:
        for which in ("before", "after"):
            keys = {turn[which]["job_key"] for turn in told["rounds"]}
            (key,) = keys
            assert len(store.attempts(key)) == len(told["rounds"])
    orders = [turn["turned"] for turn in told["rounds"]]
    assert all(x != y for x, y in zip(orders[::2], orders[1::2], strict=False)), "A B, then B A"
    done = compare(models, "four.onnx", "one.onnx", "-w", "quicker")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: x 0." in done.stdout


def test_the_same_artifact_does_not_fail(models: Path) -> None:
    """A against a copy of A, 10 % allowed: PASS, or NOISY on a busy machine, and never FAIL (2.5 % at the most)."""
    done = compare(models, "one.onnx", "same.onnx", "--max-regress", "10%", "--budget", "40", "-w", "same")
    assert done.returncode in (0, 2), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["one.onnx", "batch.onnx"], 3, "inputs in one inference: 1 and 2"),
        (["one.onnx", "none.onnx"], 12, "none.onnx: no artifact is there"),
        (["one.onnx", "text.onnx"], 16, "text.onnx"),
        (["one.onnx", "same.onnx", "--budget", "0"], 12, "--budget"),
        (["one.onnx", "same.onnx", "--delegate", "gpu"], 12, "delegate"),
        (["one.onnx", "same.onnx", "--device", "lcoal"], 12, "lcoal"),
        (["one.onnx", "same.onnx", "--max-regress", "nan"], 12, "between 0 and 100%"),
        (["a-run", "another-run", "--budget", "9"], 12, "--budget measures artifacts"),
        (["one.onnx", "same.onnx", "--delegate", "xnnpack", "-w", "refused"], 3, "A does not run: failed"),
        (["one.onnx", "four.onnx", "--budget", "1", "-w", "hasty"], 2, "4 are needed"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(models: Path, argv: list[str], status: int, said: str) -> None:
    """No traceback; INCOMPARABLE is 3, NOISY 2, and what is wrong in the asking 10 more than elsewhere."""
    done = compare(models, *argv)
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_it_and_the_next_is_not_in_its_way(models: Path) -> None:
    """Interrupted in a block: 130, and the same command right after goes through."""
    command = [sys.executable, "-m", "edgekit", "compare", "one.onnx", "four.onnx", "-w", "stopped"]
    # a test run in the background of a shell has SIGINT ignored, and hands that down
    process = subprocess.Popen(
        command,
        cwd=models,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not (models / "stopped" / "inputs").is_dir() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said.decode()
    assert b"Traceback" not in said
    done = compare(models, "one.onnx", "four.onnx", "-w", "stopped")
    assert done.returncode == 1, done.stdout + done.stderr
