"""What a command costs: wall time, and the most memory its processes held, each and all together."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Cost", "run_measured"]

POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One run of one command."""

    seconds: float
    largest_rss_bytes: int
    """Of the process that held most, at its peak (VmHWM)."""
    tree_pss_bytes: int
    """Of all its processes together at one time, shared pages counted once (PSS), as polled ten times a second."""

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def run_measured(argv: Sequence[str], *, timeout: float = 1800) -> Cost:
    """Run it with one thread for each pool; raises RuntimeError with its last lines when it fails."""
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    os.set_blocking(process.stdout.fileno(), False)  # type: ignore[union-attr]
    output, largest, together = b"", 0, 0
    while process.poll() is None:
        output = (output + (process.stdout.read() or b""))[-8000:]  # type: ignore[union-attr]
        sizes = [_memory(pid) for pid in _tree(process.pid)]
        largest = max([largest, *(peak for peak, _ in sizes)])
        together = max(together, sum(pss for _, pss in sizes))
        if time.monotonic() - began > timeout:
            process.kill()
            raise RuntimeError(f"{argv}: not done in {timeout} s")
        time.sleep(POLL_SECONDS)
    seconds = time.monotonic() - began
    output += process.stdout.read() or b""  # type: ignore[union-attr]
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)}\nended with {process.returncode}: {output.decode()[-2000:]}")
    return Cost(seconds=seconds, largest_rss_bytes=largest, tree_pss_bytes=together)


def _tree(root: int) -> list[int]:
    """The process and all its descendants."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting.extend(int(child) for child in task.read_text().split())
            except OSError:
                continue
    return found


def _memory(pid: int) -> tuple[int, int]:
    """(peak resident, proportional) bytes now; zeros of a process that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0, 0
    return _field(status, "VmHWM:"), _field(rollup, "Pss:")


def _field(text: str, name: str) -> int:
    line = next((line for line in text.splitlines() if line.startswith(name)), "")
    return int(line.split()[1]) * 1024 if line else 0
