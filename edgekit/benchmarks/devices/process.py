"""Child processes with an end: a deadline, an output cap, and nobody left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.transport import OUTPUT_LIMIT_BYTES, OnOutput, Reply
from edgekit.errors import DeviceTimeout, HostError, OutputLimitError

__all__ = ["CANCELLED", "ProcessStart", "end_group", "process_start", "run_bounded"]

CANCELLED: ContextVar[threading.Event | None] = ContextVar("cancelled", default=None)
"""Once set, what runs in this context is ended as by Ctrl-C (which only the main thread is told of)."""

log = logging.getLogger(__name__)

_CHUNK = 256 * 1024
_TICK_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStart:
    """What tells one process from another of the same pid, and whether it can do anything now."""

    start: str
    """Clock ticks since boot on Linux; text of `ps` elsewhere."""
    is_zombie: bool
    is_stopped: bool


def process_start(pid: int) -> ProcessStart | None:
    """When process `pid` of this host began, and its state; None when there is none."""
    if os.path.exists("/proc/self/stat"):
        try:
            words = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            return None
        state, start = words[0], words[19]
    else:
        said = subprocess.run(
            ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False, timeout=10
        )
        state, _, start = said.stdout.strip().partition(" ")
        if not state:
            return None
    return ProcessStart(start=start.strip(), is_zombie=state[0] in "ZXx", is_stopped=state[0] in "Tt")


def end_group(process: subprocess.Popen[Any], *, patience: float = 1.0) -> None:
    """SIGKILL the process group that `process` leads, and reap it; returns after at most `patience` seconds."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        log.warning("process %d did not end %.1f s after SIGKILL", process.pid, patience)


def run_bounded(
    argv: Sequence[str],
    deadline: Deadline,
    *,
    device: str,
    env: Mapping[str, str] | None = None,
    tick: Callable[[], None] | None = None,
    on_output: OnOutput | None = None,
    max_output: int = OUTPUT_LIMIT_BYTES,
) -> Reply:
    """What `argv` printed and its exit status, run in a session of its own with no stdin.

    The whole process group is killed when the deadline passes (DeviceTimeout), when stdout and stderr together
    exceed `max_output` (OutputLimitError), when `tick` (called a few times a second) or `on_output` raises, and on
    Ctrl-C.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env) if env is not None else None,
            start_new_session=True,
        )
    except OSError as e:
        raise HostError(f"cannot start {argv[0]}: {e.strerror or e}") from e
    try:
        out, err = _drain(process, deadline, device, tick or _nothing, on_output or _nothing, max_output)
        process.wait(timeout=max(deadline.remaining, 0.1))
    except subprocess.TimeoutExpired as e:
        raise DeviceTimeout("no answer before the deadline", device=device) from e
    finally:
        if process.poll() is None:
            end_group(process)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return Reply(returncode=process.returncode, stdout=out, stderr=err)


def _nothing(*_arguments: object) -> None:
    pass


def _drain(
    process: subprocess.Popen[bytes],
    deadline: Deadline,
    device: str,
    tick: Callable[[], None],
    on_output: OnOutput,
    max_output: int,
) -> tuple[bytes, bytes]:
    """Both streams up to their ends."""
    kept: dict[IO[bytes], bytearray] = {}
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            assert stream is not None  # noqa: S101 - PIPE was asked for
            kept[stream] = bytearray()
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            if deadline.remaining <= 0:
                raise DeviceTimeout("no answer before the deadline", device=device)
            ready = selector.select(min(deadline.remaining, _TICK_SECONDS))
            if not ready:
                on_output(b"")
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK)
                if key.fileobj is process.stdout:
                    on_output(chunk)
                if chunk:
                    kept[key.fileobj] += chunk  # type: ignore[index]
                else:
                    selector.unregister(key.fileobj)
            if sum(map(len, kept.values())) > max_output:
                raise OutputLimitError(
                    f"printed more than {max_output >> 20} MiB; the command was killed", device=device
                )
            cancelled = CANCELLED.get()
            if cancelled is not None and cancelled.is_set():
                raise KeyboardInterrupt
            tick()
    out, err = kept.values()
    return bytes(out), bytes(err)
