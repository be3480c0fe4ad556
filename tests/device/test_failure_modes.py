"""What goes wrong with devices, mode by mode (docs/failures.md): code, blame, hint, and that work goes on."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import pytest
from support import doubles
from support.adb_server import AdbServer
from support.fake_adbd import FakeAdbd
from support.links import meanwhile, soon
from support.proxy import Proxy

from edgekit.benchmarks.devices import launching, posix, quarantine
from edgekit.benchmarks.devices.adb import AdbDevice, AdbTransport
from edgekit.benchmarks.devices.lock import device_lock
from edgekit.benchmarks.failures import failure_of
from edgekit.benchmarks.harness import measure
from edgekit.benchmarks.journal import MemoryStore
from edgekit.benchmarks.values import Plan, Run
from edgekit.errors import Blame, DeviceError, EdgekitError, ModelCrashError

BOOT_ID = b"/proc/sys/kernel/random/boot_id"


@dataclass(kw_only=True)
class Bench:
    """A fake adbd behind a proxy behind a real adb server, and what a queue of jobs does with it."""

    server: AdbServer
    fake: FakeAdbd
    proxy: Proxy
    device: AdbDevice
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    store: MemoryStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.folder / "outputs")

    def measure(self, name: str, *, plan: Plan = doubles.QUICK, **behaviour: Any) -> Run:
        """One small model, measured by the harness."""
        artifact = doubles.artifact(self.folder / name, **behaviour)
        info = self.device.probe(soon())
        return measure(
            *(self.device, info, artifact, doubles.inputs(), plan),
            store=self.store,
            work_dir=self.folder / "work",
            runtime=doubles.DOUBLE,
        )

    def another(self, serial: str, *, place: str = "other") -> AdbDevice:
        return AdbDevice(AdbTransport(self.server.client, serial), root=PurePosixPath(self.folder / place))

    def goes_on(self) -> None:
        """The queue runs on: the next command on the device answers."""
        deadline = soon(25)
        while True:
            try:
                self.device._transport.recover(deadline)
                assert self.device.run(["echo", "on"], soon(5)).stdout == "on\n"
                return
            except DeviceError:
                assert deadline.remaining, "the device does not come back"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdbServer]:
    with AdbServer(tmp_path_factory.mktemp("adb")) as server:
        yield server


@pytest.fixture
def bench(server: AdbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(launching, "_QUIET_ROUNDS", 5)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # its python3 has numpy
    with FakeAdbd(environment={**os.environ, "PATH": path}) as fake:
        host, _, port = fake.serial.rpartition(":")
        with Proxy((host, int(port))) as proxy:
            transport = AdbTransport(server.client, f"127.0.0.1:{proxy.port}")
            with AdbDevice(transport, root=PurePosixPath(tmp_path / "device")) as device:
                yield Bench(
                    server=server, fake=fake, proxy=proxy, device=device, folder=tmp_path, monkeypatch=monkeypatch
                )


def _raised(step: Callable[[], object]) -> EdgekitError:
    """What `step` raises."""
    try:
        gave = step()
    except EdgekitError as e:
        return e
    raise AssertionError(f"no error, but {gave!r}")


# The faults. Each gives the error that a caller sees, or None where there is to be none, and heals what it broke.


def offline(bench: Bench) -> EdgekitError:
    bench.fake.mode = "mute"
    bench.proxy.cut()
    time.sleep(0.3)
    error = _raised(lambda: bench.device.probe(soon(3)))
    bench.fake.mode = "ready"
    bench.fake.cut()
    return error


def unauthorized(bench: Bench) -> EdgekitError:
    with FakeAdbd(mode="unauthorized") as locked:
        error = _raised(lambda: bench.another(locked.serial).__enter__())
        bench.server.client.run(["disconnect", locked.serial], soon())
    return error


def server_dies(bench: Bench) -> EdgekitError:
    """The server is killed under a command; it is started again once, and takes back both devices."""
    with AdbServer(bench.folder / "own") as own, FakeAdbd() as second:
        for name, value in own.variables.items():
            bench.monkeypatch.setenv(name, value)
        devices = [
            AdbDevice(AdbTransport(own.default_client, serial), root=PurePosixPath(bench.folder / f"d{n}"))
            for n, serial in enumerate((bench.fake.serial, second.serial))
        ]
        with devices[0] as one, devices[1] as two:
            killer = threading.Timer(0.5, lambda: own.signal(signal.SIGKILL))
            killer.start()
            error = _raised(lambda: one.run(["sh", "-c", "echo part; sleep 3; echo rest"], soon(10)))
            killer.join()
            answers: list[object] = []

            def ask(device: AdbDevice) -> None:
                answers.append(device.run(["echo", "back"], soon(20)).stdout)

            threads = [threading.Thread(target=ask, args=(device,)) for device in (one, two)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert answers == ["back\n"] * 2
            assert len(own.pids()) == 1
    return error


def start_race(bench: Bench) -> None:
    """Twenty clients at once find no server: all get an answer, from one server."""
    with AdbServer(bench.folder / "own") as own:
        for name, value in own.variables.items():
            bench.monkeypatch.setenv(name, value)
        own.signal(signal.SIGKILL)
        replies: list[object] = []

        def ask() -> None:
            try:
                own.default_client.start_server(soon(20))
                replies.append(own.default_client.run(["devices"], soon(20)).returncode)
            except EdgekitError as e:
                replies.append(e)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert replies == [0] * 20
        assert len(own.pids()) == 1


def adbd_dies(bench: Bench) -> EdgekitError:
    killer = threading.Timer(0.4, bench.fake.cut)
    killer.start()
    error = _raised(lambda: bench.device.run(["sh", "-c", "echo part; sleep 2"], soon(10)))
    killer.join()
    return error


def silent_link(bench: Bench) -> EdgekitError:
    bench.proxy.swallow(True)
    began = time.monotonic()
    error = _raised(lambda: bench.device.run(["true"], soon(1)))
    assert time.monotonic() - began < 3  # the contract: deadline + 2 s
    bench.proxy.swallow(False)
    bench.proxy.cut()
    return error


def short_flap(bench: Bench) -> None:
    """Five seconds of silence, then everything arrives: the command completes, with its own status."""
    healer = threading.Timer(5.0, lambda: bench.proxy.swallow(False))
    breaker = threading.Timer(0.3, lambda: bench.proxy.swallow(True))
    breaker.start()
    healer.start()
    done = bench.device.run(["sh", "-c", "sleep 1; echo whole; exit 3"], soon(20))
    healer.join()
    assert (done.stdout, done.returncode) == ("whole\n", 3)


def push_cut(bench: Bench) -> EdgekitError:
    source = bench.folder / "model"
    source.write_bytes(secrets.token_bytes(3 << 20))
    bench.proxy.cut_after(up=1 << 20, every=True)
    error = _raised(lambda: bench.device.put(source, soon(15)))
    bench.proxy.cut_after()
    stored = bench.folder / "device" / "cas"
    assert not [p for p in stored.iterdir() if not p.name.startswith(".")]  # nothing at a final path
    bench.goes_on()
    assert Path(bench.device.put(source, soon(20))).read_bytes() == source.read_bytes()
    return error


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=8m", "edgekit-test", str(folder)]
    mounted = subprocess.run(argv, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def disk_full(bench: Bench) -> EdgekitError:
    """Old files make room for a new one once, those in use never; then the disk is full."""
    bench.monkeypatch.setattr(posix, "_KEEP_SECONDS", -1.0)  # what was put just now may go as well
    files = []
    for n in range(3):
        files.append(bench.folder / f"model{n}")
        files[-1].write_bytes(secrets.token_bytes(3 << 20))
    with small_disk(bench.folder / "small") as small, bench.another(bench.fake.serial, place="small/device") as full:
        first, second = full.put(files[0], soon()), full.put(files[1], soon())
        os.utime(first, (1, 1))  # asked for longest ago, and in use by a job
        os.utime(second, (2, 2))
        full.write(full.root / "jobs" / "j.1" / "job.json", f'{{"model": "{first}"}}'.encode(), soon())
        third = full.put(files[2], soon())
        assert [Path(p).exists() for p in (first, second, third)] == [True, False, True]
        assert Path(third).read_bytes() == files[2].read_bytes()
        (small / "filler").write_bytes(b"x" * (1 << 20))
        Path(third).unlink()
        (small / "more").write_bytes(b"x" * (3 << 20))
        error = _raised(lambda: full.put(files[2], soon()))
        (small / "more").unlink()
        assert Path(full.put(files[2], soon())).exists()
    return error


def killed_for_memory(bench: Bench) -> EdgekitError | None:
    run = bench.measure("killed", crash_at=2, crash_signal=int(signal.SIGKILL))
    return failure_of(run, device=bench.device.spec)


def no_memory_to_allocate(bench: Bench) -> EdgekitError | None:
    run = bench.measure("hungry", allocate=10**15)
    return failure_of(run, device=bench.device.spec)


def model_crashes(bench: Bench) -> EdgekitError | None:
    run = bench.measure("crash", crash_at=2)
    error = failure_of(run, device=bench.device.spec)
    assert isinstance(error, ModelCrashError)
    assert error.signal == signal.SIGSEGV
    return error


def rebooted(bench: Bench) -> EdgekitError:
    """All of a job's processes end and the boot id is another: the attempt is void, the next one gives the result."""
    boot = bench.folder / "boot_id"
    boot.write_text("11111111-1111-1111-1111-111111111111\n")
    bench.fake.substitutions[BOOT_ID] = str(boot).encode()

    def reboot() -> None:
        deadline = soon(20)
        while len(doubles.loads(bench.folder / "slow")) < 2:
            assert deadline.remaining
            time.sleep(0.02)
        boot.write_text("22222222-2222-2222-2222-222222222222\n")
        for record in (bench.folder / "device" / "jobs").glob("*/started/process"):
            os.killpg(int(record.read_text().split()[0]), signal.SIGKILL)
        bench.fake.cut()

    thread = threading.Thread(target=reboot)
    thread.start()
    error = _raised(lambda: bench.measure("slow", sleep_ms=40))
    thread.join()
    (void,) = bench.store.runs.values()
    assert (void.status, void.latency_ns) == ("lost", ())
    again = bench.measure("slow", sleep_ms=5)
    assert again.status == "ok"
    return error


def hung_command(bench: Bench) -> EdgekitError:
    mark = str(9_000_000 + secrets.randbelow(1_000_000))
    error = _raised(lambda: bench.device.run(["sleep", mark], soon(1)))
    assert subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, check=False).returncode == 1
    return error


def device_never_answers(bench: Bench) -> EdgekitError:
    bench.fake.is_deaf = True
    error = _raised(lambda: bench.device.run(["true"], soon(1)))
    bench.fake.is_deaf = False
    return error


def job_past_its_timeout(bench: Bench) -> EdgekitError | None:
    run = bench.measure("stuck", sleep_ms=60_000, plan=doubles.QUICK.model_copy(update={"timeout_seconds": 1.5}))
    return failure_of(run, device=bench.device.spec)


def clock_jumps(bench: Bench) -> None:
    """The device's wall clock goes back an hour at every look: no duration is made from it."""
    (bench.folder / "jump").mkdir()
    (bench.folder / "jump" / "sitecustomize.py").write_text(
        "import time\nnow = time.time\nlooks = [0]\n"
        "def jumping():\n    looks[0] += 1\n    return now() - 3600 * looks[0]\n"
        "time.time = jumping\n"
    )
    assert bench.fake.environment is not None
    bench.fake.environment["PYTHONPATH"] = str(bench.folder / "jump")
    run = bench.measure("clock")
    assert run.status == "ok"
    assert min(run.latency_ns) > 0
    assert all(0 < ns < 60 * 10**9 for ns in run.phase_ns.values())


def flapping_link(bench: Bench) -> EdgekitError:
    """Three measurements lost within half a minute: the device rests at once, another one is measured on."""
    info = bench.device.probe(soon())
    artifact = doubles.artifact(bench.folder / "flap")

    def lose() -> object:
        options: dict[str, Any] = {"work_dir": bench.folder / "work", "runtime": doubles.DOUBLE}
        return measure(bench.device, info, artifact, doubles.inputs(), doubles.QUICK, store=bench.store, **options)

    def cut() -> None:
        bench.proxy.cut()

    bench.monkeypatch.setattr(posix, "_ATTEMPTS", 1)
    with meanwhile(cut, lambda: 0.01):
        errors = [_raised(lose) for _ in range(4)]
    assert [e.code for e in errors] == ["DEVICE_LOST", "DEVICE_LOST", "DEVICE_FLAPPING", "DEVICE_FLAPPING"]
    assert "not used for" in errors[3].message
    bench.monkeypatch.setattr(posix, "_ATTEMPTS", 4)
    with bench.another(bench.fake.serial) as other:
        elsewhere = info.model_copy(update={"serial": f"other-{secrets.token_hex(4)}"})
        options: dict[str, Any] = {"work_dir": bench.folder / "work2", "runtime": doubles.DOUBLE}
        run = measure(other, elsewhere, artifact, doubles.inputs(), doubles.QUICK, store=bench.store, **options)
        assert run.status == "ok"
    bench.goes_on()
    bench.monkeypatch.setattr(quarantine, "REST_SECONDS", 0.0)
    assert bench.measure("flap").status == "ok"
    return errors[2]


def two_serials(bench: Bench) -> EdgekitError:
    """One adbd under two names of adb: what it says of itself is the same, and so is the lock."""
    port = bench.fake.serial.rpartition(":")[2]
    with bench.another(f"localhost:{port}") as one, bench.another(f"127.0.0.1:{port}") as two:
        first, second = one.probe(soon()), two.probe(soon())
        assert first.spec != second.spec
        with device_lock(first, soon(1)):

            def take() -> None:
                with device_lock(second, soon(0.2)):
                    pass

            error = _raised(take)
        take()
    return error


def ghost(bench: Bench) -> None:
    """A job that an earlier harness left running is dead before the next one starts, with all of its children."""
    mark = str(8_000_000 + secrets.randbelow(1_000_000))
    old = f"{secrets.token_hex(8)}.1"
    bench.device.start(old, ["sh", "-c", f"sleep {mark} & sleep {mark}"], soon())
    bench.proxy.cut()
    bench.goes_on()
    assert bench.device.is_alive(old, soon())
    assert bench.measure("next").status == "ok"
    assert not bench.device.is_alive(old, soon())
    assert subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, check=False).returncode == 1


def no_pty(bench: Bench) -> None:
    """No shell asks for a terminal, so a board that can make none loses nothing."""
    assert bench.measure("plain").status == "ok"
    shells = [name for name in bench.fake.services if name.startswith("shell")]
    assert shells
    assert all(name.startswith("shell,v2,") and name.endswith(",raw") for name in shells)


def no_shell_v2(bench: Bench) -> EdgekitError:
    with FakeAdbd(features="cmd") as old:
        return _raised(lambda: bench.another(old.serial).__enter__())


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One row of docs/failures.md; `code` None is a fault that costs nothing."""

    number: int
    fault: Callable[[Bench], EdgekitError | None]
    code: str | None = None
    blame: Blame | None = None
    retryable: bool = False
    hint: str = ""


MODES = [
    Mode(number=1, fault=offline, code="DEVICE_LOST", blame=Blame.LINK, retryable=True, hint="edgekit devices"),
    Mode(number=2, fault=unauthorized, code="DEVICE_UNAUTHORIZED", blame=Blame.DEVICE, hint="Allow USB debugging"),
    Mode(number=3, fault=server_dies, code="DEVICE_LOST", blame=Blame.LINK, retryable=True, hint="edgekit devices"),
    Mode(number=4, fault=start_race),
    Mode(number=5, fault=adbd_dies, code="DEVICE_LOST", blame=Blame.LINK, retryable=True, hint="edgekit devices"),
    Mode(number=6, fault=silent_link, code="DEVICE_TIMEOUT", blame=Blame.LINK, retryable=True, hint="edgekit devices"),
    Mode(number=7, fault=short_flap),
    Mode(number=8, fault=push_cut, code="DEVICE_LOST", blame=Blame.LINK, retryable=True, hint="edgekit devices"),
    Mode(number=9, fault=disk_full, code="DEVICE_DISK_FULL", blame=Blame.DEVICE, hint="free some"),
    Mode(number=10, fault=killed_for_memory, code="OUT_OF_MEMORY", blame=Blame.MODEL, hint="edgekit convert"),
    Mode(number=10, fault=no_memory_to_allocate, code="OUT_OF_MEMORY", blame=Blame.MODEL, hint="edgekit convert"),
    Mode(number=11, fault=model_crashes, code="MODEL_CRASH", blame=Blame.MODEL, hint="edgekit inspect"),
    Mode(number=12, fault=rebooted, code="DEVICE_REBOOTED", blame=Blame.DEVICE, retryable=True, hint="same command"),
    Mode(number=14, fault=hung_command, code="HUNG_COMMAND", blame=Blame.DEVICE, hint="edgekit devices"),
    Mode(
        number=14,
        fault=device_never_answers,
        code="DEVICE_TIMEOUT",
        blame=Blame.LINK,
        retryable=True,
        hint="edgekit devices",
    ),
    Mode(number=14, fault=job_past_its_timeout, code="HUNG_COMMAND", blame=Blame.DEVICE, hint="timeout_seconds"),
    Mode(number=15, fault=clock_jumps),
    Mode(number=16, fault=flapping_link, code="DEVICE_FLAPPING", blame=Blame.LINK, hint="uhubctl"),
    Mode(number=19, fault=two_serials, code="DEVICE_BUSY", blame=Blame.DEVICE, hint="end it"),
    Mode(number=20, fault=ghost),
    Mode(number=21, fault=no_pty),
    Mode(number=22, fault=no_shell_v2, code="DEVICE_UNUSABLE", blame=Blame.DEVICE, hint="Android 7"),
]


def _with_markers(mode: Mode) -> Any:
    marks = [pytest.mark.needs_root] if mode.fault is disk_full else []
    return pytest.param(mode, id=f"{mode.number:02}-{mode.fault.__name__}", marks=marks)


@pytest.mark.parametrize("mode", [_with_markers(m) for m in MODES])
def test_a_failure_is_named_and_the_queue_goes_on(bench: Bench, mode: Mode) -> None:
    """Code, blame, whether to try again and what to do are those of docs/failures.md; the next call works."""
    error = mode.fault(bench)
    if mode.code is None:
        assert error is None
    else:
        assert error is not None
        assert (error.code, error.blame, error.retryable) == (mode.code, mode.blame, mode.retryable), error.message
        assert mode.hint in (error.hint or "")
        assert str(error)
    bench.goes_on()


def _of_edgekit(folder: Path, mark: str) -> list[list[str]]:
    """The command lines of processes on the "device" that edgekit started there."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        on_device = any(str(folder / "device") in word or mark in word for word in words)
        is_client = any(word in ("push", "pull", "shell") for word in words[:6])
        if on_device and not is_client and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(words)
    return found


def test_no_process_is_left_after_faulted_runs(bench: Bench) -> None:
    """Twenty runs with cuts, deadlines and kills: when the device is there again, nothing of them runs on."""
    rng = random.Random(20)
    mark = str(6_000_000 + secrets.randbelow(1_000_000))

    def hang() -> object:
        return bench.device.run(["sh", "-c", f"sleep {mark}; :"], soon(0.4))

    def lose() -> object:
        timer = threading.Timer(0.2, bench.proxy.cut)
        timer.start()
        try:
            return bench.device.run(["sh", "-c", f"sleep {mark}; :"], soon(10))
        finally:
            timer.join()

    def leave() -> object:
        return bench.device.start(f"{secrets.token_hex(8)}.1", ["sh", "-c", f"sleep {mark} & sleep {mark}"], soon())

    def cut_a_measurement() -> object:
        bench.proxy.cut_after(down=rng.randrange(200, 6000))
        return bench.measure(f"m{rng.randrange(4)}")

    for step in [rng.choice([hang, lose, leave, cut_a_measurement]) for _ in range(20)]:
        with contextlib.suppress(EdgekitError):
            step()
        bench.proxy.cut_after()
        bench.goes_on()
    assert bench.measure("last").status == "ok"
    assert _of_edgekit(bench.folder, mark) == []
