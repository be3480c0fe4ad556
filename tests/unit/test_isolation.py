"""Child processes: how they end, what they leave, what they see of the parent."""

from __future__ import annotations

import json
import os
import signal
import textwrap
import threading
import time
from pathlib import Path

import pytest

from edgekit.isolation import INSTALLER_VARIABLES, ChildExit, child_environment, failure_of, run_child

LIMIT_SECONDS = 60


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a child module and get (its name, its work folder)."""
    code, work = tmp_path / "code", tmp_path / "work"
    code.mkdir()
    work.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(code))

    def write(body: str) -> tuple[str, Path]:
        (code / "a_child.py").write_text(textwrap.dedent(body))
        return "a_child", work

    return write


def error_of(ended: ChildExit):
    return failure_of(ended, backend="onnx", stage="fp32 convert", timeout_seconds=LIMIT_SECONDS)


def is_running(pid: int) -> bool:
    """Whether the process runs; a zombie (killed, its parent not yet looking) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    for _ in range(200):
        if not is_running(pid):
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still running")


def test_a_child_that_ends_well_is_no_failure(child) -> None:
    """Exit 0: no error; what it wrote and how much memory it took are known."""
    module, work = child("import sys, pathlib; (pathlib.Path(sys.argv[1]) / 'answer').write_text('42'); print('said')")
    ended = run_child(module, work, timeout_seconds=LIMIT_SECONDS)
    assert error_of(ended) is None
    assert (work / "answer").read_text() == "42"
    assert (work / "stdout.txt").read_text() == "said\n"
    assert ended.peak_rss_bytes > 1_000_000  # an interpreter holds more than a megabyte: the unit is bytes


def test_an_abort_in_native_code_is_an_error_with_the_childs_last_words(child) -> None:
    """A signal ends the child only, and the error names it and carries stderr."""
    module, work = child("import os, sys; print('about to abort', file=sys.stderr, flush=True); os.abort()")
    ended = run_child(module, work, timeout_seconds=LIMIT_SECONDS)
    assert ended.signal == signal.SIGABRT
    error = error_of(ended)
    assert error is not None
    assert "SIGABRT" in error.message
    assert "about to abort" in error.stderr


def test_a_killed_child_is_told_as_out_of_memory(child) -> None:
    """SIGKILL from outside is what the kernel does when memory runs out; the hint says so."""
    module, work = child("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    error = error_of(run_child(module, work, timeout_seconds=LIMIT_SECONDS))
    assert error is not None
    assert "memory" in (error.hint or "")


def test_an_exception_ends_with_its_last_line_in_the_message(child) -> None:
    """A Python error in the child is told by its own words, not by a number alone."""
    module, work = child("raise ValueError('the seventh tensor')")
    error = error_of(run_child(module, work, timeout_seconds=LIMIT_SECONDS))
    assert error is not None
    assert "ValueError: the seventh tensor" in error.message


def test_a_hang_ends_at_the_limit_with_all_it_started(child) -> None:
    """The wall-clock limit ends the child and its own children."""
    module, work = child(
        """
        import pathlib, subprocess, sys, time
        started = subprocess.Popen(["sleep", "600"])
        (pathlib.Path(sys.argv[1]) / "pid").write_text(str(started.pid))
        time.sleep(600)
        """
    )
    ended = run_child(module, work, timeout_seconds=2)
    assert ended.timed_out
    error = error_of(ended)
    assert error is not None
    assert "did not finish" in error.message
    wait_until_gone(int((work / "pid").read_text()))


def test_ctrl_c_ends_a_child_that_ignores_sigterm(child) -> None:
    """An interrupt in the parent goes on up, and the child is gone even when it ignores SIGTERM."""
    module, work = child(
        """
        import os, pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (pathlib.Path(sys.argv[1]) / "pid").write_text(str(os.getpid()))
        time.sleep(600)
        """
    )

    def interrupt() -> None:
        if (work / "pid").exists() and (work / "pid").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child(module, work, timeout_seconds=LIMIT_SECONDS, on_poll=interrupt)
    wait_until_gone(int((work / "pid").read_text()))


def test_another_thread_can_cancel_a_child(child) -> None:
    """`cancelled` ends the child; it is not told as a time-out."""
    module, work = child("import time; time.sleep(600)")
    cancelled = threading.Event()
    cancelled.set()
    ended = run_child(module, work, timeout_seconds=LIMIT_SECONDS, cancelled=cancelled)
    assert not ended.timed_out
    assert ended.signal is not None


def test_the_memory_limit_holds(child) -> None:
    """A child with an address-space limit cannot take more; the error names the limit."""
    module, work = child("from edgekit.isolation import enter_child; enter_child(); b = bytearray(8 * 1024**3)")
    limit = 2 * 1024**3
    ended = run_child(module, work, timeout_seconds=LIMIT_SECONDS, memory_bytes=limit)
    error = failure_of(ended, backend="onnx", stage="x", timeout_seconds=LIMIT_SECONDS, memory_bytes=limit)
    assert error is not None
    assert str(limit) in (error.hint or "")


def test_a_child_that_holds_too_much_is_ended(child) -> None:
    """The limit is on what a child and its own children hold in memory; the error says how much and what to raise."""
    body = """
        import subprocess, sys, time
        hold = "import time; held = bytearray(b'x') * 300_000_000; time.sleep(60)"
        subprocess.run([sys.executable, "-c", hold])
    """
    module, work = child(body)
    ended = run_child(module, work, timeout_seconds=LIMIT_SECONDS, resident_bytes=200_000_000)
    assert ended.out_of_memory
    assert ended.peak_rss_bytes > 200_000_000
    error = failure_of(ended, backend="tflite", stage="x", timeout_seconds=60, memory_bytes=200_000_000)
    assert error is not None
    assert "of the 200 MB allowed" in str(error)
    assert "--memory" in (error.hint or "")


def test_a_child_dies_with_its_parent(child, tmp_path: Path) -> None:
    """When the parent is killed, the child that called enter_child does not go on alone."""
    module, work = child(
        """
        import os, pathlib, sys, time
        from edgekit.isolation import enter_child, run_child
        if len(sys.argv) > 1 and pathlib.Path(sys.argv[1]).name == "inner":
            enter_child()
            (pathlib.Path(sys.argv[1]) / "pid").write_text(str(os.getpid()))
            time.sleep(600)
        else:
            inner = pathlib.Path(sys.argv[1]) / "inner"
            inner.mkdir()
            def die():
                if (inner / "pid").exists() and (inner / "pid").read_text():
                    os.kill(os.getpid(), 9)
            run_child("a_child", inner, timeout_seconds=60, on_poll=die)
        """
    )
    ended = run_child(module, work, timeout_seconds=LIMIT_SECONDS)
    assert ended.signal == signal.SIGKILL
    wait_until_gone(int((work / "inner" / "pid").read_text()))


def test_secrets_do_not_reach_a_child_and_threads_are_limited(child, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is an allow-list: a token of the parent is not in it, thread pools are bounded."""
    monkeypatch.setenv("WANDB_API_KEY", "canary")
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:canary@index")
    module, work = child(
        "import json, os, pathlib, sys; (pathlib.Path(sys.argv[1]) / 'env').write_text(json.dumps(dict(os.environ)))"
    )
    run_child(module, work, timeout_seconds=LIMIT_SECONDS, threads=1)
    seen = json.loads((work / "env").read_text())
    assert not any("canary" in value for value in seen.values())
    assert "canary" in child_environment(also=INSTALLER_VARIABLES)["PIP_INDEX_URL"]  # for one that installs
    assert seen["OMP_NUM_THREADS"] == "1"
    assert child_environment(threads=3)["OMP_NUM_THREADS"] == "3"
    assert seen["PATH"] == os.environ["PATH"]
