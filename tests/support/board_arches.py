"""Virtual boards of every architecture in tests: which can run here, and the trees that are built already."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekit.benchmarks.devices.board import board_unavailable_reason
from edgekit.benchmarks.devices.board_arch import ARCHES
from edgekit.benchmarks.devices.board_records import boards_folder
from edgekit.benchmarks.devices.board_tree import recipe_id


def require_arch(arch: str) -> None:
    """Skip where boards of `arch` cannot run; fail in CI."""
    reason = board_unavailable_reason(arch)
    if reason and os.environ.get("EDGEKIT_REQUIRE_BOARD") == "1":
        pytest.fail(f"EDGEKIT_REQUIRE_BOARD=1, and no {arch} board: {reason}")
    if reason:
        pytest.skip(f"no {arch} board: {reason}")


def tree_folders() -> list[Path]:
    """The trees in this host's cache, so that a test's own cache can link to them."""
    return [path for path in (boards_folder() / recipe_id(arch) for arch in ARCHES) if path.is_dir()]
