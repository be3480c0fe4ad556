"""The same question to several devices at once, each in a thread of its own."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.process import CANCELLED

__all__ = ["in_parallel"]

_CLEANUP_SECONDS = 3.0
_AT_A_TIME = 8

T = TypeVar("T")
U = TypeVar("U")


def in_parallel(step: Callable[[T], U], items: Sequence[T]) -> list[U]:
    """`step` of each item, several at a time, in order. Ctrl-C ends what they run, and is raised here."""
    cancelled = threading.Event()
    slots = threading.Semaphore(_AT_A_TIME)
    ended = threading.Semaphore(0)  # not Thread.join: in Python 3.11 an interrupted one returns at once from then on
    results: dict[int, U] = {}
    errors: dict[int, BaseException] = {}

    def work(place: int, item: T) -> None:
        CANCELLED.set(cancelled)
        try:
            with slots:
                if not cancelled.is_set():
                    results[place] = step(item)
        except BaseException as e:  # noqa: BLE001  raised again below, in the caller's thread
            errors[place] = e
        finally:
            ended.release()

    for place, item in enumerate(items):
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(work, place, item), daemon=True).start()
    waiting = len(items)
    try:
        while waiting:
            ended.acquire()
            waiting -= 1
    except KeyboardInterrupt:
        cancelled.set()
        deadline = Deadline.after(_CLEANUP_SECONDS)
        for _ in range(waiting):
            ended.acquire(timeout=deadline.remaining)
        raise
    for place in sorted(errors):
        raise errors[place]
    return [results[place] for place in range(len(items))]
