"""The contract every device keeps (edgekit/benchmarks/devices/base.py): this host, a real sshd, a real adbd."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from edgekit.benchmarks.devices.base import Deadline, Launch, Needed
from edgekit.benchmarks.devices.posix import PosixDevice
from edgekit.errors import (
    CommandError,
    DeviceDiskFull,
    DeviceError,
    DeviceFileMissing,
    HostError,
    HungCommand,
    OutputLimitError,
    UserError,
)

NASTY = [
    "",
    " ",
    "a b",
    "'",
    '"',
    'it\'s "both"',
    "$(touch CANARY)",
    "`touch CANARY`",
    ";touch CANARY",
    "&& touch CANARY",
    "| touch CANARY",
    "> CANARY",
    "$HOME ${PATH} $$",
    "\\",
    "\\n\\t",
    "new\nline",
    "tab\tend",
    "*",
    "~",
    "-rf",
    "--",
    "#no comment",
    "if",
    "A=b",
    "%s%d",
    "ü ☃ 🤖",
    "!history",
    "{a,b}",
]


def _soon(seconds: float = 20.0) -> Deadline:
    return Deadline.after(seconds)


def _new_job() -> str:
    return f"{secrets.token_hex(8)}.1"


@pytest.fixture(
    params=["local_device", "ssh_device", pytest.param("board", marks=[pytest.mark.needs_root, pytest.mark.board])]
)
def device(request: pytest.FixtureRequest) -> PosixDevice:
    chosen: PosixDevice = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def job(device: PosixDevice) -> Iterator[str]:
    """The name of a job that is killed at the end, whatever the test did."""
    name = _new_job()
    yield name
    device.kill(name, _soon())


def test_arguments_arrive_as_they_were_given(device: PosixDevice) -> None:
    """argv is data: no argument is split, expanded or run, and none changes another."""
    done = device.run(["printf", "%s\\0", *NASTY], _soon())
    assert done.returncode == 0
    assert done.stdout.split("\0")[:-1] == NASTY
    assert device.run(["ls", "CANARY"], _soon()).returncode != 0


@pytest.mark.parametrize("word", ["if", "A=b", "!", "{", "cd\n", "nosuch command", "$(true)"])
def test_the_first_word_is_a_command_and_nothing_else(device: PosixDevice, word: str) -> None:
    """A keyword, assignment or expansion in front is looked up as a program: 127, and the reply is whole."""
    assert device.run([word], _soon()).returncode == 127


def test_environment_values_arrive_as_they_were_given(device: PosixDevice) -> None:
    """Environment values are data, too; a name that is not one is refused."""
    done = device.run(["sh", "-c", 'printf %s "$EDGEKIT_X"'], _soon(), env={"EDGEKIT_X": "a'b\"$(id)\n"})
    assert done.stdout == "a'b\"$(id)\n"
    with pytest.raises(UserError):
        device.run(["true"], _soon(), env={"A;id": "x"})


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 1", 1), ("exit 255", 255), ("exit 254", 254), ("kill -9 $$", 137), ("kill -SEGV $$", 139)],
)
def test_exit_status_is_the_commands_own(device: PosixDevice, script: str, status: int) -> None:
    """Every exit status comes back as it was, 128+n for a signal."""
    assert device.run(["sh", "-c", script], _soon()).returncode == status


def test_streams_are_apart_and_unchanged(device: PosixDevice) -> None:
    """stdout and stderr are separate, to the last byte; text that looks like a sentinel is only text."""
    fake = f"\n@{'0' * 32}:0@"
    done = device.run(
        ["sh", "-c", 'printf %s "$1"; printf %s "$2" >&2; exit 3', "sh", f"out{fake}", f"err{fake}"], _soon()
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"out{fake}", f"err{fake}", 3)


def test_check_raises_with_what_the_command_said(device: PosixDevice) -> None:
    """`check=True` turns a failure into CommandError carrying argv, status and both streams."""
    with pytest.raises(CommandError) as caught:
        device.run(["sh", "-c", "echo out; echo err >&2; exit 7"], _soon(), check=True)
    assert (caught.value.returncode, caught.value.stdout, caught.value.stderr) == (7, "out\n", "err\n")


@pytest.mark.parametrize("argv", [[], ["a\0b"], ["printf", "x" * 70_000]])
def test_a_command_line_no_device_takes_is_refused(device: PosixDevice, argv: list[str]) -> None:
    """Empty, with NUL (cut silently by adb), or longer than adbd takes: UserError, nothing is sent."""
    with pytest.raises(UserError):
        device.run(argv, _soon())


def test_a_command_that_hangs_ends_at_its_deadline_and_leaves_nothing(device: PosixDevice) -> None:
    """HungCommand by the deadline plus two seconds, and the command is no longer on the device."""
    mark = str(7_000_000 + secrets.randbelow(1_000_000))
    began = time.monotonic()
    with pytest.raises(HungCommand):  # not only DeviceTimeout: the device answers
        device.run(["sleep", mark], _soon(0.5))
    assert time.monotonic() - began < 2.5  # the contract: deadline + 2 s
    assert mark not in _process_arguments(device)


def test_endless_output_is_cut_off(device: PosixDevice) -> None:
    """More than 16 MiB of output is OutputLimitError, and the command that printed it is dead."""
    mark = f"y{secrets.token_hex(8)}"
    began = time.monotonic()
    with pytest.raises(OutputLimitError):
        device.run(["yes", mark], _soon(20.0))
    assert time.monotonic() - began < 15.0  # well before the deadline: it was the limit that ended it
    assert mark not in _process_arguments(device)


def _process_arguments(device: PosixDevice) -> str:
    """The command lines of all processes on the device, this one's own left out."""
    script = (
        'for f in /proc/[0-9]*/cmdline; do [ "$f" = "/proc/$$/cmdline" ] || tr "\\0" " " < "$f"; echo; done 2>/dev/null'
    )
    return device.run(["sh", "-c", script], _soon()).stdout


def test_put_stores_by_content_and_sends_once(device: PosixDevice, tmp_path: Path) -> None:
    """A file lies under its sha256, whole; a second put of the same content transfers nothing."""
    data = random.Random(0).randbytes(1_500_000)
    source = tmp_path / "model with 'quotes'; and $(more).tflite"
    source.write_bytes(data)
    sent: list[PurePosixPath] = []
    send = device._transport.send
    device._transport.send = lambda *a, **k: (sent.append(a[1]), send(*a, **k))[1]  # type: ignore[method-assign]
    try:
        path = device.put(source, _soon())
        assert device.put(source, _soon()) == path
    finally:
        del device._transport.send  # type: ignore[method-assign]
    assert path == device.root / "cas" / hashlib.sha256(data).hexdigest()
    assert len(sent) == 1
    assert device.run(["sha256sum", str(path)], _soon()).stdout.split()[0] == path.name


def test_put_leaves_no_temporary_file(device: PosixDevice, tmp_path: Path) -> None:
    """After a put, the store holds finished files only."""
    source = tmp_path / "f"
    source.write_bytes(secrets.token_bytes(1000))
    path = device.put(source, _soon())
    listed = device.run(["ls", "-a", str(device.root / "cas")], _soon()).stdout.split()
    assert path.name in listed
    assert not [name for name in listed if name.startswith(f".{path.name}")]


def test_an_emptied_file_in_the_store_is_sent_again(device: PosixDevice, tmp_path: Path) -> None:
    """A stored file whose size is wrong (a power cut after the rename) is not believed."""
    source = tmp_path / "f"
    source.write_bytes(secrets.token_bytes(2000))
    path = device.put(source, _soon())
    device.run(["sh", "-c", ': > "$1"', "sh", str(path)], _soon(), check=True)
    device.put(source, _soon())
    assert device.run(["sha256sum", str(path)], _soon()).stdout.split()[0] == path.name


def test_an_empty_file_can_be_put(device: PosixDevice, tmp_path: Path) -> None:
    """Zero bytes are a file like any other."""
    source = tmp_path / "empty"
    source.touch()
    path = device.put(source, _soon())
    assert device.run(["sh", "-c", 'wc -c < "$1"', "sh", str(path)], _soon()).stdout.strip() == "0"


def test_a_missing_source_is_the_hosts_error(device: PosixDevice, tmp_path: Path) -> None:
    """A file that is not there is said to be so, with its path."""
    with pytest.raises(HostError, match="nosuch"):
        device.put(tmp_path / "nosuch", _soon())


def test_racing_puts_of_one_file_both_succeed(device: PosixDevice, tmp_path: Path) -> None:
    """Four callers putting the same content: all get the path, the file is right."""
    source = tmp_path / "f"
    source.write_bytes(secrets.token_bytes(3_000_000))
    results: list[PurePosixPath | Exception] = []

    def put() -> None:
        try:
            results.append(device.put(source, _soon()))
        except Exception as e:
            results.append(e)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(str, results))) == 1, results
    path = str(results[0])
    assert device.run(["sha256sum", path], _soon()).stdout.split()[0] == PurePosixPath(path).name


def test_write_and_pull_carry_any_bytes(device: PosixDevice, job: str, tmp_path: Path) -> None:
    """What is written is what is pulled, into a file that was not there before or is replaced whole."""
    path = device.job_dir(job) / "data.bin"
    for data in (b"", bytes(range(256)) * 300, b"second"):
        device.write(path, data, _soon())
        device.pull(path, tmp_path / "got", _soon(), max_bytes=100_000)
        assert (tmp_path / "got").read_bytes() == data
    assert [p.name for p in tmp_path.iterdir() if "got" in p.name] == ["got"]


def test_pull_is_bounded(device: PosixDevice, job: str, tmp_path: Path) -> None:
    """A file larger than allowed is refused before it is fetched; the destination stays as it was."""
    path = device.job_dir(job) / "big"
    device.write(path, b"x" * 1001, _soon())
    (tmp_path / "got").write_bytes(b"before")
    with pytest.raises(OutputLimitError):
        device.pull(path, tmp_path / "got", _soon(), max_bytes=1000)
    assert (tmp_path / "got").read_bytes() == b"before"


def test_pull_takes_regular_files_only(device: PosixDevice, job: str, tmp_path: Path) -> None:
    """A missing file, a folder or a link is DeviceFileMissing: a device cannot hand out another file's content."""
    folder = device.job_dir(job)
    device.run(["mkdir", "-p", str(folder / "dir")], _soon(), check=True)
    device.run(["ln", "-s", "/etc/passwd", str(folder / "link")], _soon(), check=True)
    for name in ("nosuch", "dir", "link"):
        with pytest.raises(DeviceFileMissing):
            device.pull(folder / name, tmp_path / "got", _soon(), max_bytes=1 << 20)
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    "name", ["../escape", "/etc/passwd", "-rf", "a b", "", ".", "..", "a/../../b", "$(id)", "x" * 129, "a\nb"]
)
def test_names_that_leave_the_folder_are_refused(device: PosixDevice, name: str, tmp_path: Path) -> None:
    """No job and no path can be named so that it lies outside edgekit's folder or is taken for an option."""
    with pytest.raises(UserError):
        device.job_dir(name)
    outside = PurePosixPath(f"{device.root}/{name}") if not name.startswith("/") else PurePosixPath(name)
    with pytest.raises(UserError):
        device.write(outside, b"x", _soon())
    with pytest.raises(UserError):
        device.pull(outside, tmp_path / "got", _soon(), max_bytes=10)


def test_a_job_runs_detached_with_its_output_in_files(device: PosixDevice, job: str, tmp_path: Path) -> None:
    """`start` returns at once; stdout, stderr, environment and exit status are the job's own."""
    script = 'echo "out $X"; echo err >&2; sleep 0.3; exit 5'
    assert device.start(job, ["sh", "-c", script], _soon(), env={"X": "a'b c"})
    assert device.is_alive(job, _soon())
    _until_dead(device, job)
    for name, text in (("stdout", b"out a'b c\n"), ("stderr", b"err\n"), ("exit", b"5\n")):
        device.pull(device.job_dir(job) / name, tmp_path / name, _soon(), max_bytes=1000)
        assert (tmp_path / name).read_bytes() == text


def _until_dead(device: PosixDevice, job: str) -> None:
    deadline = _soon(10)
    while device.is_alive(job, deadline):
        time.sleep(0.05)


def test_of_racing_callers_one_starts_the_job(device: PosixDevice, job: str, tmp_path: Path) -> None:
    """Six callers start one job: one gets True, and the command ran once."""
    answers: list[bool] = []
    argv = ["sh", "-c", "echo ran; sleep 0.2"]
    threads = [threading.Thread(target=lambda: answers.append(device.start(job, argv, _soon()))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 5 + [True]
    _until_dead(device, job)
    device.pull(device.job_dir(job) / "stdout", tmp_path / "out", _soon(), max_bytes=1000)
    assert (tmp_path / "out").read_text() == "ran\n"


def test_a_job_is_not_started_again_after_its_end(device: PosixDevice, job: str) -> None:
    """The start lock outlives the job: the same attempt never runs twice."""
    assert device.start(job, ["true"], _soon())
    _until_dead(device, job)
    assert not device.start(job, ["true"], _soon())


RUNNER = """
for i in 1 2 3; do echo "{\\"beat\\": $i}" > p; mv p progress.json; sleep 0.3; done
cat told > result.json
"""
"""As the runner does it: lines of progress, each by rename, then a result."""


def test_launch_stays_with_a_job_to_its_result(device: PosixDevice, job: str) -> None:
    """Each new line of its progress is passed on, and the result comes with the same call."""
    lines: list[str] = []
    launch = Launch(job=job, argv=["sh", "-c", RUNNER], files={"told": b'{"a": "it\'s $HOME"}\n'})
    watched = device.launch(launch, _soon(), seconds=15, on_line=lines.append)
    assert watched.started
    assert watched.result == b'{"a": "it\'s $HOME"}\n'
    assert lines == ['{"beat": 1}', '{"beat": 2}', '{"beat": 3}']
    again = device.launch(launch, _soon(), seconds=15, on_line=lines.append)
    assert (again.started, again.result) == (False, watched.result)


def test_launch_starts_nothing_when_a_file_misses(device: PosixDevice, job: str, tmp_path: Path) -> None:
    """Files are told by path and size, folders by path; what misses is named, and there is no job."""
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    here = device.put(source, _soon())
    absent = device.stored("0" * 64)
    needed = (
        Needed(path=here, size=3),
        Needed(path=here, size=4),
        Needed(path=absent, size=3),
        Needed(path=device.root / "cas", size=None),
        Needed(path=absent, size=None),
    )
    launch = Launch(job=job, argv=["true"], needed=needed)
    watched = device.launch(launch, _soon(), seconds=1, on_line=lambda _line: None)
    assert watched.missing == (here, absent, absent)
    assert not watched.started
    assert device.start(job, ["true"], _soon())


def test_watch_ends_when_a_job_is_quiet_or_time_is_up(device: PosixDevice, job: str) -> None:
    """A job that says nothing is not waited for until the deadline; it is left as it is."""
    assert device.start(job, ["sleep", "60"], _soon())
    began = time.monotonic()
    watched = device.watch(job, _soon(60), seconds=50, on_line=lambda _line: None)
    assert watched.result is None
    assert time.monotonic() - began < 40
    assert device.watch(job, _soon(), seconds=0.3, on_line=lambda _line: None).result is None
    assert device.is_alive(job, _soon())


def test_kill_ends_the_whole_group(device: PosixDevice, job: str) -> None:
    """Children and grandchildren of the job die with it, those that ignore SIGTERM too."""
    mark = str(6_000_000 + secrets.randbelow(1_000_000))
    script = f'trap "" TERM; sleep {mark} & sh -c "sleep {mark} & wait" & wait'
    device.start(job, ["sh", "-c", script], _soon())
    time.sleep(0.2)
    assert _process_arguments(device).count(f"sleep {mark}") >= 2
    device.kill(job, _soon())
    assert not device.is_alive(job, _soon())
    assert mark not in _process_arguments(device)


def test_a_child_left_behind_keeps_the_job_alive(device: PosixDevice, job: str) -> None:
    """A job whose first process ended but whose child runs is alive, and can be killed."""
    device.start(job, ["sh", "-c", "sleep 60 & exit 0"], _soon())
    time.sleep(0.3)
    assert device.is_alive(job, _soon())
    device.kill(job, _soon())
    assert not device.is_alive(job, _soon())


def test_a_zombie_is_not_alive(local_device: PosixDevice, job: str) -> None:
    """A process of the group that ended and was never reaped does not count: `kill -0` would say it lives."""
    # python leaves the group (a session of its own), keeping a child in it that is dead and not waited for.
    script = (
        "import os, time\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0)\n"
        "os.setsid()\n"
        "open('pids.tmp', 'w').write(f'{os.getpid()} {child}')\n"
        "os.rename('pids.tmp', 'pids')\n"
        "time.sleep(60)\n"
    )
    local_device.start(job, [local_device.python, "-c", script], _soon())
    folder = Path(local_device.job_dir(job))
    _wait_for(folder / "pids")
    parent, child = map(int, (folder / "pids").read_text().split())
    leader = int((folder / "started" / "process").read_text().split()[0])
    try:
        os.kill(leader, signal.SIGKILL)
        deadline = _soon()
        while local_device.is_alive(job, _soon()) and deadline.remaining:
            time.sleep(0.02)
        state, _, group = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[:3]
        assert (state, int(group)) == ("Z", leader)
        assert not local_device.is_alive(job, _soon())
    finally:
        os.kill(parent, signal.SIGKILL)


def _wait_for(path: Path) -> None:
    deadline = _soon()
    while not path.exists():
        assert deadline.remaining, f"{path} did not appear"
        time.sleep(0.02)


def test_a_reused_pid_is_not_the_job(device: PosixDevice, job: str) -> None:
    """A job's pid that now belongs to another process (other start time, or another boot) is not the job."""
    device.start(job, ["true"], _soon())
    _until_dead(device, job)
    record = device.job_dir(job) / "started" / "process"
    boot = device.run(["cat", "/proc/sys/kernel/random/boot_id"], _soon()).stdout.strip()
    for text in (f"1 123 {boot}\n", "1 0 00000000-0000-0000-0000-000000000000\n"):
        device.run(["sh", "-c", 'printf %s "$1" > "$2"', "sh", text, str(record)], _soon(), check=True)
        assert not device.is_alive(job, _soon())


def test_a_job_that_must_be_alone_ends_what_others_left(device: PosixDevice, job: str) -> None:
    """`alone`: another job's processes are gone before this one starts; its own other starts are left alone."""
    other, again = _new_job(), f"{job}-r1"
    device.start(other, ["sh", "-c", "sleep 60 & sleep 60"], _soon())
    device.start(again, ["sleep", "60"], _soon())
    assert device.start(job, ["sleep", "60"], _soon(), alone=True)
    assert not device.start(job, ["sleep", "60"], _soon(), alone=True)
    assert [device.is_alive(name, _soon()) for name in (other, again, job)] == [False, True, True]
    device.kill(again, _soon())


def test_jobs_that_never_started_are_dead_and_can_be_killed(device: PosixDevice) -> None:
    """Asking about or killing a job nobody started is no error."""
    assert not device.is_alive(_new_job(), _soon())
    device.kill(_new_job(), _soon())


def test_probe_tells_the_facts(device: PosixDevice) -> None:
    """The facts a comparison rests on are there, and two probes agree."""
    info = device.probe(_soon())
    assert info.abi
    assert info.cores
    assert info.ram_bytes
    assert info.cpu_model
    assert info.python
    assert info.kernel
    assert info.boot_id
    assert info.fingerprint() == device.probe(_soon()).fingerprint()


@pytest.mark.needs_root
@pytest.mark.board
def test_a_full_disk_is_said_to_be_full(board: PosixDevice, tmp_path: Path) -> None:
    """No space left, in put and in write: DeviceDiskFull, nothing at the final path, no partial file kept."""
    from edgekit.benchmarks.devices.adb import AdbDevice, AdbTransport

    adb, serial = board.adb  # type: ignore[attr-defined]
    source = tmp_path / "f"
    source.write_bytes(random.Random(1).randbytes(80 << 20))  # /dev/shm on the board holds 64 MiB
    with AdbDevice(AdbTransport(adb, serial), root=PurePosixPath("/dev/shm/edgekit")) as full:
        with pytest.raises(DeviceDiskFull):
            full.put(source, _soon(60))
        assert full.run(["ls", "-A", "/dev/shm/edgekit/cas"], _soon()).stdout == ""
        full.run(["sh", "-c", "head -c 100000000 /dev/zero > /dev/shm/filler; :"], _soon())
        with pytest.raises(DeviceDiskFull):
            full.write(full.root / "jobs" / "x", b"x" * 100_000, _soon())
        with pytest.raises(DeviceDiskFull):
            full.start(_new_job(), ["true"], _soon())
        full.run(["rm", "-rf", "/dev/shm/filler", "/dev/shm/edgekit"], _soon())


def test_a_target_that_is_in_the_way_is_an_error_of_its_own(device: PosixDevice) -> None:
    """A path below a file is a plain error naming it, not a lost link that would be tried again."""
    path = device.root / "jobs" / f"{_new_job()}"
    device.write(path, b"a file", _soon())
    began = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        device.write(path / "below", b"x", _soon(5))
    assert not caught.value.retryable
    assert time.monotonic() - began < 5
