"""Devices for tests: this host in a folder of its own, and one virtual board for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from edgekit.benchmarks.devices.board import BoardDevice, board_unavailable_reason
from edgekit.benchmarks.devices.local import LocalDevice


@pytest.fixture
def local_device(tmp_path: Path) -> Iterator[LocalDevice]:
    """`local`, its files below the test's own folder."""
    with LocalDevice(root=tmp_path / "device") as device:
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
