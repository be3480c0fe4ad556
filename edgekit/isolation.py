"""Child processes: where models are loaded, converted and run, so that an abort in native code ends a child.

A parent prepares a work folder (its request files), calls `run_child`, and reads the answer files. The child
is `python -m <module> <folder>` in a session of its own; its first act is `enter_child`. It gets a copied
environment without the parent's secrets, a wall-clock limit, and on request an address-space limit. It
ends when its parent ends: by process group when the parent is interrupted, by PDEATHSIG when it is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import ConversionError
from edgekit.resident import Resident

__all__ = [
    "INSTALLER_VARIABLES",
    "Child",
    "ChildExit",
    "child_environment",
    "enter_child",
    "failure_of",
    "peak_rss_bytes",
    "run_child",
    "stderr_tail",
]

STDOUT_NAME = "stdout.txt"
STDERR_NAME = "stderr.txt"
TAIL_LINES = 40
MAX_TAIL_BYTES = 64 * 1024
POLL_SECONDS = 0.05
TERMINATION_GRACE_SECONDS = 0.5
"""Between SIGTERM and SIGKILL; a cancelled child is gone well within two seconds."""

_MEMORY_VARIABLE = "EDGEKIT_CHILD_MEMORY_BYTES"
_PARENT_VARIABLE = "EDGEKIT_CHILD_PARENT"

_PASSED = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "TEMP", "TMP"),
    *("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("XDG_CACHE_HOME", "EDGEKIT_CACHE", "SYSTEMROOT"),
)
INSTALLER_VARIABLES = (
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONFIG_FILE", "PIP_CACHE_DIR"),
    *("PIP_CERT", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
)
"""What pip needs where a child installs an environment of its own. May hold a password: no other child gets them."""
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildExit:
    """How a child ended. `returncode` is negative for a signal, as in `subprocess`."""

    returncode: int
    timed_out: bool
    wall_seconds: float
    peak_rss_bytes: int
    stderr_tail: str
    out_of_memory: bool = False
    """Ended by its parent for holding more than `resident_bytes`."""

    @property
    def signal(self) -> int | None:
        """The signal that ended it, or None."""
        return -self.returncode if self.returncode < 0 else None


def child_environment(*, threads: int = 1, memory_bytes: int | None = None, also: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a child: an allow-list of ours, thread pools limited, no telemetry, no colours."""
    environment = {name: os.environ[name] for name in (*_PASSED, *also) if name in os.environ}
    environment.update({name: str(threads) for name in _THREADS})
    environment.update(
        PYTHONUNBUFFERED="1",
        PYTHONFAULTHANDLER="1",
        TF_CPP_MIN_LOG_LEVEL="2",
        ORT_DISABLE_TELEMETRY="1",
        HF_HUB_OFFLINE="1",
        NO_COLOR="1",
    )
    environment[_PARENT_VARIABLE] = str(os.getpid())
    if memory_bytes is not None:
        environment[_MEMORY_VARIABLE] = str(memory_bytes)
    return environment


def enter_child() -> None:
    """Take the limits the parent set; a child module calls this before it imports anything heavy."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = os.environ.get(_MEMORY_VARIABLE)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    if sys.platform == "linux":
        _die_with_parent()


def _die_with_parent() -> None:
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    expected = os.environ.get(_PARENT_VARIABLE)
    if expected is not None and os.getppid() != int(expected):  # it died before the call above
        os._exit(1)


class Child:
    """`python -m module folder`, running; its output is in `stdout.txt` and `stderr.txt` in `folder`.

    The thread that makes it must live as long as it does: on Linux the child is killed when that thread ends.
    """

    def __init__(
        self,
        module: str,
        folder: Path,
        *,
        threads: int = 1,
        memory_bytes: int | None = None,
        also: Sequence[str] = (),
    ) -> None:
        """`also` names variables of this process's environment that it gets besides the usual ones."""
        self._folder = folder
        with (folder / STDOUT_NAME).open("wb") as out, (folder / STDERR_NAME).open("wb") as err:
            self._process = subprocess.Popen(
                # -P: the work folder or the current one must not shadow a toolchain's package
                [sys.executable, "-P", "-m", module, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=child_environment(threads=threads, memory_bytes=memory_bytes, also=also),
                start_new_session=True,
            )

    def end(self) -> None:
        """End it and all it started, if it still runs."""
        if _reap(self._process) is None:
            _end_group(self._process)

    def wait(
        self,
        *,
        timeout_seconds: float,
        resident_bytes: int | None = None,
        cancelled: threading.Event | None = None,
        on_poll: Callable[[], None] | None = None,
    ) -> ChildExit:
        """How it ended; see `run_child`. The time limit counts from this call."""
        started = time.monotonic()
        timed_out = out_of_memory = False
        resident = Resident(self._process.pid, resident_bytes)
        try:
            while (ended := _reap(self._process)) is None:
                timed_out = time.monotonic() - started > timeout_seconds
                out_of_memory = resident.is_over()
                if timed_out or out_of_memory or (cancelled is not None and cancelled.is_set()):
                    ended = _end_group(self._process)
                    break
                if on_poll is not None:
                    on_poll()
                time.sleep(POLL_SECONDS)
        except BaseException:
            _end_group(self._process)
            raise
        _kill_group(self._process.pid, signal.SIGKILL)  # grandchildren it may have left behind
        returncode, peak = ended
        return ChildExit(
            returncode=returncode,
            timed_out=timed_out,
            wall_seconds=time.monotonic() - started,
            peak_rss_bytes=max(peak, resident.most_bytes),
            stderr_tail=stderr_tail(self._folder),
            out_of_memory=out_of_memory,
        )


def run_child(
    module: str,
    folder: Path,
    *,
    timeout_seconds: float,
    memory_bytes: int | None = None,
    resident_bytes: int | None = None,
    threads: int = 1,
    cancelled: threading.Event | None = None,
    on_poll: Callable[[], None] | None = None,
) -> ChildExit:
    """How `python -m module folder` ended; its output is in `stdout.txt` and `stderr.txt` in `folder`.

    `memory_bytes` limits its address space, `resident_bytes` what it and its own children hold in memory (looked at
    four times a second). `cancelled` lets another thread end the child; `on_poll` is called about every 50 ms. A
    KeyboardInterrupt (or any other exception) here ends the child's whole process group before it goes on up.
    """
    child = Child(module, folder, threads=threads, memory_bytes=memory_bytes)
    return child.wait(
        timeout_seconds=timeout_seconds, resident_bytes=resident_bytes, cancelled=cancelled, on_poll=on_poll
    )


def _reap(process: subprocess.Popen[bytes], *, block: bool = False) -> tuple[int, int] | None:
    """(returncode, peak RSS in bytes) once the child has ended, else None."""
    if process.returncode is not None:
        return process.returncode, 0
    pid, status, usage = os.wait4(process.pid, 0 if block else os.WNOHANG)
    if pid == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, _bytes_of(usage.ru_maxrss)


def _bytes_of(max_rss: int) -> int:
    return max_rss * (1 if sys.platform == "darwin" else 1024)  # KiB on Linux, bytes on macOS: getrusage(2)


def peak_rss_bytes() -> int:
    """The most memory this process, or one that it ran to its end, has held so far."""
    import resource

    return _bytes_of(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def _kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # PermissionError: macOS, for a group of zombies
        return


def _end_group(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """End the child and everything it started: SIGTERM, half a second, SIGKILL."""
    _kill_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + TERMINATION_GRACE_SECONDS
    while (ended := _reap(process)) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    _kill_group(process.pid, signal.SIGKILL)
    if ended is None:
        ended = _reap(process, block=True)
    assert ended is not None  # noqa: S101 - a blocking wait4 always reports
    return ended


def stderr_tail(folder: Path) -> str:
    """The last 40 lines the child of a work folder has written to its stderr so far."""
    with (folder / STDERR_NAME).open("rb") as f:
        size = f.seek(0, os.SEEK_END)
        f.seek(max(0, size - MAX_TAIL_BYTES))
        text = f.read().decode("utf-8", errors="replace")
    return "\n".join(text.splitlines()[-TAIL_LINES:])


def failure_of(
    ended: ChildExit, *, backend: str, stage: str, timeout_seconds: float, memory_bytes: int | None = None
) -> ConversionError | None:
    """Why the child did not finish, as a ConversionError that carries its stderr; None when it exited with 0."""
    hint: str | None = None
    if ended.out_of_memory:
        limit = f" of the {memory_bytes / 1e6:.0f} MB allowed" if memory_bytes is not None else ""
        message = f"was ended for holding {ended.peak_rss_bytes / 1e6:.0f} MB{limit}"
        hint = "allow more (--memory), or convert a smaller model or with fewer calibration samples"
    elif ended.timed_out:
        message = f"did not finish within {timeout_seconds:g} s and was ended"
        hint = "a larger model needs a longer limit (--timeout)"
    elif ended.signal == signal.SIGKILL:
        message = f"was killed; peak memory {ended.peak_rss_bytes / 1e6:.0f} MB"
        hint = "most often the system ran out of memory: free some, or convert fewer models at a time (jobs=1)"
    elif ended.signal is not None:
        message = f"died with {_signal_name(ended.signal)} in native code"
        hint = "a bug of the toolchain; stderr below shows where. Another target format is not affected"
    elif ended.returncode != 0:
        message = f"ended with exit status {ended.returncode}{_last_line(ended.stderr_tail)}"
        limited = memory_bytes is not None and "MemoryError" in ended.stderr_tail
        hint = f"it may use {memory_bytes} bytes of address space; allow more" if limited else None
    else:
        return None
    return ConversionError(message, backend=backend, stage=stage, stderr=ended.stderr_tail, hint=hint)


def _last_line(tail: str) -> str:
    lines = [line for line in tail.splitlines() if line.strip()]
    return f": {lines[-1].strip()[:300]}" if lines else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
