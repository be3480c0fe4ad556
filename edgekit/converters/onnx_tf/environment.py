"""The virtual environment of onnx-tf: made on first use, kept, and used offline afterwards.

`<cache>/environments/onnx-tf-<hash>` appears by rename when every package is in it; the hash is of the pins and the
Python. A lock file lets one process make it while others wait; the kernel lets go of it when its holder ends. What a
killed one left is removed by the next that holds the lock.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.converters.onnx_tf.names import BACKEND
from edgekit.errors import ConversionError, HostError, Problem
from edgekit.schema import digest

__all__ = ["REQUIREMENTS", "environment_folder", "environment_problem", "is_ready", "ready_python"]

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PYTHON = (3, 11)
"""TensorFlow 2.15 has wheels up to Python 3.11, and the pins were tried with no other."""
NEEDED_BYTES = 3_000_000_000
"""1.5 GB when it is there, as much again for pip's downloads while it is made."""
TAIL_LINES = 12

Note = Callable[[str], None]


def environment_folder() -> Path:
    """Where it is, or will be."""
    from edgekit.benchmarks.devices.local import cache_dir

    key = digest(REQUIREMENTS.read_text(), f"{PYTHON[0]}.{PYTHON[1]}", platform.machine())[:16]
    return cache_dir() / "environments" / f"onnx-tf-{key}"


def is_ready() -> bool:
    """Whether it is there; nothing has to be downloaded then."""
    return _python_in(environment_folder()).is_file()


def environment_problem() -> Problem | None:
    """Why it cannot be made on this host, or None."""
    if is_ready():
        return None
    here = (sys.platform, platform.machine())
    if here != ("linux", "x86_64"):
        message = f"its TensorFlow 2.15 environment is pinned for Linux on x86-64; this is {' '.join(here)}"
        return Problem(backend=BACKEND, message=message, hint="convert on such a machine, or in a container")
    if base_python() is None:
        message = "it needs Python 3.11 (TensorFlow 2.15 has no wheels for newer ones), and none is on PATH"
        return Problem(backend=BACKEND, message=message, hint="install python3.11, for example with uv or pyenv")
    return None


def base_python() -> str | None:
    """A Python 3.11 to make the environment with: this one, or the one on PATH."""
    if sys.version_info[:2] == PYTHON:
        return sys.executable
    found = shutil.which(f"python{PYTHON[0]}.{PYTHON[1]}")
    if found is None:
        return None
    # a pyenv shim is on PATH and yet may have no Python behind it
    works = subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True, check=False)
    return found if works.returncode == 0 else None


def ready_python(note: Note) -> Path:
    """The environment's Python, after making the environment where it is not there yet.

    Raises ConversionError with pip's last lines when it cannot be installed, HostError when there is no room.
    """
    folder = environment_folder()
    if not is_ready():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f"{folder.name}.lock"), note):
            if not is_ready():
                _make(folder, note)
    return _python_in(folder)


def _python_in(folder: Path) -> Path:
    return folder / "bin" / "python"


@contextmanager
def _lock(path: Path, note: Note) -> Iterator[None]:
    """Held by one process at a time; the file stays, so that all lock the same one."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note("wait for another process that installs TensorFlow 2.15")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(folder: Path, note: Note) -> None:
    """Install everything beside its place, prove that it imports, and rename it there."""
    python = base_python()
    if python is None:
        raise ConversionError("no Python 3.11 to make its environment with", backend=BACKEND, stage="install")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: the lock is ours
    _check_room(folder.parent)
    note("install TensorFlow 2.15 into its own environment (once; about 1.5 GB)")
    try:
        _run([python, "-m", "venv", str(partial)], what="the virtual environment")
        pip = [str(_python_in(partial)), "-m", "pip", "--disable-pip-version-check", "install", "--no-input", "--quiet"]
        _run([*pip, "--no-deps", "-r", str(REQUIREMENTS)], what="its packages")
        _run([str(_python_in(partial)), "-c", "import onnx_tf.backend, tensorflow"], what="onnx-tf")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_room(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise HostError(
            f"{folder}: {free / 1e9:.1f} GB free, TensorFlow 2.15's environment takes {NEEDED_BYTES / 1e9:.0f} GB",
            hint="make room, or set EDGEKIT_CACHE to a folder on a larger disk",
        )


def _run(argv: list[str], *, what: str) -> None:
    """Raise ConversionError with the last lines it wrote when it fails. In the process group of the child."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, env=environment
    )
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        tail = "\n".join(lines[-TAIL_LINES:])
        raise ConversionError(
            f"{what} could not be installed: {lines[-1].strip()[:300] if lines else 'no reason was given'}",
            backend=BACKEND,
            stage="install",
            stderr=tail,
            hint="it is downloaded once from the package index; check the network and try again",
        )
