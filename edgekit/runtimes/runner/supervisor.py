"""The supervisor: runs each phase in a fresh child, saves it, survives its death, writes the result."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Optional

from . import SCHEMA_VERSION
from .changes import changes
from .conditions import boot_id, conditions
from .energy import IDLE_SECONDS, Meter, NoEnergy, account
from .files import read_json, write_json
from .gates import Gate, waited_seconds_of
from .job import Job, Plan, read_job

_BEAT_SECONDS = 1.0
_STDERR_TAIL = 4000


class PhaseError(Exception):
    """A phase that gave nothing: `status` is failed, crashed or timed_out."""

    def __init__(self, status: str, message: str, signal_number: Optional[int] = None) -> None:
        super().__init__(message)
        self.status = status
        self.signal_number = signal_number


class Progress:
    """`progress.json`: where the job is, and that its runner lives."""

    def __init__(self, job: Job, total: int, boot: Optional[str]) -> None:
        self._path = job.path("progress.json")
        previous = read_json(self._path) or {}
        self._value: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "job": job.job,
            "boot_id": boot,
            "beat": int(previous.get("beat", 0)),
            "state": "running",
            "phase": "",
            "done": 0,
            "total": total,
        }

    def show(self, **changes: Any) -> None:
        """Write the present state with `changes`, one beat on."""
        self._value.update(changes)
        self._value["beat"] += 1
        write_json(self._path, self._value)


def supervise(directory: str, argv: list[str]) -> int:
    """Run the job in `directory`; `argv` starts this runner again. 0 when `result.json` is there."""
    job = read_job(directory)
    if os.path.exists(job.path("result.json")):
        return 0
    deadline = time.monotonic() + job.plan.timeout_seconds
    state = _state(job)
    steps = _steps(job.plan)
    progress = Progress(job, len(steps), state["boot_id"])
    error: Optional[PhaseError] = None
    gate = Gate(job.plan, waited_seconds_of(job))
    for done, (name, phase) in enumerate(steps):
        progress.show(phase=name, done=done)
        try:
            run = _measure_energy if phase == "energy" else _run_step
            run(_Step(job, name, phase, argv, deadline, gate, progress.show))
        except PhaseError as e:
            error = e
            break
    write_json(job.path("result.json"), _result(job, state, steps, error), durable=True)
    progress.show(state="done", phase="", done=len(steps))
    return 0


def _state(job: Job) -> dict[str, Any]:
    """What the first start noted (boot, conditions before), with the number of starts counted up."""
    state = read_json(job.path("state.json")) or {"boot_id": boot_id(), "before": conditions(), "starts": 0}
    state["starts"] += 1
    write_json(job.path("state.json"), state)
    return dict(state)


def _steps(plan: Plan) -> list[tuple[str, str]]:
    """(name, phase) in order; each cold start is a step of its own."""
    steps = [(f"cold-{i}", "cold") for i in range(plan.cold_starts)] + [("warm", "warm")]
    if plan.memory:
        steps.append(("memory", "memory"))
    if plan.profile:
        steps.append(("profile", "profile"))
    if plan.energy:
        steps.append(("energy", "energy"))
    if plan.accuracy:
        steps.append(("accuracy", "accuracy"))
    return steps


class _Step:
    """One step of a job and what it takes to run it."""

    def __init__(
        self,
        job: Job,
        name: str,
        phase: str,
        argv: list[str],
        deadline: float,
        gate: Gate,
        beat: Callable[[], None],
    ) -> None:
        self.job = job
        self.name = name
        self.phase = phase
        self.deadline = deadline
        self.gate = gate
        self.beat = beat
        self.saved = job.path(f"phase-{name}.json")
        self.part = job.path(f"part-{name}.json")
        self.stderr = job.path(f"stderr-{name}.txt")
        self.command = [*argv, "phase", job.directory, phase, self.part]


def _run_step(step: _Step) -> None:
    """Run one step in a fresh child unless it is saved already; raises PhaseError."""
    if os.path.exists(step.saved):
        return
    if step.phase != "cold":  # the warm phase waits before its warm-up and its blocks, itself
        found, elapsed = _found_by(step)
        write_json(step.saved, dict(found, phase_ns=elapsed))
        return
    gate = step.gate
    waited = gate.wait(step.beat)
    found, elapsed = _found_by(step)
    kept = {"waited_ns": round(waited * 1e9), "flags": list(gate.flags), "unmeasured": dict(gate.unmeasured)}
    write_json(step.saved, dict(found, **kept, process_ns=elapsed, phase_ns=elapsed))


def _found_by(step: _Step) -> tuple[dict[str, Any], int]:
    """What the step's child wrote, and its wall time in ns; raises PhaseError."""
    returncode, elapsed = _child(step.command, step.stderr, step.job.plan.threads, step.deadline, step.beat)
    if returncode != 0:
        raise _failure(step.name, returncode, _tail(step.stderr))
    found = read_json(step.part)
    if found is None:
        raise PhaseError("failed", f"{step.name}: the process ended well and wrote nothing")
    return dict(found), elapsed


def _measure_energy(step: _Step) -> None:
    """The busy child between two idle stretches, the power read all the while; saved, or the reason why not."""
    if os.path.exists(step.saved):
        return
    begun = time.perf_counter_ns()
    try:
        meter = Meter()
        meter.start()
        try:
            _idle(step)
            found, _ = _found_by(step)
            _idle(step)
        finally:
            meter.stop()
        energy = account(meter.readings, found["begun_ns"], found["ended_ns"], found["inferences"], meter.source)
        saved: dict[str, Any] = {"energy": energy, "unmeasured": {}}
    except NoEnergy as why:
        saved = {"energy": None, "unmeasured": {"energy": str(why)}}
    write_json(step.saved, dict(saved, phase_ns=time.perf_counter_ns() - begun))


def _idle(step: _Step) -> None:
    end = time.monotonic() + IDLE_SECONDS
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(_BEAT_SECONDS, left))
        step.beat()


def _child(
    command: list[str], stderr: str, threads: int, deadline: float, beat: Callable[[], None]
) -> tuple[Optional[int], int]:
    """(exit status, wall time in ns) of a child; None as status when it was ended at the deadline.

    The wait sleeps in the kernel: a supervisor that polls would take time from what it measures.
    """
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS="1")
    ended: list[int] = []
    over = threading.Event()
    with open(stderr, "wb") as log:
        begun = time.perf_counter_ns()
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=env)

        def wait() -> None:
            process.wait()
            ended.append(time.perf_counter_ns())
            over.set()

        threading.Thread(target=wait, daemon=True).start()
        timed_out = False
        while not over.wait(max(0.0, min(_BEAT_SECONDS, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                timed_out = True
                process.kill()
                over.wait()
                break
            beat()
    if process.stdin is not None:
        process.stdin.close()
    return (None if timed_out else process.returncode), ended[0] - begun


def _failure(name: str, returncode: Optional[int], tail: str) -> PhaseError:
    said = f"\n{tail}" if tail else ""
    if returncode is None:
        return PhaseError("timed_out", f"{name}: ended at the plan's timeout{said}")
    if returncode < 0:
        number = -returncode
        why = " (most likely the system was out of memory)" if number == signal.SIGKILL else ""
        return PhaseError("crashed", f"{name}: the process died by {_signal_name(number)}{why}{said}", number)
    last = tail.splitlines()[-1] if tail else f"ended with {returncode}"
    return PhaseError("failed", f"{name}: {last}{said}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(path: str) -> str:
    with open(path, "rb") as f:
        f.seek(0, os.SEEK_END)
        f.seek(max(0, f.tell() - _STDERR_TAIL))
        return f.read().decode("utf-8", "replace").strip()


def _result(
    job: Job, state: dict[str, Any], steps: list[tuple[str, str]], error: Optional[PhaseError]
) -> dict[str, Any]:
    """`result.json` from the saved phases; see the package docstring."""
    after = conditions()
    saved: dict[str, Any] = {name: read_json(job.path(f"phase-{name}.json")) for name, _ in steps}
    colds = [found for name, phase in steps if phase == "cold" and (found := saved[name])]
    warm = saved.get("warm") or {}
    memory = saved.get("memory") or {}
    profile, energy = saved.get("profile") or {}, saved.get("energy") or {}
    accuracy = saved.get("accuracy") or {}
    parts = [*colds, warm, memory]
    told = changes(state["before"], [block["state"] for block in warm.get("blocks", [])], after, job.plan)
    keys = ("import_ns", "load_ns", "first_inference_ns", "process_ns")
    return {
        "schema_version": SCHEMA_VERSION,
        "job": job.job,
        "status": error.status if error else "ok",
        "error": str(error) if error else None,
        "signal": error.signal_number if error else None,
        "runtime": warm.get("runtime"),
        "cold_starts": [{key: c[key] for key in keys} for c in colds],
        "warmup_ns": warm.get("warmup_ns", []),
        "latency_ns": warm.get("latency_ns", []),
        "calls_per_sample": warm.get("calls_per_sample", 1),
        "sampled_every": warm.get("sampled_every", 1),
        "stopped_by": warm.get("stopped_by"),
        "blocks": warm.get("blocks", []),
        "memory": memory.get("memory"),
        "operators": profile.get("operators"),
        "energy": energy.get("energy"),
        "before": state["before"],
        "after": after,
        "evaluated": accuracy.get("evaluated"),
        "outputs": accuracy.get("outputs"),
        "unmeasured": _unmeasured(job.plan, saved, error),
        "flags": list(dict.fromkeys([flag for part in parts for flag in part.get("flags", [])] + told)),
        "phase_ns": _phase_times(steps, saved),
        "starts": state["starts"],
    }


def _unmeasured(plan: Plan, saved: dict[str, Any], error: Optional[PhaseError]) -> dict[str, str]:
    """Field to reason for everything that is None or empty in the result."""
    why = str(error).splitlines()[0] if error else ""
    reasons = {k: v for part in saved.values() if part for k, v in part.get("unmeasured", {}).items()}
    if plan.cold_starts == 0:
        reasons["cold_starts"] = "not asked for"
    elif sum(1 for name in saved if name.startswith("cold-") and saved[name]) < plan.cold_starts:
        reasons["cold_starts"] = why
    if not saved.get("warm"):
        reasons["latency_ns"] = why
    if not saved.get("memory"):
        reasons["memory"] = why if plan.memory else "not asked for"
    if not saved.get("profile"):
        reasons["operators"] = why if plan.profile else "not asked for"
    if not saved.get("energy"):
        reasons["energy"] = why if plan.energy else "not asked for"
    if not saved.get("accuracy"):
        reasons["evaluated"] = why if plan.accuracy else "not asked for"
    return reasons


def _phase_times(steps: list[tuple[str, str]], saved: dict[str, Any]) -> dict[str, int]:
    times: dict[str, int] = {}
    for name, phase in steps:
        found = saved[name]
        if found:
            times[phase] = times.get(phase, 0) + found["phase_ns"]
    return times


def own_command() -> list[str]:
    """The argv that starts this same runner: the packed file, or the package as a module."""
    main = sys.argv[0]
    if main.endswith(".py") and os.path.basename(os.path.dirname(main)) == "runner":
        return [sys.executable, "-m", __package__]
    return [sys.executable, main]
