"""What the harness needs of a results store, and a store in memory that keeps the same promises."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edgekit.benchmarks.values import Run, RunStatus

__all__ = ["MemoryStore", "Store", "StoreView"]


class Store(Protocol):
    """Attempts are journaled before they start and recorded once; see `edgekit.store.ResultStore`."""

    def selected(self, job_key: str) -> Run | None:
        """The run that is published for this job: its latest attempt that ended well, if any."""

    def pending(self, job_key: str) -> int | None:
        """The latest attempt that was begun and never recorded, if any."""

    def begin(self, job_key: str) -> int:
        """The number of a new attempt, journaled before anything happens on a device."""

    def record(self, run: Run) -> None:
        """Keep `run`; doing so again for the same (job, attempt) changes nothing."""

    def outputs_path(self, sha256: str) -> Path:
        """Where the outputs file with this hash lies, or is to be put."""

    def check(self) -> None:
        """Raise LeaseLost when this process may not use the device any more; called before each look at it."""


class StoreView:
    """A store seen through another: every call goes on to `store`, but what a subclass does itself."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def selected(self, job_key: str) -> Run | None:
        return self._store.selected(job_key)

    def pending(self, job_key: str) -> int | None:
        return self._store.pending(job_key)

    def begin(self, job_key: str) -> int:
        return self._store.begin(job_key)

    def record(self, run: Run) -> None:
        self._store.record(run)

    def outputs_path(self, sha256: str) -> Path:
        return self._store.outputs_path(sha256)

    def check(self) -> None:
        self._store.check()


class MemoryStore:
    """A store for tests and one-off measurements: forgets everything when the process ends, but the outputs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begun: dict[str, int] = {}
        self.runs: dict[tuple[str, int], Run] = {}

    def selected(self, job_key: str) -> Run | None:
        mine = {n: run for (key, n), run in self.runs.items() if key == job_key and run.status is RunStatus.OK}
        return mine[max(mine)] if mine else None

    def pending(self, job_key: str) -> int | None:
        latest = self._begun.get(job_key)
        return latest if latest is not None and (job_key, latest) not in self.runs else None

    def begin(self, job_key: str) -> int:
        self._begun[job_key] = self._begun.get(job_key, 0) + 1
        return self._begun[job_key]

    def record(self, run: Run) -> None:
        self.runs.setdefault((run.job_key, run.attempt), run)

    def outputs_path(self, sha256: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{sha256}.npz"

    def check(self) -> None:
        """No other process knows of this store: there is nothing to lose."""
