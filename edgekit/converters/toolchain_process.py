"""A program the converting child starts: in its process group, so that it ends with it, and under its limits.

Address space limits are inherited (setrlimit(2)), the wall clock is the converting child's: its parent ends the group.
"""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.errors import HostError
from edgekit.isolation import STDERR_NAME, STDOUT_NAME, ChildExit, failure_of, stderr_tail

__all__ = ["run_program"]


def run_program(argv: Sequence[str], folder: Path, *, environment: Mapping[str, str], backend: str, stage: str) -> None:
    """Run it to its end, with its output in `stdout.txt` and `stderr.txt` in `folder`.

    Raises ConversionError, with the last lines of stderr, when it did not exit with 0.
    """
    started = time.monotonic()
    with (folder / STDOUT_NAME).open("wb") as out, (folder / STDERR_NAME).open("wb") as err:
        try:
            process = subprocess.Popen(
                list(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=dict(environment), cwd=folder
            )
        except OSError as e:
            raise HostError(f"{argv[0]}: cannot be started: {e.strerror}") from e
    try:
        returncode = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    ended = ChildExit(
        returncode=returncode,
        timed_out=False,
        wall_seconds=time.monotonic() - started,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        stderr_tail=stderr_tail(folder),
    )
    failure = failure_of(ended, backend=backend, stage=stage, timeout_seconds=0)
    if failure is not None:
        raise failure
