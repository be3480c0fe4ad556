"""A private adb server for tests: it sees no USB device and no other test's devices, and can be killed and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from edgekit.benchmarks.devices.adb_client import AdbClient, find_adb
from edgekit.benchmarks.devices.base import Deadline


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class AdbServer:
    """A context manager; `client` talks to it. `variables` make the same server adb's default one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.port = free_port()
        found = find_adb()
        self.client = AdbClient(path=found.path, version=found.version, server=f"tcp:127.0.0.1:{self.port}")
        self.default_client = AdbClient(path=found.path, version=found.version)
        """Finds the server by `variables`, and starts it again where it is gone, as a user's does."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def variables(self) -> dict[str, str]:
        names = {"HOME": str(self._folder), "ANDROID_ADB_SERVER_PORT": str(self.port)}
        return names | {"ADB_USB": "0", "ADB_EMU": "0", "ADB_MDNS": "0"}

    def __enter__(self) -> Self:
        env = {**os.environ, **self.variables, "TMPDIR": str(self._folder)}
        env.pop("ANDROID_ADB_SERVER_PORT")
        with (self._folder / "log").open("wb") as log:
            argv = [str(self.client.path), "-L", f"tcp:localhost:{self.port}", "server", "nodaemon"]
            self._process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = Deadline.after(20)
        while self.client.run(["devices"], Deadline.after(10)).returncode != 0:
            assert deadline.remaining, "the adb server did not come up"
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)

    def pids(self) -> list[int]:
        """Who listens on the server's port: one process, or none."""
        import psutil

        found = {c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == self.port}
        return sorted(pid for pid in found if pid is not None)

    def signal(self, number: int) -> None:
        """Send a signal to the server, however it was started."""
        for pid in self.pids():
            os.kill(pid, number)
        if number == signal.SIGKILL and self._process is not None:
            self._process.wait(10)
