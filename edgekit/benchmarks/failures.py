"""What a run that did not end well is called: its error, with code, blame and hint.

A run keeps what the device and the runner said (`Run.status`, `Run.error`); the name is found from that, so that it
can be told of stored runs as well.
"""

from __future__ import annotations

import re
import signal

from edgekit.benchmarks.devices.base import Deadline, Device
from edgekit.benchmarks.values import Run, RunStatus
from edgekit.errors import (
    DeviceError,
    DeviceLost,
    DeviceRebooted,
    EdgekitError,
    HungCommand,
    ModelCrashError,
    OutOfMemory,
)

__all__ = ["REBOOTED", "failure_of", "killed_for_memory"]

REBOOTED = "the device was restarted while the job ran"
"""`Run.error` of an attempt that is void for that reason."""

_KILLED = re.compile(r"\bdied by SIGKILL\b")
_NO_MEMORY = re.compile(
    r"MemoryError\b|\bbad_alloc\b|(?:cannot|unable to|failed to) allocate\b|\bENOMEM\b|\bout of memory\b"
    r"|\bMemoryAllocationFailed\b",
    re.IGNORECASE,
)
_SIGNAL = re.compile(r"\bdied by (SIG[A-Z0-9]{1,10})\b")
_LOG_LINE = re.compile(r"out of memory: killed process|oom-kill|lowmemorykiller|\blmkd?\b.*\bkill", re.IGNORECASE)
_LOG_SECONDS = 10.0


def failure_of(run: Run, *, device: str, what: str = "") -> EdgekitError | None:
    """The error of a run that did not end well, `what` before its message; None for one that did.

    OutOfMemory for a process that was killed or could not allocate, ModelCrashError for any other death or refusal,
    HungCommand past the plan's timeout, DeviceRebooted or DeviceLost where the device took the job with it.
    """
    if run.status is RunStatus.OK:
        return None
    told = run.error or "no reason given"
    message = f"{what}: {run.status}: {told}" if what else f"{run.status}: {told}"
    if run.status is RunStatus.TIMED_OUT:
        return HungCommand(
            message, device=device, hint="give the plan a longer `timeout_seconds`, or measure a smaller model"
        )
    if run.status is RunStatus.LOST:
        if told.startswith(REBOOTED):
            return DeviceRebooted(message, device=device)
        return OutOfMemory(message, device=device) if _NO_MEMORY.search(told) else DeviceLost(message, device=device)
    if _KILLED.search(told.partition("\n")[0]) or _NO_MEMORY.search(told):
        return OutOfMemory(message, device=device, signal=_signal_in(told))
    return ModelCrashError(message, device=device, signal=_signal_in(told))


def _signal_in(told: str) -> int | None:
    found = _SIGNAL.search(told.partition("\n")[0])
    name = found[1] if found else ""
    return signal.Signals[name].value if name in signal.Signals.__members__ else None


def killed_for_memory(device: Device) -> str | None:
    """The last line of the device's log that says a process was ended for want of memory; None where it tells none."""
    script = "{ dmesg 2>/dev/null || :; logcat -d -b system,main -t 400 2>/dev/null || :; } | tail -n 800"
    try:
        log = device.run(["sh", "-c", script], Deadline.after(_LOG_SECONDS)).stdout
    except DeviceError:  # the failure itself is what is to be told, not that its cause cannot be looked up
        return None
    lines = [line for line in log.splitlines() if _LOG_LINE.search(line)]
    return "".join(c for c in lines[-1] if c.isprintable())[:300] if lines else None
