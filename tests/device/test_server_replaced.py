"""Another adb takes the server's place: Debian's adb 29 beside the one that edgekit uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import psutil
import pytest
from support import doubles
from support.adb_server import AdbServer
from support.fake_adbd import FakeAdbd
from support.links import meanwhile, soon

from edgekit.benchmarks.devices.adb import AdbDevice, AdbTransport
from edgekit.benchmarks.harness import measure
from edgekit.benchmarks.journal import MemoryStore

OLD = Path("/usr/bin/adb")


def is_old() -> bool:
    """Whether Debian's adb is here, and older than the one that edgekit would use."""
    if not OLD.is_file():
        return False
    said = subprocess.run([str(OLD), "version"], capture_output=True, text=True, check=False).stdout
    return "Version 29." in said or "Version 28." in said


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdbServer:
    """A server where adb looks for its own, for both programs."""
    server = AdbServer(tmp_path / "server")
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.mark.skipif(not is_old(), reason="Debian's adb 29 is not installed (apt install adb)")
def test_a_job_survives_another_adb_that_replaces_the_server(
    own: AdbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program ends the server and starts its own, again and again; the job is found again, and whole.

    Both call themselves protocol 41, so neither replaces the other by itself: it takes a `kill-server`.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    replaced: list[str] = []

    def replace() -> None:
        for argument in ("kill-server", "start-server"):
            subprocess.run([str(OLD), argument], capture_output=True, check=False, timeout=30)
        replaced.extend(psutil.Process(pid).exe() for pid in own.pids())

    with own, FakeAdbd(environment={**os.environ, "PATH": path}) as fake:
        root = PurePosixPath(tmp_path / "device")
        with AdbDevice(AdbTransport(own.default_client, fake.serial), root=root) as device:
            info = device.probe(soon())
            with meanwhile(replace, lambda: 1.5):
                run = measure(
                    *(device, info, doubles.artifact(tmp_path / "m", sleep_ms=20), doubles.inputs(), doubles.QUICK),
                    store=MemoryStore(tmp_path / "outputs"),
                    work_dir=tmp_path / "work",
                    runtime=doubles.DOUBLE,
                )
            assert device.run(["echo", "on"], soon()).stdout == "on\n"
    assert any(program.startswith("/usr/lib/android-sdk/") for program in replaced), replaced
    assert (run.status, run.attempt, run.evaluated) == ("ok", 1, 10)
