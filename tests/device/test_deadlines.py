"""No call outlives its deadline by more than two seconds, whatever the link or the device does.

Twelve calls over adb and the same over ssh, each under six faults: 144 cases, eight at a time.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from support.adb_server import AdbServer
from support.fake_adbd import FakeAdbd
from support.links import CALLS, again, meanwhile, soon
from support.proxy import Proxy
from support.sshd import Sshd, need_sshd

from edgekit.benchmarks.devices.adb import AdbDevice, AdbTransport
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.posix import PosixDevice
from edgekit.benchmarks.devices.ssh import SshDevice, SshTransport, parse_target
from edgekit.benchmarks.devices.transport import Transport
from edgekit.errors import EdgekitError

SECONDS = 1.0
AT_ONCE = 8
SLACK = 2.0
"""What the contract allows beyond a deadline (`edgekit.benchmarks.devices.base`)."""


@dataclass(kw_only=True)
class Link:
    """A device, and what can be done to the way there."""

    device: PosixDevice
    proxy: Proxy
    processes: Callable[[], list[int]]
    """Who carries the link: the adb server, or sshd and its sessions."""
    flood: Callable[[bool], None]
    """Makes the device print without end."""
    fresh: Callable[[], Transport]
    """A transport to the same device that was not opened yet."""


@contextmanager
def adb_link(folder: Path, _patch: pytest.MonkeyPatch) -> Iterator[Link]:
    with ExitStack() as stack:
        server = stack.enter_context(AdbServer(folder / "adb"))
        fake = stack.enter_context(FakeAdbd())
        proxy = stack.enter_context(Proxy(("127.0.0.1", int(fake.serial.rpartition(":")[2]))))
        serial = f"127.0.0.1:{proxy.port}"
        device = AdbDevice(AdbTransport(server.client, serial), root=PurePosixPath(folder / "device"))
        stack.enter_context(device)

        def flood(on: bool) -> None:
            fake.is_endless = on

        yield Link(
            device=device,
            proxy=proxy,
            processes=server.pids,
            flood=flood,
            fresh=lambda: AdbTransport(server.client, serial),
        )


@contextmanager
def ssh_link(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Link]:
    need_sshd()
    flag = folder / "flood"
    settings = f'ForceCommand [ -e {flag} ] && exec yes; exec sh -c "$SSH_ORIGINAL_COMMAND"'
    with ExitStack() as stack:
        sshd = stack.enter_context(Sshd(folder / "sshd", settings=settings))
        proxy = stack.enter_context(Proxy(("127.0.0.1", sshd.port)))
        for name, value in sshd.client(folder / "client", port=proxy.port).environment().items():
            patch.setenv(name, value)
        device = SshDevice(SshTransport(parse_target("testboard")), root=PurePosixPath(folder / "device"))
        stack.enter_context(device)

        def flood(on: bool) -> None:
            flag.touch() if on else flag.unlink()

        yield Link(
            device=device,
            proxy=proxy,
            processes=sshd.pids,
            flood=flood,
            fresh=lambda: SshTransport(parse_target("testboard")),
        )


@contextmanager
def blackhole(link: Link) -> Iterator[None]:
    link.proxy.swallow(True)
    yield
    link.proxy.swallow(False)


@contextmanager
def drip(link: Link) -> Iterator[None]:
    link.proxy.drip(True)
    yield
    link.proxy.drip(False)


@contextmanager
def stopped(link: Link) -> Iterator[None]:
    pids = link.processes()
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    yield
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def endless(link: Link) -> Iterator[None]:
    link.flood(True)
    yield
    link.flood(False)


@contextmanager
def reset(link: Link) -> Iterator[None]:
    with meanwhile(link.proxy.cut, lambda: 0.03):
        yield


@contextmanager
def ended(link: Link) -> Iterator[None]:
    with meanwhile(lambda: link.proxy.cut(reset=False), lambda: 0.03):
        yield


FAULTS = (blackhole, drip, stopped, endless, reset, ended)


def _steps(link: Link, source: Path) -> dict[str, Callable[[Deadline], object]]:
    """The calls of a device and of its transport, each told only its deadline."""
    device, transport = link.device, link.device._transport

    def opened(deadline: Deadline) -> None:
        fresh = link.fresh()
        try:
            fresh.open(deadline)
        finally:
            fresh.close()

    partial = device.root / "cas" / f".{secrets.token_hex(8)}"
    there = device.root / "jobs" / "x"
    got = source.with_name("received")
    return {
        **{name: lambda t, call=call: call(device, source, t) for name, call in CALLS.items()},
        "open": opened,
        "recover": transport.recover,
        "send": lambda t: transport.send(source, partial, t),
        "receive": lambda t: transport.receive(there, got, t, max_bytes=1 << 20),
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("make", [adb_link, ssh_link], ids=["adb", "ssh"])
def test_no_call_outlives_its_deadline(
    make: Callable[..., object], fault: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call returns or raises one of edgekit's errors by its deadline plus two seconds; then the link works."""
    source = tmp_path / "f"
    source.write_bytes(secrets.token_bytes(300_000))
    with make(tmp_path, monkeypatch) as link:  # type: ignore[attr-defined]
        link.device.write(link.device.root / "jobs" / "x", b"y", soon())
        steps = _steps(link, source)
        assert len(steps) == 12

        def timed(step: Callable[[Deadline], object]) -> tuple[float, object]:
            began, outcome = time.monotonic(), None
            try:
                step(Deadline.after(SECONDS))
            except Exception as e:
                outcome = e
            return time.monotonic() - began, outcome

        with fault(link), ThreadPoolExecutor(AT_ONCE) as pool:  # type: ignore[attr-defined]
            found = dict(zip(steps, pool.map(timed, steps.values()), strict=True))
        assert {name: took for name, (took, _) in found.items() if took > SECONDS + SLACK} == {}
        bad = {n: e for n, (_, e) in found.items() if e is not None and not isinstance(e, EdgekitError)}
        assert bad == {}
        if fault is not endless:  # there, a small file may well arrive
            assert any(e is not None for _, e in found.values())
        link.proxy.cut()
        again(link.device)
