"""A cell: processes in a pid namespace of their own, which end with the process that owns them.

The first process of the cell watches a pipe whose other end only the owner holds. When the owner ends, by any
signal, the pipe closes, the first process exits, and the kernel kills everything else in the namespace. Mounts
and network interfaces made inside go with it: nothing is left on the host that would have to be cleaned up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.benchmarks.devices.process import end_group

__all__ = ["Cell", "cell_unavailable_reason", "remove_tree", "start_cell"]

# Runs "$@" and watches the owner's pipe. `wait` without arguments would not return when the pipe closes first.
_WATCH = r"""
exec 3<&0 </dev/null
"$@" 3<&- &
work=$!
( while read -r _; do :; done; kill -9 $work ) <&3 3<&- >/dev/null 2>&1 &
exec 3<&-
wait $work
"""


@dataclass(slots=True)
class Cell:
    """A running cell."""

    process: subprocess.Popen[bytes]

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        """Kill everything in the cell and wait until it is gone; safe to call twice."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            end_group(self.process)
        if self.process.stdout is not None:
            self.process.stdout.close()


def start_cell(
    argv: Sequence[str],
    *,
    log_file: Path,
    mounts: bool,
    env: Mapping[str, str] | None = None,
    read_output: bool = False,
) -> Cell:
    """Start `argv` in a new cell; `mounts` gives it a private mount namespace and /proc as well."""
    flags = ["--fork", "--pid", "--kill-child"]
    if mounts:
        flags += ["--mount", "--propagation", "private", "--mount-proc"]
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            ["unshare", *flags, "sh", "-c", _WATCH, "edgekit-cell", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if read_output else log,
            stderr=log,
            env=dict(env) if env is not None else None,
            start_new_session=True,
        )
    return Cell(process)


def cell_unavailable_reason() -> str | None:
    """Why cells cannot be made here, in one sentence, or None."""
    if os.uname().sysname != "Linux":
        return "needs Linux (namespaces)"
    if os.geteuid() != 0:
        return "needs root (it makes network and mount namespaces): run as root or with sudo"
    if shutil.which("unshare") is None:
        return "needs `unshare`: apt install util-linux"
    try:
        tried = subprocess.run(
            ["unshare", "--fork", "--pid", "--kill-child", "--mount", "--net", "--propagation", "private", "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "the kernel did not make namespaces within 10 s"
    if tried.returncode != 0:
        said = tried.stderr.decode("utf-8", "replace").strip()
        return f"the kernel refuses new namespaces ({said}): a container needs CAP_SYS_ADMIN (docker run --privileged)"
    return None


def remove_tree(path: Path) -> None:
    """Delete the folder `path` and what is in it, never crossing into another file system, following no link.

    A mounted /dev or a bind mount inside would otherwise lose the host's own files.
    """
    try:
        top = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(top.st_mode):
        raise NotADirectoryError(str(path))
    _remove_below(path, top.st_dev)
    path.rmdir()


def _remove_below(folder: Path, device: int) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            if entry.stat(follow_symlinks=False).st_dev != device:
                raise OSError(f"{entry.path} is on another file system; it is not deleted")
            _remove_below(Path(entry.path), device)
            os.rmdir(entry.path)
