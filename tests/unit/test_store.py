"""The results store: nothing lost, nothing doubled."""

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from edgekit.benchmarks.values import DeviceInfo, Plan, Run, RunStatus
from edgekit.errors import StoreError
from edgekit.store import ResultStore

KEY = "a" * 64


def run_of(attempt: int, status: RunStatus = RunStatus.OK, latency: tuple[int, ...] = (10, 20)) -> Run:
    return Run(
        job_key=KEY,
        attempt=attempt,
        status=status,
        artifact_sha256="b" * 64,
        device_fingerprint="c" * 64,
        plan=Plan(),
        runner_sha256="d" * 64,
        inputs_sha256="e" * 64,
        latency_ns=latency,
    )


def test_attempt_is_journaled_before_its_result(tmp_path: Path) -> None:
    """An attempt that was begun is pending until its run is recorded, also for another process."""
    with ResultStore(tmp_path) as store:
        assert store.pending(KEY) is None
        assert store.begin(KEY) == 1
    with ResultStore(tmp_path) as again:
        assert again.pending(KEY) == 1
        again.record(run_of(1))
        assert again.pending(KEY) is None
        assert again.selected(KEY) == run_of(1)


def test_recording_twice_keeps_the_first(tmp_path: Path) -> None:
    """The same (job, attempt) is never stored twice nor overwritten."""
    with ResultStore(tmp_path) as store:
        store.begin(KEY)
        store.record(run_of(1, latency=(1,)))
        store.record(run_of(1, latency=(2,)))
        assert [run.latency_ns for run in store.attempts(KEY)] == [(1,)]


def test_the_published_run_is_the_latest_good_one(tmp_path: Path) -> None:
    """A failed attempt after a good one stays on record but is not published."""
    with ResultStore(tmp_path) as store:
        for status in (RunStatus.OK, RunStatus.OK, RunStatus.CRASHED):
            store.record(run_of(store.begin(KEY), status))
        published = store.selected(KEY)
        assert published is not None
        assert published.attempt == 2
        latest = store.latest(KEY)
        assert latest is not None
        assert latest.status is RunStatus.CRASHED
        assert len(store.attempts(KEY)) == 3


def _writer(folder: str, key: str, count: int) -> None:
    with ResultStore(Path(folder)) as store:
        for _ in range(count):
            store.record(run_of(1).model_copy(update={"job_key": key, "attempt": store.begin(key)}))


def test_many_processes_share_one_database(tmp_path: Path) -> None:
    """Concurrent writers lose no row and never see 'database is locked'."""
    ResultStore(tmp_path)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_writer, args=(str(tmp_path), KEY, 20)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    with ResultStore(tmp_path) as store:
        assert [run.attempt for run in store.attempts(KEY)] == list(range(1, 81))


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """A schema this edgekit does not know is not touched."""
    ResultStore(tmp_path)
    with sqlite3.connect(tmp_path / "results.db") as connection:
        connection.execute("UPDATE edgekit_meta SET schema_version = 99")
    with pytest.raises(StoreError, match="schema 99"):
        ResultStore(tmp_path)


def test_a_file_that_is_no_database_is_a_store_error(tmp_path: Path) -> None:
    """Garbage in place of the database is one clear error."""
    (tmp_path / "results.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="results database"):
        ResultStore(tmp_path)


def test_devices_are_kept_by_fingerprint(tmp_path: Path) -> None:
    """A device's facts come back as they were, and a reboot does not make another device of it."""
    info = DeviceInfo(spec="local", kind="local", serial="s", boot_id="1")
    with ResultStore(tmp_path) as store:
        store.remember_device(info)
        store.remember_device(info.model_copy(update={"boot_id": "2"}))
        assert store.device(info.fingerprint()) == info
