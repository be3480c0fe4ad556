"""The folder a run works in: stages by content, results, and one folder a run.

runs/
  stages/<name>-<key>/          a finished stage's outputs; appears by rename, never changed afterwards
  stages/<name>-<key>.work/     what an unfinished stage resumes from
  results.db, outputs/          every measurement (edgekit.store)
  <run id>/                     run.json, artifacts/, report.html, report.json, report.md
  latest -> <run id>
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.disk import disk_errors_explained
from edgekit.errors import UserError
from edgekit.schema import Record, digest, near_miss, read_record, write_atomically

__all__ = ["Stage", "StageRecord", "Workspace"]

_log = logging.getLogger(__name__)
KEY_LENGTH = 16


class StageRecord(Record):
    """`stage.json`: what a finished stage was."""

    schema_version: Literal[1] = 1
    name: str
    key: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A finished stage: where its outputs lie, and whether they were there before."""

    name: str
    key: str
    folder: Path
    cached: bool
    seconds: float


class Workspace:
    """A folder of stages, results and runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages = root / "stages"
        with disk_errors_explained(root):
            if root.exists() and not root.is_dir():
                raise UserError(f"{root}: the workspace must be a folder")
            self.stages.mkdir(parents=True, exist_ok=True)

    def stage_folder(self, name: str, *inputs: object) -> Path:
        """Where the stage `name` with these inputs lies once finished."""
        return self.stages / f"{name}-{digest(name, *inputs)[:KEY_LENGTH]}"

    def stage(self, name: str, inputs: list[object], make: Callable[[Path, Path], None]) -> Stage:
        """The finished stage `name` for `inputs`, made by `make(work, out)` unless it is there already.

        `work` survives a kill and is where `make` keeps what it resumes from; `out` starts empty and becomes
        the stage's folder by rename. Two processes that want one stage make it once.
        """
        folder = self.stage_folder(name, *inputs)
        done = self._finished(folder)
        if done is None:
            with disk_errors_explained(folder), _lock(folder.with_name(folder.name + ".lock")):
                done = self._finished(folder)
                if done is None:
                    return self._make(name, folder, make)
        return Stage(name=name, key=done.key, folder=folder, cached=True, seconds=done.seconds)

    def _finished(self, folder: Path) -> StageRecord | None:
        try:
            return read_record(StageRecord, folder / "stage.json")
        except FileNotFoundError:
            return None
        except ValueError as e:
            _log.warning("stage %s is unreadable and is made again: %s", folder.name, e)
            return None

    def _make(self, name: str, folder: Path, make: Callable[[Path, Path], None]) -> Stage:
        work = folder.with_name(folder.name + ".work")
        out = work / "out"
        if out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True)
        started = time.monotonic()
        make(work, out)
        record = StageRecord(name=name, key=folder.name.rpartition("-")[2], seconds=time.monotonic() - started)
        write_atomically(out / "stage.json", record.model_dump_json(indent=2) + "\n")
        if folder.exists():  # unreadable, or it would have been found
            shutil.rmtree(folder)
        os.replace(out, folder)
        shutil.rmtree(work)
        return Stage(name=name, key=record.key, folder=folder, cached=False, seconds=record.seconds)

    def run_folder(self, run_id: str) -> Path:
        return self.root / run_id

    def point_latest(self, run_id: str) -> None:
        """Make `latest` name this run."""
        link = self.root / f".latest.{os.getpid()}"
        with suppress(FileNotFoundError):
            link.unlink()
        link.symlink_to(run_id)
        os.replace(link, self.root / "latest")

    def run_ids(self) -> tuple[str, ...]:
        """Every run here, oldest first."""
        found = [p for p in self.root.glob("*/run.json") if not p.parent.is_symlink()]
        return tuple(p.parent.name for p in sorted(found, key=lambda p: p.stat().st_mtime))

    def find_run(self, reference: str) -> Path:
        """The folder of a run named by id, unambiguous beginning of one, `latest`, or path."""
        path = Path(reference)
        for candidate in (path, path.parent, self.root / reference):
            if (candidate / "run.json").is_file() or (candidate / "report.json").is_file():
                return candidate.resolve()
        ids = self.run_ids()
        matches = [run_id for run_id in ids if run_id.startswith(reference)]
        if len(matches) == 1:
            return self.root / matches[0]
        if len(matches) > 1:
            raise UserError(f"'{reference}' could be any of: {', '.join(matches)}")
        known = near_miss(reference, [*ids, "latest"]) if ids else "there are no runs yet"
        raise UserError(f"no run '{reference}' in {self.root}; {known}", hint="`edgekit run RECIPE` makes one")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield
    # the lock file stays: removing it would let a third process lock another file of the same name
