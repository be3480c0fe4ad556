"""Boards that live on after a command: created, started, listed, stopped, destroyed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board import board_unavailable_reason
from edgekit.benchmarks.devices.board_arch import ARCHES
from edgekit.benchmarks.devices.board_instance import BUILD_SECONDS, START_SECONDS
from edgekit.benchmarks.devices.board_records import BoardRecord, boards_folder, is_owned, running_boards
from edgekit.benchmarks.devices.board_ssh import write_client_files
from edgekit.benchmarks.devices.board_tree import board_tree
from edgekit.benchmarks.devices.cell import remove_tree
from edgekit.benchmarks.devices.process import end_group
from edgekit.benchmarks.values import DeviceStatus
from edgekit.errors import DeviceError, DeviceTimeout, DeviceUnusable, UserError
from edgekit.schema import near_miss, parse_json, parse_record

__all__ = ["board_statuses", "chosen_boards", "create_board", "destroy_boards", "start_board", "stop_board"]

_STOP_SECONDS = 10.0
_MAX_LINE = 64 * 1024


def create_board(arch: str, on_step: Callable[[str], None]) -> Path:
    """The tree of `arch`, built when it is not there; `on_step` is told what is being done."""
    _require(arch)
    return board_tree(arch, boards_folder(), Deadline.after(BUILD_SECONDS), on_step)


def start_board(arch: str) -> BoardRecord:
    """A new board of `arch` in a process of its own, reachable over adb and ssh when this returns.

    Raises what `create_board` raises, and DeviceUnusable with what the board's owner said.
    """
    _require(arch)
    with (_log(arch)).open("ab") as log:
        owner = subprocess.Popen(
            [sys.executable, "-m", "edgekit.benchmarks.devices.board_owner", arch],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        return _answer(owner, arch, Deadline.after(START_SECONDS + 10.0))
    except BaseException:
        owner.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            owner.wait(_STOP_SECONDS)
        end_group(owner)
        raise


def _log(arch: str) -> Path:
    return boards_folder() / f"{arch}.log"


def _answer(owner: subprocess.Popen[bytes], arch: str, deadline: Deadline) -> BoardRecord:
    """The line that the owner prints once its board is up, or why it is not."""
    assert owner.stdout is not None  # noqa: S101 - asked for
    said = b""
    with owner.stdout as stream, selectors.DefaultSelector() as ready:
        ready.register(stream, selectors.EVENT_READ)
        while not said.endswith(b"\n") and len(said) < _MAX_LINE:
            if not ready.select(deadline.remaining):
                raise DeviceTimeout("did not start in time", device=f"board:{arch}", hint=f"see {_log(arch)}")
            part = os.read(stream.fileno(), 4096)
            if not part:
                break
            said += part
    try:
        answer = parse_json(said)
        if isinstance(answer, dict) and "error" in answer:
            message = str(answer["error"]).removeprefix(f"board:{arch}: ")
            raise DeviceUnusable(message, device=f"board:{arch}", hint=answer.get("hint"))
        return parse_record(BoardRecord, said)
    except ValueError as e:
        raise DeviceUnusable(
            "the process that owns the board ended without a word", device=f"board:{arch}", hint=f"see {_log(arch)}"
        ) from e


def chosen_boards(names: Sequence[str]) -> tuple[BoardRecord, ...]:
    """The running boards of these names. Raises UserError for one that does not run."""
    boards = {record.name: record for record in running_boards()}
    for name in names:
        if name.removeprefix("board:") not in boards:
            known = near_miss(name, list(boards)) if boards else "no board runs"
            raise UserError(f"no board {name[:40]!r} runs; {known}", hint="edgekit board list")
    return tuple(boards[name.removeprefix("board:")] for name in dict.fromkeys(names))


def stop_board(record: BoardRecord) -> None:
    """End the board with everything on it; returns when it is gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not is_owned(record.name):
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)
        deadline = Deadline.after(_STOP_SECONDS)
        while is_owned(record.name) and deadline.remaining:
            time.sleep(0.02)
    if is_owned(record.name):
        raise DeviceError(f"process {record.pid}, which owns it, does not end", device=record.spec)
    write_client_files(Deadline.after(_STOP_SECONDS))


def destroy_boards(arches: Sequence[str]) -> tuple[Path, ...]:
    """Remove the trees, the data and the keys of the boards of `arches`; what was removed.

    Raises DeviceUnusable while one of them runs, for a command or by itself.
    """
    removed: list[Path] = []
    for arch in arches:
        with _unused(arch):
            for pattern in (f"{arch}-*", f"data-{arch}-*", f"ssh/{arch}-*"):
                for path in boards_folder().glob(pattern):
                    if path.is_dir() and not path.is_symlink():
                        _remove(path)
                        removed.append(path)
    return tuple(removed)


def _remove(path: Path) -> None:
    """Out of the way first, so that a half-removed tree is never taken for a board."""
    doomed = path.with_name(f".build-{path.name}-removed")
    if doomed.exists():
        remove_tree(doomed)
    os.rename(path, doomed)
    remove_tree(doomed)


@contextlib.contextmanager
def _unused(arch: str) -> Iterator[None]:
    """Hold the architecture's trees against every board. Raises DeviceUnusable while one runs."""
    boards_folder().mkdir(parents=True, exist_ok=True)
    path = boards_folder() / f"{arch}.use"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as e:
        names = ", ".join(record.name for record in running_boards() if record.arch == arch)
        raise DeviceUnusable(
            f"boards of it run ({names or 'for another command'})",
            device=f"board:{arch}",
            hint="edgekit board stop --all" if names else "wait for that command to end",
        ) from e
    finally:
        os.close(descriptor)


def _require(arch: str) -> None:
    """Raise UserError for an unknown architecture, DeviceUnusable where its boards cannot run."""
    reason = board_unavailable_reason(arch)
    if reason and arch not in ARCHES:
        raise UserError(reason, hint="edgekit board start --arch amd64")
    if reason:
        raise DeviceUnusable(reason, device=f"board:{arch}", hint="`edgekit doctor` checks what a board needs")
    boards_folder().mkdir(parents=True, exist_ok=True)


def board_statuses() -> tuple[DeviceStatus, ...]:
    """The started boards as lines of `edgekit devices`, told from their records without asking them."""
    return tuple(
        DeviceStatus(
            spec=record.spec,
            state="ready",
            usable=True,
            model=f"edgekit virtual board, EMULATED: {ARCHES[record.arch].emulation}",
            also=(record.ssh_spec,),
        )
        for record in running_boards()
        if record.arch in ARCHES
    )
