"""What a process and its children hold in memory, looked at now and then by the process that limits it."""

from __future__ import annotations

import time

__all__ = ["Resident"]

INTERVAL_SECONDS = 0.25


class Resident:
    """What a child and the children of its own hold in memory, looked at now and then."""

    def __init__(self, pid: int, limit: int | None) -> None:
        self.most_bytes = 0
        self._pid = pid
        self._limit = limit
        self._next = 0.0

    def is_over(self) -> bool:
        """Whether they hold more than they may."""
        now = time.monotonic()
        if self._limit is None or now < self._next:
            return False
        self._next = now + INTERVAL_SECONDS
        self.most_bytes = max(self.most_bytes, _resident_bytes(self._pid))
        return self.most_bytes > self._limit


def _resident_bytes(pid: int) -> int:
    import psutil

    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
