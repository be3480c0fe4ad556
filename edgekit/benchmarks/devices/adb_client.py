"""The adb program: which one, how old, and how it is run.

Only the command-line client is trusted with the link, as a child process with a deadline. Clients before
platform-tools 34 are refused: 29 (Debian 12's) exits 0 with half the output when the link is cut, and hangs for
more than a minute on a dead one (measured).
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgekit.benchmarks.devices.adb_server import server_socket
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.process import run_bounded
from edgekit.benchmarks.devices.transport import OnOutput, Reply
from edgekit.errors import DeviceLost, DeviceUnusable, HostError

__all__ = ["MIN_PLATFORM_TOOLS", "AdbClient", "file_lock", "find_adb", "host_lock"]

log = logging.getLogger(__name__)

MIN_PLATFORM_TOOLS = 34

_VERSION = re.compile(r"^Version ([0-9]+)\.([0-9]+)\.([0-9]+)", re.MULTILINE)
_HINT = "install platform-tools 34 or newer, or `pip install adbutils`, which carries one"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdbClient:
    """One adb program, and the server it talks to."""

    path: Path
    version: tuple[int, int, int]
    server: str | None = None
    """The server's socket (`tcp:localhost:5038`, `localfilesystem:/path`); None is adb's default, which
    `ANDROID_ADB_SERVER_PORT` and `ADB_SERVER_SOCKET` change."""
    server_name: str | None = None
    """`HOST:PORT` where the user chose the server: part of its devices' specs (`adb:SERIAL@HOST:PORT`)."""

    def spec_of(self, serial: str) -> str:
        """What names the device `serial` of this server."""
        return f"adb:{serial}" + (f"@{self.server_name}" if self.server_name else "")

    def argv(self, *arguments: str) -> list[str]:
        """The command line for `adb arguments…`."""
        return [str(self.path), *(("-L", self.server) if self.server else ()), *arguments]

    def run(
        self,
        arguments: Sequence[str],
        deadline: Deadline,
        *,
        device: str = "adb",
        tick: Callable[[], None] | None = None,
        on_output: OnOutput | None = None,
    ) -> Reply:
        """What `adb arguments…` said. Raises DeviceTimeout, OutputLimitError; an exit status proves nothing."""
        return run_bounded(self.argv(*arguments), deadline, device=device, tick=tick, on_output=on_output)

    def start_server(self, deadline: Deadline) -> None:
        """Make sure the server runs. One start at a time on this host: racing starts fail one another.

        A server that dies while it is asked, or while it starts, is started again, twice at most.
        """
        if self.server:
            return  # such a server has an owner, who started it
        with host_lock("adb-server", deadline):
            reply = self.run(["start-server"], deadline)
            for _ in range(2):
                if reply.returncode == 0 or deadline.remaining <= 1.0:
                    break
                log.warning("the adb server does not start, trying again")
                time.sleep(0.3)
                reply = self.run(["start-server"], deadline)
        if reply.returncode != 0:
            said = reply.stderr.decode("utf-8", "replace").strip().splitlines()
            raise DeviceLost(
                f"the adb server does not start{': ' + said[-1] if said else ''}",
                device="adb",
                hint=f"look at /tmp/adb.{os.getuid()}.log, or try `{self.path} kill-server`",
            )


@contextmanager
def host_lock(name: str, deadline: Deadline) -> Iterator[None]:
    """Hold the lock `name` among all of this user's processes on the host. Raises HostError past the deadline."""
    path = Path(tempfile.gettempdir()) / f"edgekit-{os.getuid()}-{name}.lock"
    with file_lock(path, deadline, busy=f"another process holds {path}", hint="wait for it, or end it"):
        yield


@contextmanager
def file_lock(path: Path, deadline: Deadline, *, busy: str, hint: str | None = None) -> Iterator[None]:
    """Hold the lock file `path`, which stays. Raises HostError saying `busy` past the deadline."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as e:
                if deadline.remaining <= 0:
                    raise HostError(busy, hint=hint) from e
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def find_adb(*, server: str | None = None) -> AdbClient:
    """The first adb that is new enough: `$EDGEKIT_ADB` (alone, where set), then PATH, then adbutils' own.

    It talks to the server `HOST:PORT`, or to adb's default one.

    Raises DeviceUnusable naming every one that was looked at and why it will not do.
    """
    chosen = os.environ.get("EDGEKIT_ADB")
    candidates = [Path(chosen)] if chosen else [p for p in (_on_path(), _bundled()) if p is not None]
    refused = []
    for path in candidates:
        version = _version(path, path.stat().st_mtime_ns if path.is_file() else 0)
        if isinstance(version, str):
            refused.append(f"{path}: {version}")
            log.info("not using %s: %s", path, version)
        else:
            socket = server_socket(server) if server else None
            return AdbClient(path=path, version=version, server=socket, server_name=server)
    why = "; ".join(refused) or "there is none on PATH, and adbutils brings none for this platform"
    raise DeviceUnusable(f"no adb client that can be used ({why})", device="adb", hint=_HINT)


def _on_path() -> Path | None:
    found = shutil.which("adb")
    return Path(found) if found else None


def _bundled() -> Path | None:
    """The client inside the adbutils wheel, found without importing it (importing takes 0.3 s)."""
    from importlib.util import find_spec

    spec = find_spec("adbutils")
    if spec is None or not spec.submodule_search_locations:
        return None
    for folder in spec.submodule_search_locations:
        path = Path(folder) / "binaries" / "adb"
        if path.is_file():
            return path
    return None


@lru_cache(maxsize=16)
def _version(path: Path, changed: int) -> tuple[int, int, int] | str:
    """The platform-tools version of the client at `path`, or why it cannot be used. `changed` keys the cache."""
    try:
        reply = run_bounded([str(path), "version"], Deadline.after(10.0), device="adb")
    except HostError as e:
        return e.message
    match = _VERSION.search(reply.stdout.decode("utf-8", "replace"))
    if match is None:
        return "does not tell its version as adb does"
    version = (int(match[1]), int(match[2]), int(match[3]))
    if version[0] < MIN_PLATFORM_TOOLS:
        return (
            f"platform-tools {'.'.join(map(str, version))} is too old: before {MIN_PLATFORM_TOOLS}, "
            "a cut connection looks like success"
        )
    return version
