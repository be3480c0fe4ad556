"""Devices for tests: this host in a folder of its own, a private sshd, and one virtual board for the whole session."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from support.sshd import Sshd, need_sshd
from xdist.scheduler import LoadScopeScheduling

from edgekit.benchmarks.devices import quarantine
from edgekit.benchmarks.devices.board import BoardDevice, board_unavailable_reason
from edgekit.benchmarks.devices.local import LocalDevice
from edgekit.benchmarks.devices.posix import PosixDevice

DEVICE_FILES = (
    *("tests/device", "tests/contract/test_device", "tests/contract/test_runtime", "tests/integration/test_benchmark"),
    *("tests/integration/test_pipeline", "tests/integration/test_readme", "tests/integration/test_wheel"),
    *("tests/integration/test_sensing", "tests/integration/test_tuning", "tests/integration/test_examples"),
    *(
        "tests/integration/test_why",
        "tests/integration/test_comparing",
        "tests/integration/test_host_rows",
        "tests/unit/test_proof",
    ),
    *("tests/unit/test_board_tree", "tests/unit/test_devices", "tests/unit/test_harness", "tests/unit/test_provision"),
    *("tests/unit/test_runner", "tests/unit/test_hostile_names", "tests/unit/test_leases", "tests/unit/test_session"),
)
"""What uses this host or the board as a device: a device serves one job at a time, so all of it runs in one worker."""


class GroupScheduling(LoadScopeScheduling):
    """With `-n`: the tests of a file stay together (they share conversions), those of the devices in one worker.

    (`--dist loadgroup` would be the same by markers; xdist 3.8 does not find them under pytest 9.2.)
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.startswith("tests/integration/test_zoo"):  # long, and its tests share nothing
            return nodeid
        return "devices" if file.startswith(DEVICE_FILES) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """How tests are given to workers."""
    return GroupScheduling(config, log)


@pytest.fixture(autouse=True)
def no_strikes(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, request: Any) -> None:
    """Links that one test breaks do not make a later test's device rest."""
    name = f"strikes-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]}"

    def folder() -> Path:
        path = tmp_path_factory.getbasetemp() / name
        path.mkdir(exist_ok=True)
        return path

    monkeypatch.setattr(quarantine, "_folder", folder)


@pytest.fixture
def local_device(tmp_path: Path) -> Iterator[LocalDevice]:
    """`local`, its files below the test's own folder."""
    with LocalDevice(root=tmp_path / "device") as device:
        yield device


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A real sshd of this session's own. Absent is a skip, or a failure in CI."""
    need_sshd()
    with Sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def ssh_device(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PosixDevice]:
    """This host behind the private sshd, its files below the test's own folder."""
    from edgekit.benchmarks.devices.ssh import SshDevice, SshTransport, parse_target

    for name, value in sshd.client(tmp_path / "client").environment().items():
        monkeypatch.setenv(name, value)
    root = PurePosixPath(tmp_path / "device")
    with SshDevice(SshTransport(parse_target("testboard")), root=root) as device:
        yield device


@pytest.fixture(scope="session")
def board() -> Iterator[BoardDevice]:
    """The virtual board, its files in the board's memory. Absent is a skip, or a failure in CI."""
    reason = board_unavailable_reason()
    if reason:
        if os.environ.get("EDGEKIT_REQUIRE_BOARD") == "1":
            pytest.fail(f"EDGEKIT_REQUIRE_BOARD=1, and no board: {reason}")
        pytest.skip(f"no virtual board: {reason}")
    with BoardDevice("amd64", root=PurePosixPath("/tmp/edgekit")) as device:
        yield device
