"""Properties of every parser of what devices say: a value or one of edgekit's errors, whatever the text."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import string
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.links import CALLS, soon

from edgekit.benchmarks.devices import adb_client, quarantine
from edgekit.benchmarks.devices.adb import AdbTransport
from edgekit.benchmarks.devices.adb_client import AdbClient
from edgekit.benchmarks.devices.base import Completed, Deadline, Launch
from edgekit.benchmarks.devices.posix import PosixDevice
from edgekit.benchmarks.devices.room import free_room_script
from edgekit.benchmarks.devices.script import checked_name, number, quote, unwrap
from edgekit.benchmarks.devices.ssh import parse_target
from edgekit.benchmarks.devices.transport import OnOutput, Reply
from edgekit.benchmarks.failures import failure_of, killed_for_memory
from edgekit.benchmarks.result import RunnerResult, parse_result
from edgekit.benchmarks.values import Plan, Run, RunStatus
from edgekit.benchmarks.waiting import Progress, Start, Watcher, _how_it_ended, _was_restarted, read_progress
from edgekit.errors import DeviceError, DeviceLost, DeviceUnusable, EdgekitError, InvalidResultError, UserError

NONCE = "0123456789abcdef" * 2
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "result.v2.json").read_text())
TOLD = st.one_of(
    st.text(max_size=300),
    st.lists(st.text(alphabet="0123456789 \n-²٣.abcdefx:@'\x00\x1b", max_size=40), max_size=6).map("\n".join),
    st.sampled_from(["ghost", "ghost a", "ghost a 1 2", "killed", "missing", "9" * 5000, "²", "1 2 3", "-1", "none"]),
)
"""Text of a device: any, and much that looks like numbers and answers."""
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=True, allow_infinity=True),
        st.text(max_size=20),
        st.sampled_from(["\ud800", "../../etc/passwd", "<script>", "1e999", 10**400, -1, 2**63]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


class Talker:
    """A transport whose device answers every script with the same text, ended as it should be."""

    name = "talker"
    outlives_client = True

    def __init__(self, stdout: bytes, status: int = 0, stderr: bytes = b"") -> None:
        self.stdout, self.status, self.stderr = stdout, status, stderr

    def open(self, deadline: Deadline) -> None: ...

    def close(self) -> None: ...

    def recover(self, deadline: Deadline) -> None: ...

    def shell(self, script: str, deadline: Deadline, *, on_output: OnOutput | None = None) -> Reply:
        if on_output is not None:
            on_output(self.stdout)
        found = re.search(r"@([0-9a-f]{32}):%d@", script)
        assert found is not None
        end = f"\n@{found[1]}:{self.status}@".encode()
        return Reply(returncode=0, stdout=self.stdout + end, stderr=self.stderr + end)

    def send(self, source: Path, destination: PurePosixPath, deadline: Deadline) -> None: ...

    def receive(self, source: PurePosixPath, destination: Path, deadline: Deadline, *, max_bytes: int) -> None:
        destination.write_bytes(self.stdout[:max_bytes])


def _device(told: str, status: int = 0) -> PosixDevice:
    transport = Talker(told.encode("utf-8", "surrogateescape"), status)
    return PosixDevice(spec="talker", transport=transport, root=PurePosixPath("/edgekit"))


class Sayer:
    """A device whose every command prints the same text."""

    spec = "sayer"

    def __init__(self, told: str, status: int = 0) -> None:
        self.told, self.status = told, status

    def run(self, argv: Any, deadline: Deadline, **_options: Any) -> Completed:
        return Completed(argv=tuple(argv), returncode=self.status, stdout=self.told, stderr="")

    def job_dir(self, job: str) -> PurePosixPath:
        return PurePosixPath("/edgekit/jobs") / checked_name(job)


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 255), st.data())
def test_a_reply_is_whole_or_lost(out: bytes, err: bytes, status: int, data: st.DataObject) -> None:
    """Any output comes back to the byte with its status; without any part of its end it is DeviceLost."""
    end = f"\n@{NONCE}:{status}@".encode()
    reply = unwrap(Reply(returncode=0, stdout=out + end, stderr=err + end), NONCE, "d")
    assert (reply.stdout, reply.stderr, reply.returncode) == (out, err, status)
    cut = data.draw(st.integers(1, len(out + end)))
    with pytest.raises(DeviceLost):
        unwrap(Reply(returncode=0, stdout=(out + end)[:-cut], stderr=err + end), NONCE, "d")


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_no_noise_is_a_reply(out: bytes, err: bytes) -> None:
    """Bytes that do not know the nonce are never a reply."""
    with pytest.raises(DeviceLost):
        unwrap(Reply(returncode=0, stdout=out, stderr=err), NONCE, "d")


@settings(deadline=None)
@given(TOLD, st.sampled_from([0, 1, 127, 255]))
def test_every_call_gives_a_value_or_an_error(told: str, status: int) -> None:
    """Sizes, hashes, pids, owners, process lists: what a device answers to any call never breaks the host."""
    told = told.encode("utf-8", "replace").decode()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "f"
        source.write_bytes(b"content")
        for name, call in CALLS.items():
            if name == "probe":  # facts have tests of their own
                continue
            with contextlib.suppress(EdgekitError):
                call(_device(told, status), source, soon(5))
            assert {p.name for p in Path(folder).iterdir()} <= {"f", "got"}, name


@given(TOLD)
def test_a_number_is_plain_digits(told: str) -> None:
    """Other scripts' digits, signs and endless ones are no number."""
    found = number(told)
    assert (found is None) == (re.fullmatch(r"[0-9]{1,18}", told) is None)


@settings(deadline=None)
@given(TOLD | JSON.map(lambda v: json.dumps(v)), st.sampled_from([0, 1]))
def test_progress_is_progress_or_nothing(told: str, status: int) -> None:
    """Not JSON, wrong types, NaN, depth, sizes: None; the same text never ends the wait with an exception."""
    found = read_progress(Sayer(told, status), "k.1", soon())  # type: ignore[arg-type]
    assert found is None or isinstance(found, Progress)
    _how_it_ended(Sayer(told, status), "k.1")  # type: ignore[arg-type]
    _was_restarted(Sayer(told, status), Start("k.1", [], {}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "told",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"job":"k.1","beat":NaN,"state":"running","phase":"","done":0,"total":1}',
        '{"job":"k.1","beat":1e999,"state":"running","phase":"","done":0,"total":1}',
        '{"job":"k.1","beat":true,"state":"running","phase":"","done":0,"total":1}',
        '{"job":"k.1","beat":1,"beat":2,"state":"running","phase":"","done":0,"total":1}',
        '{"job":"k.1","beat":1,"state":"running","phase":"\\ud800","done":0,"total":1}',
        '{"job":"k.1","beat":"1","state":"running","phase":"","done":0,"total":1}',
        '{"job":"k.1","beat":1,"state":"running","phase":"' + "x" * 70_000 + '","done":0,"total":1}',
        "9" * 5000,
    ],
    ids=lambda t: t[:40],
)
def test_hostile_progress_is_nothing(told: str) -> None:
    """Depth bombs, doubled keys, `true` as a number and their kin are no progress."""
    assert read_progress(Sayer(told), "k.1", soon()) is None  # type: ignore[arg-type]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, v in inner for p in _places(v, (*path, key)))]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(_places(GOLDEN)[1:]), JSON)
def test_a_result_with_any_value_changed_is_checked(path: tuple[Any, ...], value: Any) -> None:
    """Any JSON value at any place: the result is refused with the field's name, or every number in it is finite."""
    result = json.loads(json.dumps(GOLDEN))
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    _check(json.dumps(result).encode())


@settings(deadline=None)
@given(st.binary(max_size=400) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_as_a_result_are_refused(text: bytes) -> None:
    """What is not a result is InvalidResultError and nothing else."""
    assert not _check(text)


def test_the_result_that_is_changed_is_a_good_one() -> None:
    """What the properties above start from is accepted as it is."""
    assert _check(json.dumps(GOLDEN).encode())


@settings(deadline=None)
@given(TOLD | st.lists(JSON.map(lambda v: json.dumps(v)), max_size=3).map("\n".join), st.sampled_from([0, 1]))
def test_a_watched_job_is_what_was_printed_or_an_error(told: str, status: int) -> None:
    """Whatever comes from a call that waits for a job: a value or one of edgekit's errors."""
    device = _device(told, status)
    job = Launch(job="k.1", argv=("true",), env={}, needed=(), files={})
    watcher = Watcher("k.1", lambda progress: None)
    calls: list[Callable[[], object]] = [
        lambda: device.launch(job, soon(5), seconds=1, on_line=watcher),
        lambda: device.watch("k.1", soon(5), seconds=1, on_line=watcher),
    ]
    for call in calls:
        with contextlib.suppress(EdgekitError):
            call()
    for text in (f"edgekit-result {len(told)}\n{told}", f"missing {told}", f"ghost {told}", f"owner {told}"):
        with contextlib.suppress(EdgekitError):
            _device(text, status).watch("k.1", soon(5), seconds=1, on_line=watcher)


def _check(text: bytes) -> bool:
    plan = Plan(cold_starts=2, min_samples=5, warmup_min_runs=1)
    field = None
    try:
        found = parse_result(text, device="d", job="k.1", plan=plan, inputs=10)
    except InvalidResultError as e:
        field = e.field
    if field is not None:
        assert field
        return False
    assert isinstance(found, RunnerResult)
    loads = (found.before.load_average_1m, found.after.load_average_1m)
    assert all(v is None or math.isfinite(v) for v in loads)
    return True


class _Adb(AdbClient):
    """An adb program that prints the same whatever it is asked."""

    told = b""

    def run(self, *_arguments: Any, **_options: Any) -> Reply:
        return Reply(returncode=0, stdout=self.told, stderr=b"")


@given(st.binary(max_size=300) | st.sampled_from([b"shell_v2", b"cmd\nshell_v2\n", b"shell_v2x", b"xshell_v2 cmd"]))
def test_features_have_shell_v2_or_the_device_is_refused(told: bytes) -> None:
    """Only the word itself counts."""
    client = _Adb(path=Path("adb"), version=(36, 0, 0))
    object.__setattr__(client, "told", told)
    has = "shell_v2" in told.decode("utf-8", "replace").split()
    try:
        AdbTransport(client, "emulator-5554")._require_shell_v2(soon())
    except DeviceUnusable:
        assert not has
    else:
        assert has


@settings(deadline=None)
@given(
    st.binary(max_size=300)
    | st.from_regex(r"Version [0-9]{1,6}\.[0-9]{1,3}\.[0-9]{1,3}", fullmatch=True).map(str.encode)
)
def test_a_client_version_is_one_or_a_reason(told: bytes) -> None:
    """What any program prints as its version is a triple of at least platform-tools 34, or a sentence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adb_client, "run_bounded", lambda *_a, **_k: Reply(returncode=0, stdout=told, stderr=b""))
        found = adb_client._version.__wrapped__(Path("adb"), 0)
    assert isinstance(found, str) or (len(found) == 3 and found[0] >= adb_client.MIN_PLATFORM_TOOLS)


@given(st.text(max_size=40) | st.text(alphabet=string.ascii_letters + "-@:[].%0123456789 ;$('\n", max_size=30))
def test_a_target_is_a_plain_name_or_refused(text: str) -> None:
    """Nothing that a program could take for an option, and nothing that a shell reads, becomes a host or user."""
    try:
        target = parse_target(text)
    except UserError:
        return
    for part in (target.host, target.user or "x"):
        assert not part.startswith("-")
        assert re.fullmatch(r"[A-Za-z0-9._:%$-]+", part)
    assert target.port is None or 0 < target.port < 65536


@given(st.text(alphabet=st.characters(exclude_characters="\0"), max_size=60))
def test_any_word_is_one_word_of_a_shell(word: str) -> None:
    """Quotes close and open as POSIX says: between them everything is itself."""
    inner = quote(word)
    parts = re.findall(r"'([^']*)'|\"(')\"", inner)
    assert "".join(a or b for a, b in parts) == word
    assert re.fullmatch(r"(?:'[^']*'|\"'\")+", inner, re.DOTALL)


@given(st.text(max_size=40))
def test_a_checked_name_stays_in_its_folder(name: str) -> None:
    """A name that passes is one path component, and no option."""
    try:
        checked_name(name)
    except UserError:
        return
    assert PurePosixPath(name).parts == (name,)
    assert name[0] not in ".-"


@given(st.sampled_from(RunStatus), st.none() | st.text(max_size=200) | st.from_regex(r"died by SIG[A-Z]{1,6}"))
def test_every_run_that_failed_has_an_error(status: RunStatus, error: str | None) -> None:
    """Whatever a runner said, the failure has a code, a hint and the device's name; a run that is ok has none."""
    run = Run(
        job_key="k",
        attempt=1,
        status=status,
        error=error,
        artifact_sha256="a",
        device_fingerprint="d",
        plan=Plan(),
        runner_sha256="r",
        inputs_sha256="i",
    )
    found = failure_of(run, device="adb:x")
    assert (found is None) == (status is RunStatus.OK)
    if found is not None:
        assert isinstance(found, DeviceError)
        assert found.hint
        assert found.device == "adb:x"


@given(TOLD | st.just("[1.0] Out of memory: Killed process 7 (python3)\x1b[31m total-vm:1kB"))
def test_the_log_of_a_device_is_one_clean_line(told: str) -> None:
    """Of a device's log at most 300 printable characters are kept."""
    said = killed_for_memory(Sayer(told))  # type: ignore[arg-type]
    assert said is None or (said.isprintable() and len(said) <= 300)


@given(st.binary(max_size=200))
def test_a_strike_file_of_noise_breaks_nothing(noise: bytes) -> None:
    """Whatever lies where the strikes are kept, the rest is between none and the longest."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "strikes"
        path.write_bytes(noise)
        assert 0 <= quarantine._rest_left(quarantine._read(path)) <= quarantine.REST_SECONDS


def test_signals_keep_their_numbers() -> None:
    """A crash is told with the signal that the runner named."""
    common = {"job_key": "k", "attempt": 1, "artifact_sha256": "a", "device_fingerprint": "d", "runner_sha256": "r"}
    run = Run(
        **common, inputs_sha256="i", plan=Plan(), status=RunStatus.CRASHED, error="warm: the process died by SIGABRT"
    )
    error = failure_of(run, device="d")
    assert (error.code, getattr(error, "signal", None)) == ("MODEL_CRASH", signal.SIGABRT)  # type: ignore[union-attr]


def test_room_is_made_only_of_stored_files(tmp_path: Path) -> None:
    """Names that are no sha256, files of a job and kept ones stay; the oldest others go until there is room."""
    import os
    import subprocess

    cas = tmp_path / "ed 'ge$(kit)" / "cas"
    (cas.parent / "jobs" / "j.1").mkdir(parents=True)
    cas.mkdir()
    names = {n: f"{n:064x}" for n in range(1, 6)}
    for n, name in names.items():
        (cas / name).write_bytes(b"x" * 1000)
        os.utime(cas / name, (n, n))
    (cas / "readme").write_text("not ours")
    os.utime(cas / "readme", (0, 0))
    (cas.parent / "jobs" / "j.1" / "job.json").write_text(json.dumps({"model": str(cas / names[1])}))
    script = free_room_script(PurePosixPath(cas.parent), 1500, [names[2]])
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "2000"]
    assert sorted(p.name for p in cas.iterdir()) == sorted([names[1], names[2], names[5], "readme"])
