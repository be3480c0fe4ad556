"""What one child process does: one phase of a job, in a process that does nothing else.

Each phase is `phase(job, backend) -> dict`, the fields of the result it brings. numpy is imported only after
the runtime was, so that a cold start counts it once, as the runtime's.
"""

import glob
import os
import platform
import time
from typing import Any, Callable, Optional

from . import memory
from .backends import DelegateMissing, NoProfile, bound
from .conditions import conditions
from .energy import BUSY_SECONDS
from .files import sha256_of
from .gates import Gate, waited_seconds_of
from .job import Job
from .sampling import quartiles, sample, warm_up

_PREPARED_BYTES = 64 * 1024 * 1024
_PREPARED_COUNT = 64
_CHUNK_BYTES = 16 * 1024 * 1024
_CHUNK_RUNS = 256
_MEMORY_RUNS = 10
_PROFILE_RUNS = 20
_MAX_OPERATORS = 2000


def cold(job: Job, backend: Any) -> dict[str, Any]:
    """Import, load, first inference; each once."""
    now = time.perf_counter_ns
    begun = now()
    backend.import_runtime()
    imported = now()
    _load(job, backend)
    loaded = now()
    inputs = _Inputs(job, backend).at(0)
    ready = now()
    backend.invoke(inputs)
    ended = now()
    return {
        "import_ns": imported - begun,
        "load_ns": loaded - imported,
        "first_inference_ns": ended - ready,
    }


def warm(job: Job, backend: Any) -> dict[str, Any]:
    """Raw warm-ups and samples; inputs are real, prepared before the clock starts, and taken in turn."""
    plan = job.plan
    backend.import_runtime()
    flags = _load(job, backend)
    prepared = _Inputs(job, backend).prepared()
    calls = [bound(backend, inputs) for inputs in prepared]
    _check_bound(backend, calls[0], prepared[0])
    gate = Gate(plan, waited_seconds_of(job))
    told = [gate.waited_seconds]

    def before_block() -> dict[str, Any]:
        gate.wait()
        since, told[0] = told[0], gate.waited_seconds
        return {"waited_ns": round((gate.waited_seconds - since) * 1e9), "state": conditions()}

    gate.wait()
    warmups, settled = warm_up(calls, max(1, plan.warmup_min_runs), plan.warmup_max_seconds)
    expected = quartiles(warmups[-10:])[1] if warmups else None
    found = sample(calls, expected, plan.min_samples, plan.min_seconds, plan.max_seconds, before_block)
    if not settled:
        flags.append(f"warm-up did not settle within {plan.warmup_max_seconds:g} s")
    facts = dict(backend.describe(), python=platform.python_version())
    facts.setdefault("interface", "invoke")
    if facts["threads"] != plan.threads:
        flags.append(f"{plan.threads} threads were asked for, the runtime uses {facts['threads']}")
    return dict(found, warmup_ns=warmups, runtime=facts, flags=flags + gate.flags, unmeasured=gate.unmeasured)


def _check_bound(backend: Any, call: Any, inputs: list[Any]) -> None:
    """What is timed must compute what is evaluated."""
    import numpy as np

    call()
    timed = [np.array(output) for output in call.outputs()]
    for position, (ours, theirs) in enumerate(zip(timed, backend.invoke(inputs))):
        theirs = np.asarray(theirs)
        exact = ours.dtype.kind not in "fc"
        same = np.array_equal(ours, theirs) if exact else np.allclose(ours, theirs, 1e-3, 1e-5, equal_nan=True)
        if not same:
            raise RuntimeError(f"output {position} of the call that is timed is not what the runtime gives otherwise")


def measure_memory(job: Job, backend: Any) -> dict[str, Any]:
    """Resident bytes: runtime imported, model loaded, peak and proportional after some inferences."""
    unmeasured = {}
    flags = []
    backend.import_runtime()
    baseline, baseline_pss = memory.resident()["rss"], memory.proportional()
    if not memory.reset_peak():
        flags.append("peak memory includes the import of the runtime (clear_refs is not writable)")
    _load(job, backend)
    loaded = memory.resident()["rss"]
    inputs = _Inputs(job, backend).at(0)
    for _ in range(_MEMORY_RUNS):
        backend.invoke(inputs)
    found = {
        "baseline_rss_bytes": baseline,
        "baseline_pss_bytes": baseline_pss,
        "loaded_rss_bytes": loaded,
        "peak_rss_bytes": memory.resident()["peak"],
        "pss_bytes": memory.proportional(),
    }
    for name, value in found.items():
        if value is None:
            unmeasured[f"memory.{name}"] = "the kernel does not tell (no /proc/self/status or smaps_rollup)"
    return {"memory": found, "unmeasured": unmeasured, "flags": flags}


def profile(job: Job, backend: Any) -> dict[str, Any]:
    """Time by operator, from the runtime's own profiler; the longest first."""
    backend.import_runtime()
    _load(job, backend)
    prepared = _Inputs(job, backend).prepared()
    try:
        if not hasattr(backend, "profile"):
            raise NoProfile(f"{backend.describe()['name']} gives its Python interface no profiler")
        arguments = (job.model, job.plan.threads, job.plan.delegate, prepared, _PROFILE_RUNS)
        operators = backend.profile(*arguments, job.path("profile-"))
    except NoProfile as why:
        return {"operators": None, "unmeasured": {"operators": str(why)}}
    operators.sort(key=lambda o: -o["total_ns"])
    return {"operators": operators[:_MAX_OPERATORS], "unmeasured": {}}


def busy(job: Job, backend: Any) -> dict[str, Any]:
    """Inferences without a pause, for the supervisor to read the power meanwhile: from when, to when, how many."""
    backend.import_runtime()
    _load(job, backend)
    calls = [bound(backend, inputs) for inputs in _Inputs(job, backend).prepared()]
    for call in calls[:10]:
        call()
    begun = time.monotonic_ns()
    count = 0
    while time.monotonic_ns() - begun < BUSY_SECONDS * 1e9:
        calls[count % len(calls)]()
        count += 1
    return {"begun_ns": begun, "ended_ns": time.monotonic_ns(), "inferences": count}


def accuracy(job: Job, backend: Any) -> dict[str, Any]:
    """The whole evaluation set through the model, into `outputs.npz`; continues after the last saved chunk."""
    backend.import_runtime()
    _load(job, backend)
    inputs = _Inputs(job, backend)
    order = _order(job.outputs, backend.names()[1])
    chunk_runs = inputs.chunk_runs()
    for number, first in enumerate(range(0, inputs.runs, chunk_runs)):
        path = job.path(f"chunk-{number:05d}.npz")
        if not os.path.exists(path):
            runs = range(first, min(first + chunk_runs, inputs.runs))
            _save(path, _chunk(backend, inputs, runs, order))
    return dict(_join(job, inputs), evaluated=inputs.count)


PHASES: dict[str, Callable[[Job, Any], dict[str, Any]]] = {
    "cold": cold,
    "warm": warm,
    "memory": measure_memory,
    "profile": profile,
    "energy": busy,
    "accuracy": accuracy,
}


def _load(job: Job, backend: Any) -> list[str]:
    """Load the model by the plan. Returns flags: one where it may, and does, run without the delegate asked for."""
    plan = job.plan
    try:
        backend.load(job.model, plan.threads, plan.delegate)
    except DelegateMissing as why:
        if not plan.allow_fallback:
            raise
        backend.load(job.model, plan.threads, "default")
        return [f"fell back to the runtime's default: {why}"]
    return []


def _order(wanted: tuple[str, ...], names: Optional[list[str]]) -> list[int]:
    """Where each wanted name is among the runtime's; by position where the runtime's names are others."""
    if names is not None and set(wanted) <= set(names):
        return [names.index(name) for name in wanted]
    return list(range(len(wanted)))


class _Inputs:
    """The evaluation inputs, mapped from their files, cut into batches; the last is filled up with its last input."""

    def __init__(self, job: Job, backend: Any) -> None:
        import numpy as np

        files = dict(job.inputs)
        names = backend.names()[0]
        order = names if names is not None and set(names) == set(files) else [name for name, _ in job.inputs]
        self._np = np
        self._arrays = [np.load(files[name], mmap_mode="r", allow_pickle=False) for name in order]
        self.batch = job.batch
        self.count = len(self._arrays[0])
        if self.count == 0 or any(len(a) != self.count for a in self._arrays):
            raise ValueError("the input files are empty or differ in length")
        self.runs = -(-self.count // self.batch)

    def at(self, run: int) -> list[Any]:
        """The arrays of one inference, `[batch, ...]`, in memory and contiguous."""
        np = self._np
        rows = [min(run * self.batch + i, self.count - 1) for i in range(self.batch)]
        return [np.ascontiguousarray(array[rows]) for array in self._arrays]

    def prepared(self) -> list[list[Any]]:
        """The first inferences' inputs, as many as fit the budget of memory and number."""
        size = sum(array[:1].nbytes for array in self._arrays) * self.batch
        count = max(1, min(self.runs, _PREPARED_COUNT, _PREPARED_BYTES // max(1, size)))
        return [self.at(run) for run in range(count)]

    def chunk_runs(self) -> int:
        """Inferences per saved chunk; the same at every start of the same job."""
        size = sum(array[:1].nbytes for array in self._arrays) * self.batch
        return int(max(1, min(_CHUNK_RUNS, _CHUNK_BYTES // max(1, size))))


def _chunk(backend: Any, inputs: _Inputs, runs: range, order: list[int]) -> list[Any]:
    """One array per output, `[samples, ...]`, for these inferences."""
    import numpy as np

    collected: list[list[Any]] = [[] for _ in order]
    for run in runs:
        outputs = backend.invoke(inputs.at(run))
        if len(outputs) < len(order):
            raise ValueError(f"the model gives {len(outputs)} outputs, its passport names {len(order)}")
        keep = min(inputs.batch, inputs.count - run * inputs.batch)
        for kept, position in zip(collected, order):
            output = np.asarray(outputs[position])
            if output.ndim == 0 or output.shape[0] != inputs.batch:
                raise ValueError(
                    f"output {position} has shape {output.shape}, not [{inputs.batch}, ...] like the inputs"
                )
            kept.append(np.array(output[:keep]))
    return [np.concatenate(kept) for kept in collected]


def _save(path: str, arrays: list[Any]) -> None:
    import numpy as np

    partial = path + ".partial.npz"
    np.savez(partial, **{f"output_{i}": array for i, array in enumerate(arrays)})
    os.replace(partial, path)


def _join(job: Job, inputs: _Inputs) -> dict[str, Any]:
    """Write `outputs.npz` from all chunks and say what it is."""
    import numpy as np

    chunks = []
    for path in sorted(glob.glob(job.path("chunk-?????.npz"))):
        with np.load(path, allow_pickle=False) as chunk:
            chunks.append([chunk[f"output_{i}"] for i in range(len(job.outputs))])
    joined = [np.concatenate(parts) for parts in zip(*chunks)]
    if any(len(array) != inputs.count for array in joined):
        raise ValueError("the saved chunks do not add up to the evaluation set")
    target = job.path("outputs.npz")
    _save(target, joined)
    return {"outputs": {"sha256": sha256_of(target), "size_bytes": os.path.getsize(target)}}
