"""Stages: made once, whole or not at all, resumed from where they stopped."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from edgekit.errors import HostError, UserError
from edgekit.pipeline.workspace import Workspace


def _count_and_write(work: Path, out: Path) -> None:
    with (work.parent.parent / "made").open("a") as f:
        f.write("x")
    (out / "value").write_text("1")


def test_a_stage_is_made_once(tmp_path: Path) -> None:
    """The same inputs give the same folder and no second run; other inputs another."""
    workspace = Workspace(tmp_path)
    first = workspace.stage("s", [1], _count_and_write)
    again = workspace.stage("s", [1], _count_and_write)
    other = workspace.stage("s", [2], _count_and_write)
    assert (first.cached, again.cached, other.cached) == (False, True, False)
    assert first.folder == again.folder != other.folder
    assert (tmp_path / "made").read_text() == "xx"


def test_a_failed_stage_leaves_its_work_and_no_output(tmp_path: Path) -> None:
    """An exception leaves nothing at the stage's place, and the next try finds the work folder."""
    workspace = Workspace(tmp_path)

    def fail(work: Path, out: Path) -> None:
        (work / "checkpoint").write_text("half")
        (out / "partial").write_text("?")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        workspace.stage("s", [1], fail)
    assert not workspace.stage_folder("s", 1).exists()

    def resume(work: Path, out: Path) -> None:
        (out / "value").write_text((work / "checkpoint").read_text())

    stage = workspace.stage("s", [1], resume)
    assert (stage.folder / "value").read_text() == "half"
    assert sorted(p.name for p in stage.folder.iterdir()) == ["stage.json", "value"]


def _slow_stage(root: str) -> None:
    def make(work: Path, out: Path) -> None:
        (out / "partial").write_text("?")
        (work / "ready").touch()
        time.sleep(60)

    Workspace(Path(root)).stage("s", [1], make)


def test_a_killed_stage_is_made_again(tmp_path: Path) -> None:
    """SIGKILL in the middle leaves no finished stage and no lock behind."""
    process = multiprocessing.get_context("spawn").Process(target=_slow_stage, args=(str(tmp_path),))
    process.start()
    folder = Workspace(tmp_path).stage_folder("s", 1)
    ready = folder.with_name(folder.name + ".work") / "ready"
    while not ready.exists():
        assert process.is_alive()
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    stage = Workspace(tmp_path).stage("s", [1], _count_and_write)
    assert not stage.cached
    assert not (stage.folder / "partial").exists()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """ENOSPC inside a stage is a host error that says where."""

    def full(work: Path, out: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "big"))

    with pytest.raises(HostError, match="no space left"):
        Workspace(tmp_path).stage("s", [1], full)


def test_runs_are_found_by_id_prefix_and_path(tmp_path: Path) -> None:
    """A run answers to its id, an unambiguous beginning, `latest` and its path; anything else names the near miss."""
    workspace = Workspace(tmp_path)
    for run_id in ("demo-aaaa", "demo-bbbb"):
        (tmp_path / run_id).mkdir()
        (tmp_path / run_id / "run.json").write_text("{}")
    workspace.point_latest("demo-bbbb")
    assert workspace.find_run("demo-a").name == "demo-aaaa"
    assert workspace.find_run("latest").name == "demo-bbbb"
    assert workspace.find_run(str(tmp_path / "demo-aaaa" / "report.json")).name == "demo-aaaa"
    with pytest.raises(UserError, match="could be any of"):
        workspace.find_run("demo")
    with pytest.raises(UserError, match="did you mean 'demo-aaaa'"):
        workspace.find_run("demo-aaab")
