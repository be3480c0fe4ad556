"""One run of a file in TensorFlow Lite Micro, in a fork of this process.

TFLM ends its process on many errors (in the Python wheel a too small arena is a segmentation fault): the exit status
of the fork and its stderr tell how it went. Only for processes with one thread.
"""

from __future__ import annotations

import faulthandler
import os
import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from edgekit.converters.tflite_micro.interpreter import MAX_ARENA_BYTES, MicroInterpreter

__all__ = ["Attempt", "attempt", "reason"]

_RAN, _NOT_ALLOCATED, _NOT_INVOKED = 0, 10, 11
_NOISE = re.compile(r"\[RecordingMicroAllocator\]|^\s*$")


class Attempt(NamedTuple):
    """How one fork ended: `stage` is where (`allocate`, `invoke`), None when it ran."""

    stage: str | None
    said: str


def attempt(model: bytes, feed: Callable[[MicroInterpreter], None], arena_bytes: int = MAX_ARENA_BYTES) -> Attempt:
    """`model` allocated and fed in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 2)
        _try_and_exit(model, feed, arena_bytes)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read().decode("utf-8", errors="replace")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    stage = {_RAN: None, _NOT_INVOKED: "invoke"}.get(code, "allocate")
    crash = "" if code >= 0 else f"\nended by signal {-code}"
    return Attempt(stage=stage, said=said + crash)


def _try_and_exit(model: bytes, feed: Callable[[MicroInterpreter], None], arena_bytes: int) -> NoReturn:
    """The forked side, to its exit status."""
    faulthandler.disable()  # a crash is an answer here; its traceback would drown what TFLM said
    code = _NOT_ALLOCATED
    try:
        interpreter = MicroInterpreter(model, arena_bytes)
        code = _NOT_INVOKED
        feed(interpreter)
        code = _RAN
    except BaseException as e:  # noqa: BLE001 - whatever it is, the fork ends here and says so
        os.write(2, f"{e}\n".encode())
    finally:
        os._exit(code)


def reason(said: str) -> str:
    """TFLM's own sentences of why, without its accounting."""
    lines = [line.strip() for line in said.splitlines() if not _NOISE.search(line)]
    return "; ".join(dict.fromkeys(lines))[:600]
