"""Leases: one device has one user, whatever is killed or stopped, and what comes too late is not published."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support import doubles
from support.postgres import Postgres, postgres_unavailable_reason

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.lease import LeaseTiming, hold_device, holder
from edgekit.benchmarks.devices.local import LocalDevice
from edgekit.benchmarks.devices.lock import device_lock
from edgekit.benchmarks.harness import measure
from edgekit.benchmarks.journal import MemoryStore
from edgekit.benchmarks.values import DeviceInfo, Plan, Run, RunStatus
from edgekit.database import SCHEMA_VERSION
from edgekit.errors import DeviceBusy, LeaseLost
from edgekit.leases import Fence, Leases, Owner
from edgekit.store import ResultStore

KEY = "a" * 64
GOLDEN = Path(__file__).parents[1] / "golden" / "results.v1.sql"
QUICK = LeaseTiming(beat_seconds=0.2, expiry_seconds=1.0)

HOLDER = """
import sys, time
from pathlib import Path
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.lease import LeaseTiming, hold_device
from edgekit.benchmarks.values import DeviceInfo, Plan, Run, RunStatus
from edgekit.errors import LeaseLost
from edgekit.store import ResultStore
KEY = "a" * 64
info = DeviceInfo(spec="local", kind="local", serial="s")
with ResultStore(Path(sys.argv[1]), url=sys.argv[2] or None) as store:
    with hold_device(info, Deadline.after(20), store, timing=LeaseTiming(beat_seconds=0.2, expiry_seconds=1.0)) as held:
        number = held.begin(KEY)
        print("held", flush=True)
        sys.stdin.readline()
        run = Run(job_key=KEY, attempt=number, status=RunStatus.OK, artifact_sha256="b" * 64, latency_ns=(7,),
                  device_fingerprint="c" * 64, plan=Plan(), runner_sha256="d" * 64, inputs_sha256="e" * 64)
        try:
            held.record(run)
            print("recorded", flush=True)
        except LeaseLost as e:
            print("lost", e.blame, e.code, flush=True)
"""

FIGHTER = """
import os, sys
from pathlib import Path
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.lease import LeaseTiming, hold_device
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import DeviceBusy
from edgekit.store import ResultStore
folder, url, rounds = Path(sys.argv[1]), sys.argv[2] or None, int(sys.argv[3])
info = DeviceInfo(spec="local", kind="local", serial="s")
timing = LeaseTiming(beat_seconds=0.2, expiry_seconds=1.0)
won = 0
with ResultStore(folder, url=url) as store:
    for _ in range(rounds):
        try:
            with hold_device(info, Deadline.after(0.05), store, timing=timing):
                inside = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)  # fails where another is inside
                won += 1
                os.close(inside)
                os.unlink(folder / "inside")
        except DeviceBusy:
            pass
print(won)
"""


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    reason = postgres_unavailable_reason()
    if reason:
        pytest.skip(f"no PostgreSQL: {reason}")
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Each kind of database; empty for SQLite."""
    return "" if request.param == "sqlite" else request.getfixturevalue("postgres").new_database()


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's locks in the test's own folder, for this process and its children."""
    import tempfile

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def info_of(serial: str = "s") -> DeviceInfo:
    return DeviceInfo(spec="local", kind="local", serial=serial)


def run_of(attempt: int) -> Run:
    return Run(
        job_key=KEY,
        attempt=attempt,
        status=RunStatus.OK,
        artifact_sha256="b" * 64,
        device_fingerprint="c" * 64,
        plan=Plan(),
        runner_sha256="d" * 64,
        inputs_sha256="e" * 64,
        latency_ns=(1,),
    )


@contextmanager
def holding(folder: Path, url: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the device and has begun an attempt; it records when a line comes in."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def say(process: subprocess.Popen[str]) -> str:
    """What the holder answers when it is told to record."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def elsewhere(owner: Owner) -> Owner:
    """The same owner as it looks from another host."""
    return replace(owner, host="elsewhere", place="p" * 32)


def test_a_busy_device_names_its_holder(tmp_path: Path, url: str) -> None:
    """DeviceBusy says process, user, host and since when; `holder` says the same; after it the device is free."""
    with ResultStore(tmp_path, url=url or None) as store, holding(tmp_path, url) as process:
        with (
            pytest.raises(DeviceBusy, match=rf"process {process.pid} of .* on .*, since 20..-") as caught,
            hold_device(info_of(), Deadline.after(0.1), store, timing=QUICK),
        ):
            pass
        assert caught.value.hint
        found = holder(store, info_of())
        assert found is not None
        assert found.owner.pid == process.pid
        with hold_device(info_of("other"), Deadline.after(0.1), store, timing=QUICK):
            pass
        assert say(process) == "recorded"
        process.wait()
        assert holder(store, info_of()) is None
        with hold_device(info_of(), Deadline.after(1), store, timing=QUICK):
            pass


def test_a_killed_holder_is_taken_over_at_once(tmp_path: Path, url: str) -> None:
    """The lease of a dead process of this host is free without waiting for its expiry, and the token grows."""
    with ResultStore(tmp_path, url=url or None) as store, holding(tmp_path, url) as process:
        before = store.leases.held()[0].token
        process.kill()
        process.wait()
        assert holder(store, info_of()) is None
        with hold_device(info_of(), Deadline.after(0), store, timing=QUICK):
            assert store.leases.held()[0].token == before + 1


def test_a_stopped_holder_loses_its_lease_and_its_late_run_is_not_published(tmp_path: Path, url: str) -> None:
    """SIGSTOP past the expiry: taken over; the zombie's record is refused, and its run is kept apart, flagged."""
    with ResultStore(tmp_path, url=url or None) as store, holding(tmp_path, url) as process:
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with hold_device(info_of(), Deadline.after(0.1), store, timing=QUICK) as held:
            assert time.monotonic() - began > 0.8  # its expiry less a beat
            process.send_signal(signal.SIGCONT)
            assert say(process) == "lost host LEASE_LOST"
            assert store.selected(KEY) is None
            assert store.pending(KEY) == 1
            (late,) = store.late(KEY)
            assert late.latency_ns == (7,)
            assert "not published" in late.flags[-1]
            held.record(run_of(1))
        published = store.selected(KEY)
        assert published is not None
        assert published.latency_ns == (1,)


def test_two_processes_never_hold_one_device(tmp_path: Path, url: str) -> None:
    """300 attempts by two processes, without the host's lock in common: nobody enters where another is inside."""
    workers = []
    for name in "ab":
        (tmp_path / name).mkdir()
        workers.append(
            subprocess.Popen(
                [sys.executable, "-c", FIGHTER, str(tmp_path), url, "150"],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "TMPDIR": str(tmp_path / name)},
            )
        )
    won = [int(worker.communicate()[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert min(won) > 0
    with ResultStore(tmp_path, url=url or None) as store:
        assert store.leases.held() == ()


def test_a_silent_owner_elsewhere_is_watched_past_the_deadline(tmp_path: Path) -> None:
    """An owner on another host cannot be asked: its silence for the expiry decides, not the caller's short deadline."""
    with ResultStore(tmp_path) as store:
        away = elsewhere(Owner.this_process())
        first = store.leases.acquire("s", "adb:x", away, expiry_seconds=1.0)
        assert isinstance(first, Fence)
        began = time.monotonic()
        with hold_device(info_of(), Deadline.after(0), store, timing=QUICK):
            assert time.monotonic() - began >= 1.0
            with pytest.raises(LeaseLost, match="stood still"):
                store.leases.beat(first)
            assert not store.leases.release(first)


def test_a_beating_owner_elsewhere_is_busy(tmp_path: Path) -> None:
    """One beat within the expiry shows that it lives: DeviceBusy, whatever the clocks of the two hosts say."""
    with ResultStore(tmp_path) as store:
        fence = store.leases.acquire("s", "adb:x", elsewhere(Owner.this_process()), expiry_seconds=30.0)
        assert isinstance(fence, Fence)
        with sqlite3.connect(tmp_path / "results.db") as connection:  # its clock is decades behind
            connection.execute("UPDATE leases SET since = '1970-01-01T00:00:00+00:00'")
        from threading import Timer

        beat = Timer(0.3, store.leases.beat, [fence])
        beat.start()
        with pytest.raises(DeviceBusy, match="elsewhere"), hold_device(info_of(), Deadline.after(0), store):
            pass
        beat.join()


def test_a_reused_pid_does_not_keep_a_lease(tmp_path: Path) -> None:
    """A living process with the owner's pid that began at another time is not the owner."""
    with ResultStore(tmp_path) as store:
        gone = replace(Owner.this_process(), start="1")
        assert isinstance(store.leases.acquire("s", "local", gone, expiry_seconds=30.0), Fence)
        assert isinstance(store.leases.acquire("s", "local", Owner.this_process(), expiry_seconds=30.0), Fence)


def test_two_workspaces_of_one_host_share_the_hosts_lock(tmp_path: Path) -> None:
    """Where two stores know nothing of each other the lock file still keeps one device to one; no lease is left."""
    with ResultStore(tmp_path / "a") as store, device_lock(info_of(), Deadline.after(1)):
        with pytest.raises(DeviceBusy, match=str(os.getpid())), hold_device(info_of(), Deadline.after(0.1), store):
            pass
        assert store.leases.held() == ()
        memory = MemoryStore(tmp_path / "m")
        with pytest.raises(DeviceBusy, match=str(os.getpid())), hold_device(info_of(), Deadline.after(0.1), memory):
            pass


def test_an_evicted_owner_finishes_nothing(tmp_path: Path) -> None:
    """`evict` frees the device by hand and says who had it; that process begins and records nothing any more."""
    with ResultStore(tmp_path) as store:
        with hold_device(info_of(), Deadline.after(1), store, timing=QUICK) as held:
            number = held.begin(KEY)
            evicted = store.leases.evict("s")
            assert evicted is not None
            assert evicted.owner.pid == os.getpid()
            with pytest.raises(LeaseLost):
                held.begin(KEY)
            with pytest.raises(LeaseLost):
                held.record(run_of(number))
            time.sleep(3 * QUICK.beat_seconds)  # `check` knows it from the next beat on
            with pytest.raises(LeaseLost):
                held.check()
        assert store.selected(KEY) is None
        assert store.leases.evict("s") is None


def test_the_late_run_of_a_recorded_attempt_is_not_kept_again(tmp_path: Path) -> None:
    """Once the rightful owner has recorded the attempt, the zombie's run of it is the same run: nothing is added."""
    with ResultStore(tmp_path) as store:
        number = store.begin(KEY)
        store.record(run_of(number))
        with pytest.raises(LeaseLost):
            store.record(run_of(number), fence=Fence(device=Leases.key("s"), token=1))
        assert store.late(KEY) == ()


def test_a_measurement_gives_up_while_it_waits(local_device: LocalDevice, tmp_path: Path) -> None:
    """A harness whose lease is gone ends at its next look; the job's result is collected by the next holder."""
    artifact = doubles.artifact(tmp_path / "model", sleep_ms=30)
    info = local_device.probe(Deadline.after(30))
    where = {"work_dir": tmp_path / "work", "runtime": doubles.DOUBLE}
    with ResultStore(tmp_path / "store") as store:

        def evict(_phase: str, _part: float) -> None:
            store.leases.evict(info.serial)

        with (
            hold_device(info, Deadline.after(5), store, timing=QUICK) as held,
            pytest.raises(LeaseLost),
        ):
            measure(
                local_device,
                info,
                artifact,
                doubles.inputs(),
                doubles.QUICK.model_copy(update={"min_samples": 100}),
                store=held,
                on_progress=evict,
                **where,  # type: ignore[arg-type]
            )
        with hold_device(info, Deadline.after(5), store, timing=QUICK) as held:
            run = measure(
                local_device,
                info,
                artifact,
                doubles.inputs(),
                doubles.QUICK.model_copy(update={"min_samples": 100}),
                store=held,
                **where,  # type: ignore[arg-type]
            )
        assert (run.status, run.attempt) == (RunStatus.OK, 1)
        assert store.selected(run.job_key) == run
        assert store.leases.held() == ()


def test_a_database_of_schema_1_goes_on(tmp_path: Path) -> None:
    """What the first edgekit wrote is read, and gains the tables of leases, once; nothing of it changes."""
    with sqlite3.connect(tmp_path / "results.db") as old:
        old.executescript(GOLDEN.read_text())
    for _ in range(2):
        with ResultStore(tmp_path) as store:
            (run,) = store.attempts(KEY)
            assert store.selected(KEY) == run
            assert run.latency_ns == (10, 20)
            assert store.pending(KEY) == 2
            info = DeviceInfo(spec="local", kind="local", serial="s")
            with hold_device(info, Deadline.after(5), store):
                assert holder(store, info) is not None
    with sqlite3.connect(tmp_path / "results.db") as new:
        assert new.execute("SELECT schema_version FROM edgekit_meta").fetchall() == [(SCHEMA_VERSION,)]


def test_stopped_and_dead_processes_are_told_apart() -> None:
    """Only a process that can go on by itself counts as running; a zombie is dead."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    process = subprocess.Popen([sleep, "60"])
    from edgekit.benchmarks.devices.process import process_start

    found = process_start(process.pid)
    assert found is not None
    owner = replace(Owner.this_process(), pid=process.pid, start=found.start)
    assert owner.state() == "running"
    process.send_signal(signal.SIGSTOP)
    deadline = Deadline.after(5)
    while owner.state() == "running" and deadline.remaining:
        time.sleep(0.01)
    assert owner.state() == "unknown"
    process.kill()
    while owner.state() != "dead" and deadline.remaining:  # a zombie: nobody has waited for it
        time.sleep(0.01)
    assert owner.state() == "dead"
    process.wait()
    assert owner.state() == "dead"
    assert elsewhere(owner).state() == "unknown"
