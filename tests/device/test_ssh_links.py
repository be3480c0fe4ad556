"""Bad links: cuts, holes and restarts between edgekit and a real sshd."""

from __future__ import annotations

import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from support.links import (
    again,
    calls,
    check_that_a_job_survives,
    check_that_a_lost_start_starts_once,
    check_that_a_put_gives_up,
    meanwhile,
    outcomes,
    soon,
)
from support.proxy import Proxy
from support.sshd import Sshd

from edgekit.benchmarks.devices.base import Launch
from edgekit.benchmarks.devices.ssh import SshDevice, SshTransport, parse_target
from edgekit.errors import DeviceDiskFull, DeviceLost, DeviceTimeout
from edgekit.schema import sha256_of


@pytest.fixture
def proxy(sshd: Sshd) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", sshd.port)) as proxy:
        yield proxy


@pytest.fixture
def far(sshd: Sshd, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshDevice]:
    """This host behind sshd, behind the proxy."""
    for name, value in sshd.client(tmp_path / "client", port=proxy.port).environment().items():
        monkeypatch.setenv(name, value)
    with SshDevice(SshTransport(parse_target("testboard")), root=PurePosixPath(tmp_path / "device")) as device:
        yield device


def test_a_reply_cut_anywhere_is_never_taken_for_whole(far: SshDevice, proxy: Proxy, tmp_path: Path) -> None:
    """Whatever byte of the stream a reset follows: DeviceLost, or the whole reply. The command never runs twice."""
    text = "0123456789" * 30
    ran = tmp_path / "ran"
    whole = cut = 0
    # The session, the reply and its sentinels come to about 800 bytes downstream, so every region is hit. A cut before
    # the script is sent is made good by a new connection; one after it is an error, because the command may have run.
    for position in range(1, 860, 13):
        proxy.cut_after(down=position)
        script = 'echo "$1" >> "$2"; printf %s "$3"'
        try:
            done = far.run(["sh", "-c", script, "sh", str(position), str(ran), text], soon(10))
        except DeviceLost:
            cut += 1
            again(far)
        else:
            assert (done.stdout, done.stderr, done.returncode) == (text, "", 0)
            whole += 1
        proxy.cut_after()
    times = ran.read_text().split()
    assert len(times) == len(set(times))
    assert cut >= 20, (cut, whole)
    assert whole >= 5, (cut, whole)


def test_a_cut_push_leaves_nothing_at_the_final_path(far: SshDevice, proxy: Proxy, tmp_path: Path) -> None:
    """Cut in the middle, once: the put is tried again, the file is whole, and the partial one is removed."""
    source = tmp_path / "f"
    source.write_bytes(secrets.token_bytes(6 << 20))
    cas = Path(far.root) / "cas"
    seen: set[str] = set()

    def look() -> None:
        for path in cas.glob("[!.]*"):
            seen.add("whole" if sha256_of(path) == path.name else f"{path} is not whole")

    with meanwhile(look, lambda: 0.02):
        proxy.cut_after(up=3 << 20)
        path = far.put(source, soon(60))
    assert proxy.cuts == 1
    assert seen <= {"whole"}
    assert [p.name for p in cas.iterdir()] == [path.name]


def test_a_push_that_never_gets_through_gives_up(far: SshDevice, proxy: Proxy, tmp_path: Path) -> None:
    """A link that is always cut: an error by the deadline, and no file at the final path."""
    source = tmp_path / "f"
    source.write_bytes(secrets.token_bytes(3 << 20))
    check_that_a_put_gives_up(far, proxy, source)
    assert not (Path(far.root) / "cas" / sha256_of(source)).exists()


def test_a_cut_pull_leaves_no_file_or_the_whole_one(far: SshDevice, proxy: Proxy, tmp_path: Path) -> None:
    """Cut while a file comes back: fetched again, whole, and nothing beside it."""
    data = secrets.token_bytes(4 << 20)
    source = far.root / "jobs" / "big"
    far.write(source, data, soon())
    proxy.cut_after(down=2 << 20)
    far.pull(source, tmp_path / "in" / "got", soon(60), max_bytes=1 << 23)
    assert proxy.cuts == 1
    assert (tmp_path / "in" / "got").read_bytes() == data
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["got"]


def test_a_job_survives_the_loss_of_the_link(far: SshDevice, proxy: Proxy, tmp_path: Path) -> None:
    """A cut cable does not end a measurement: the job goes on, ran once, and its output is pulled later."""
    check_that_a_job_survives(far, proxy, tmp_path)


def test_a_start_whose_answer_was_lost_starts_once(far: SshDevice, proxy: Proxy, tmp_path: Path) -> None:
    """The link is cut while the answer to `start` comes back: it is asked again, and the job ran once, by us."""
    check_that_a_lost_start_starts_once(far, proxy, tmp_path, positions=(100, 250, 400))


def test_no_call_outlives_its_deadline_on_a_dead_link(far: SshDevice, proxy: Proxy, tmp_path: Path) -> None:
    """A link that swallows everything: each call, a new connection too, raises by its deadline plus two seconds."""
    source = tmp_path / "f"
    source.write_bytes(secrets.token_bytes(100_000))
    far.write(far.root / "jobs" / "x", b"y", soon())  # the file session is there before the hole is
    proxy.swallow(True)
    transport = far._transport
    steps = calls(far, source)
    steps["send"] = lambda: transport.send(source, far.root / "cas" / ".x", soon(0.7))
    steps["receive"] = lambda: transport.receive(far.root / "jobs" / "x", tmp_path / "raw", soon(0.7), max_bytes=10)
    fresh = SshTransport(parse_target("testboard"))
    steps["open"] = lambda: fresh.open(soon(0.7))
    for name, (outcome, seconds) in outcomes(steps).items():
        assert isinstance(outcome, (DeviceTimeout, DeviceLost)), (name, outcome)
        assert outcome.retryable
        assert seconds < 2.7, name  # the contract: deadline + 2 s
    fresh.close()
    proxy.swallow(False)
    proxy.cut()
    again(far)


@pytest.mark.slow
def test_a_silent_link_is_noticed_and_replaced(far: SshDevice, proxy: Proxy) -> None:
    """After a hole that no reset told of, a call with time enough finds the link dead and makes a new one."""
    proxy.swallow(True)
    ended = threading.Event()

    def heal() -> None:
        # new connections pass again; the old one's bytes are gone, as after a board was carried to another room
        ended.wait(12)
        proxy.swallow(False)

    healer = threading.Thread(target=heal)
    healer.start()
    began = time.monotonic()
    assert not far.is_alive("nobody.1", soon(60))
    assert time.monotonic() - began < 40
    ended.set()
    healer.join()


def test_a_trickle_ends_at_the_deadline(far: SshDevice) -> None:
    """Output that keeps coming does not move the deadline."""
    began = time.monotonic()
    with pytest.raises(DeviceTimeout):
        far.run(["sh", "-c", "while :; do echo x; sleep 0.1; done"], soon(1.0))
    assert time.monotonic() - began < 3.0  # the contract: deadline + 2 s


def test_a_session_that_is_killed_on_the_device_is_a_lost_link(far: SshDevice) -> None:
    """sshd's process for the connection dies under a command: DeviceLost, and the next query connects again."""
    # the command's ancestors: sh, sh, (login shell), then sshd's process for this connection
    script = (
        "p=$PPID; while [ $p -gt 1 ]; do "
        'case $(cat /proc/$p/comm) in sshd*) kill -9 $p; sleep 5; esac; p=$(cut -d" " -f4 /proc/$p/stat); done'
    )
    with pytest.raises(DeviceLost):
        far.run(["sh", "-c", script], soon(10))
    assert far.probe(soon()).abi


def test_a_file_session_that_ends_alone_is_begunagain(far: SshDevice, tmp_path: Path) -> None:
    """The device's sftp-server dies, the connection lives: the next transfer begins a new one."""
    path = far.root / "jobs" / "x"
    far.write(path, b"before", soon())
    # the one that serves this connection: a sibling of the command's session below the same sshd
    script = (
        "p=$PPID; while [ $p -gt 1 ]; do case $(cat /proc/$p/comm) in sshd*) "
        'pkill -9 -P $p sftp-server && echo killed; exit;; esac; p=$(cut -d" " -f4 /proc/$p/stat); done'
    )
    assert far.run(["sh", "-c", script], soon()).stdout == "killed\n"
    far.write(path, b"after", soon())
    far.pull(path, tmp_path / "got", soon(), max_bytes=10)
    assert (tmp_path / "got").read_bytes() == b"after"


def test_a_server_that_is_away_for_a_while_is_waited_for(far: SshDevice, sshd: Sshd, proxy: Proxy) -> None:
    """The board restarts its sshd: idempotent calls go on when it is back."""
    sshd.stop()
    proxy.cut()
    timer = threading.Timer(1.5, sshd.start)
    timer.start()
    try:
        assert far.probe(soon(30)).abi
    finally:
        timer.join()


def test_many_calls_at_once_share_one_connection(far: SshDevice, proxy: Proxy) -> None:
    """Thirty commands at once, more than sshd allows sessions: each gets its own answer, over one login."""
    answers: dict[int, str] = {}

    def ask(n: int) -> None:
        answers[n] = far.run(["sh", "-c", "sleep 0.1; echo $1", "sh", str(n)], soon(40)).stdout

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: f"{n}\n" for n in range(30)}
    assert proxy.accepted == 1


def test_nothing_runs_on_after_it_was_given_up(far: SshDevice) -> None:
    """No ghost: a command that was given up at its deadline is dead on the device."""
    mark = str(8_000_000 + secrets.randbelow(1_000_000))
    with pytest.raises(DeviceTimeout):
        far.run(["sh", "-c", f"sleep {mark}; echo done"], soon(0.5))
    assert subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True).returncode == 1


@pytest.mark.needs_root
def test_a_full_disk_is_said_to_be_full(far: SshDevice, tmp_path: Path) -> None:
    """No space left, in put, start and launch: DeviceDiskFull, nothing at the final path, no partial file kept."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "edgekit-test", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode()}")
    try:
        source = tmp_path / "f"
        source.write_bytes(secrets.token_bytes(12 << 20))
        with SshDevice(SshTransport(parse_target("testboard")), root=PurePosixPath(place / "device")) as full:
            with pytest.raises(DeviceDiskFull):
                full.put(source, soon(60))
            assert list((place / "device" / "cas").iterdir()) == []
            full.run(["sh", "-c", 'head -c 20000000 /dev/zero > "$1"; :', "sh", str(place / "filler")], soon())
            with pytest.raises(DeviceDiskFull):
                full.write(full.root / "jobs" / "x", b"x" * 100_000, soon())
            with pytest.raises(DeviceDiskFull):
                full.start(f"{secrets.token_hex(8)}.1", ["true"], soon())
            job = Launch(job=f"{secrets.token_hex(8)}.1", argv=("true",), files={"job.json": b"{}"})
            with pytest.raises(DeviceDiskFull):
                full.launch(job, soon(), seconds=0.5, on_line=lambda _line: None)
    finally:
        subprocess.run(["umount", str(place)], check=True)
