"""The device scripts under the shells devices have, and where there is no /proc and no setsid (macOS)."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import sys
import time
from pathlib import Path, PurePosixPath

import pytest

from edgekit.benchmarks.devices import jobs, local
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.local import LocalDevice, LocalTransport
from edgekit.benchmarks.devices.process import run_bounded
from edgekit.benchmarks.devices.room import free_room_script
from edgekit.benchmarks.devices.transport import OnOutput, Reply

SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "mksh": ["mksh"], "busybox": ["busybox", "sh"]}


class _ShellTransport(LocalTransport):
    """This host, its scripts run by a shell of choice."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv

    def shell(self, script: str, deadline: Deadline, *, on_output: OnOutput | None = None) -> Reply:
        return run_bounded([*self._argv, "-c", script], deadline, device=self.name, on_output=on_output)


def _soon() -> Deadline:
    return Deadline.after(20)


def _live_through(device: LocalDevice, folder: Path) -> None:
    """A command, a file and jobs: one that ends, one with a child that is killed, one that makes way."""
    done = device.run(["printf", "%s|", "if", "$(id)", "a'b"], _soon())
    assert (done.returncode, done.stdout) == (0, "if|$(id)|a'b|")
    assert device.run(["sh", "-c", "kill -9 $$"], _soon()).returncode == 137
    source = folder / "source"
    source.write_bytes(secrets.token_bytes(1000))
    assert device.put(source, _soon()).name == device.put(source, _soon()).name

    ends, hangs = f"{secrets.token_hex(8)}.1", f"{secrets.token_hex(8)}.1"
    assert device.start(ends, ["sh", "-c", 'echo "$A"; exit 3'], _soon(), env={"A": "1 2"})
    assert not device.start(ends, ["true"], _soon())
    deadline = _soon()
    while device.is_alive(ends, deadline):
        time.sleep(0.02)
    assert Path(device.job_dir(ends), "stdout").read_text() == "1 2\n"
    assert Path(device.job_dir(ends), "exit").read_text() == "3\n"

    assert device.start(hangs, ["sh", "-c", "sleep 60 & sleep 60"], _soon())
    assert device.is_alive(hangs, _soon())
    device.kill(hangs, _soon())
    assert not device.is_alive(hangs, _soon())

    left, alone = f"{secrets.token_hex(8)}.1", f"{secrets.token_hex(8)}.1"
    assert device.start(left, ["sh", "-c", "sleep 60 & sleep 60"], _soon())
    assert device.start(alone, ["sleep", "60"], _soon(), alone=True)
    assert [device.is_alive(job, _soon()) for job in (left, alone)] == [False, True]
    device.kill(alone, _soon())
    script = free_room_script(device.root, 1, [])
    assert (
        device.run(["sh", "-c", "cd $1/cas; touch -t 202001010000 *", "sh", str(device.root)], _soon()).returncode == 0
    )
    assert device._query(script, _soon()).split() == ["1", "1000"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts_run_under(shell: str, tmp_path: Path) -> None:
    """Nothing beyond POSIX sh is used: dash, bash, mksh (Android) and busybox behave alike."""
    argv = SHELLS[shell]
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed here")
    device = LocalDevice(root=tmp_path / "device")
    device._transport = _ShellTransport(argv)
    with device:
        _live_through(device, tmp_path)
        info = device.probe(_soon())
    assert info.cores
    assert info.abi == os.uname().machine


def test_jobs_work_without_proc_and_setsid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: processes are told by `ps`, sessions made by Python; the contract is the same."""
    for name in ("_TABLE", "_WRAPPER"):
        monkeypatch.setattr(jobs, name, getattr(jobs, name).replace("/proc/", "/no-proc-here/"))
    device = LocalDevice(root=tmp_path / "device")
    device.setsid = shlex.join([sys.executable, "-c", local._SETSID])
    with device:
        _live_through(device, tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_job_that_comes_up_behind_a_fork_is_started(shell: str, tmp_path: Path) -> None:
    """setsid forks where it leads a group: that its first process is gone does not mean that the job is."""
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"no {shell} here")
    setsid = tmp_path / "setsid"
    setsid.write_text('#!/bin/sh\n(sleep 0.2; exec "$@") &\n')
    setsid.chmod(0o755)
    script = jobs.start_script(PurePosixPath(tmp_path), "job", ["true"], "token", str(setsid), None)
    reply = run_bounded([*SHELLS[shell], "-c", script], _soon(), device="test")
    assert (reply.returncode, reply.stdout.strip()) == (0, b"token"), reply.stderr
