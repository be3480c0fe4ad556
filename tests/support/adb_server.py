"""A private adb server: it sees no USB device and no other test's devices."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.benchmarks.devices.adb_client import AdbClient, find_adb
from edgekit.benchmarks.devices.base import Deadline


@contextmanager
def private_adb_server(folder: Path) -> Iterator[tuple[AdbClient, int]]:
    """A client of the real server, which keeps its files in `folder`, and the server's port on 127.0.0.1."""
    adb = find_adb()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder), "ADB_USB": "0", "ADB_EMU": "0", "ADB_MDNS": "0"}
    with (folder / "log").open("wb") as log:
        argv = [str(adb.path), "-L", f"tcp:localhost:{port}", "server", "nodaemon"]
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        client = AdbClient(path=adb.path, version=adb.version, server=f"tcp:127.0.0.1:{port}")
        deadline = Deadline.after(20)
        while client.run(["devices"], Deadline.after(20)).returncode != 0:
            assert deadline.remaining
            time.sleep(0.02)
        yield client, port
    finally:
        process.kill()
        process.wait()
