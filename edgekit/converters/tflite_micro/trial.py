"""The child that runs a file in TensorFlow Lite Micro: `python -m edgekit.converters.tflite_micro.trial FOLDER`.

request.json      TrialRequest     parent -> child
sample.npz        one sample, as `save_samples` writes it
answer.json       TrialAnswer      child -> parent
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.converters.host_runtimes import micro_run
from edgekit.converters.tflite_micro.attempts import attempt, reason
from edgekit.converters.tflite_micro.interpreter import MicroInterpreter
from edgekit.converters.tflite_micro.ops import OpFailure, failing_ops
from edgekit.converters.wire import load_samples
from edgekit.errors import MissingDependencyError
from edgekit.isolation import enter_child
from edgekit.schema import Record, read_record, write_atomically

if TYPE_CHECKING:
    import numpy as np

__all__ = ["TrialAnswer", "TrialRequest", "examine", "main", "smallest_arena"]

ARENA_STEP = 16
"""Arenas are aligned to 16 bytes, and measured in as many."""
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")


class TrialRequest(Record):
    """A file to run."""

    model: str


class TrialAnswer(Record):
    """How the file went; `stage` says where it stopped (`import`, `allocate`, `invoke`), None when it ran."""

    stage: str | None = None
    said: str = ""
    failures: tuple[OpFailure, ...] = ()
    arena_bytes: int = 0
    """The smallest arena, in steps of 16 bytes, in which the model was allocated and run."""
    recorded_bytes: int = 0
    """What TFLM's recording allocator counted, in a large arena."""


def examine(model: bytes, sample: Sequence[np.ndarray]) -> TrialAnswer:
    """Whether TFLM runs `model`, in how large an arena, and if not, which ops are why."""

    def feed(interpreter: MicroInterpreter) -> None:
        micro_run(interpreter)(sample)
        interpreter.print_allocations()

    whole = attempt(model, feed)
    if whole.stage is not None:
        return TrialAnswer(stage=whole.stage, said=reason(whole.said), failures=failing_ops(model))
    total = _TOTAL.search(whole.said)
    recorded = int(total.group(1)) if total else ARENA_STEP
    arena = smallest_arena(recorded, lambda size: attempt(model, _do_nothing, size).stage is None)
    if attempt(model, feed, arena).stage is not None:  # a kernel allocates while it runs
        arena = smallest_arena(arena, lambda size: attempt(model, feed, size).stage is None)
    return TrialAnswer(arena_bytes=arena, recorded_bytes=recorded)


def _do_nothing(_: MicroInterpreter) -> None:
    """Memory is planned when the interpreter is made."""


def smallest_arena(guess: int, works: Callable[[int], bool]) -> int:
    """The smallest multiple of 16 bytes that `works`: in growing steps away from a guess that is nearly right, then
    by bisection."""
    high, step = -(-guess // ARENA_STEP), 1
    if works(high * ARENA_STEP):
        low = high - step
        while low > 0 and works(low * ARENA_STEP):
            high, step = low, 2 * step
            low = max(high - step, 0)
    else:
        low, high = high, high + step
        while not works(high * ARENA_STEP):
            step *= 2
            low, high = high, high + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle * ARENA_STEP) else (middle, high)
    return high * ARENA_STEP


def main(folder: Path) -> None:
    """Answer the request in `folder`."""
    enter_child()
    request = read_record(TrialRequest, folder / "request.json")
    (sample,) = load_samples(folder / "sample.npz")
    try:
        from tflite_micro import runtime  # noqa: F401 - once here, not in each fork
    except ImportError as e:
        raise MissingDependencyError("running TensorFlow Lite Micro", extra="micro", package="tflite-micro") from e
    answer = examine(Path(request.model).read_bytes(), sample)
    write_atomically(folder / "answer.json", answer.model_dump_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
