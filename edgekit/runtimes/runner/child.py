"""The child process of one phase: pin, run, write the part file, or say why not."""

import os
import signal
import threading
import traceback
from typing import Optional

from .backends import make_backend
from .files import write_json
from .job import read_job
from .phases import PHASES

FAILED = 3
"""Exit status of a phase that raised; the reason is the last lines of stderr."""


def run_phase(directory: str, phase: str, part: str) -> int:
    """Run `phase` of the job in `directory` and write its findings to `part`; FAILED with a traceback otherwise."""
    _end_with_parent()
    try:
        job = read_job(directory)
        _pin(job.plan.cores)
        backend = make_backend(job.runtime, job.backend_file)
        write_json(part, PHASES[phase](job, backend))
    except Exception:
        traceback.print_exc()
        return FAILED
    return 0


def _pin(cores: Optional[list[int]]) -> None:
    """Keep this process (and the threads it will start) on `cores`; raises where that cannot be done."""
    if cores is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise RuntimeError("this system cannot pin a process to cores; leave `cores` out of the plan")
    try:
        os.sched_setaffinity(0, cores)
    except OSError as e:
        raise RuntimeError(f"cannot pin to cores {cores}: {e}; there are {sorted(os.sched_getaffinity(0))}") from e


def _end_with_parent() -> None:
    """Die when the supervisor does: stdin is a pipe it holds open and never writes to."""

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin: its lock must be free when the interpreter ends
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
