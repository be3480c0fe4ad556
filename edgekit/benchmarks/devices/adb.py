"""`adb` and `adb:SERIAL`: phones, tablets and boards behind the real adb client."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from edgekit.benchmarks.devices.adb_attached import (
    SERIAL,
    TCP_SERIAL,
    AttachedDevice,
    attached,
    choose,
    last_line,
    state_problem,
    unauthorized,
)
from edgekit.benchmarks.devices.adb_client import AdbClient
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.facts import PROBE_SCRIPT, device_info
from edgekit.benchmarks.devices.posix import PosixDevice
from edgekit.benchmarks.devices.script import command
from edgekit.benchmarks.devices.transport import LinkDown, OnOutput, Reply
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import (
    DeviceDiskFull,
    DeviceError,
    DeviceLost,
    DeviceUnauthorized,
    DeviceUnusable,
    OutputLimitError,
    UserError,
)

__all__ = ["DEFAULT_ROOT", "AdbDevice", "AdbTransport", "open_adb"]

DEFAULT_ROOT = PurePosixPath("/data/local/tmp/edgekit")

_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_RECOVERY_SECONDS = 20.0


class AdbTransport:
    """One device behind one adb client."""

    outlives_client = True

    def __init__(self, adb: AdbClient, serial: str) -> None:
        if not SERIAL.fullmatch(serial):
            raise UserError(f"{serial[:80]!r} cannot be an adb serial", hint="`edgekit devices` lists what is attached")
        self._adb = adb
        self._serial = serial

    @property
    def name(self) -> str:
        return self._adb.spec_of(self._serial)

    def open(self, deadline: Deadline) -> None:
        self._adb.start_server(deadline)
        row = self._row(deadline)
        if row is None and self._is_tcp():
            self._connect(deadline)
            row = self._row(deadline)
        if row is None:
            raise DeviceUnusable("is not attached", device=self.name, hint="`edgekit devices` lists what is")
        if row.state in ("offline", "connecting", "authorizing"):
            row = self._wait(deadline.within(_RECOVERY_SECONDS))
        problem = state_problem(row, spec=self.name)
        if problem is not None:
            raise problem
        self._require_shell_v2(deadline)

    def close(self) -> None:
        pass  # the server is the user's

    def recover(self, deadline: Deadline) -> None:
        self._adb.start_server(deadline)
        if self._is_tcp():
            self._connect(deadline)
        row = self._wait(deadline.within(_RECOVERY_SECONDS))
        problem = state_problem(row, spec=self.name)
        if isinstance(problem, DeviceUnauthorized):
            raise problem
        if problem is not None:
            raise DeviceLost(problem.message.removeprefix(f"{self.name}: "), device=self.name, hint=problem.hint)

    def shell(self, script: str, deadline: Deadline, *, on_output: OnOutput | None = None) -> Reply:
        reply = self._run(["shell", "-n", "-T", script], deadline, on_output=on_output)
        self._raise_if_refused(reply)
        return reply

    def send(self, source: Path, destination: PurePosixPath, deadline: Deadline) -> None:
        # -Z: no compression. Model files hardly shrink, and trying costs half the speed (measured).
        reply = self._run(["push", "-Z", str(source.absolute()), str(destination)], deadline)
        if reply.returncode == 0:
            return  # not believed: the caller hashes what arrived
        said = (reply.stderr + reply.stdout).decode("utf-8", "replace")
        if _NO_SPACE.search(said):
            raise DeviceDiskFull(
                f"no space left for {source.name}", device=self.name, hint=f"free some in {destination.parent}"
            )
        self._raise_if_refused(reply)
        if re.search(r"permission denied|read-only file system|is a directory|not a directory", said, re.IGNORECASE):
            raise DeviceError(f"cannot write {destination}: {last_line(reply)}", device=self.name)
        raise DeviceLost(f"sending {source.name} broke off: {last_line(reply)}", device=self.name)

    def receive(self, source: PurePosixPath, destination: Path, deadline: Deadline, *, max_bytes: int) -> None:
        def watch() -> None:
            if destination.exists() and destination.stat().st_size > max_bytes:
                raise OutputLimitError(f"{source} is larger than the {max_bytes} bytes allowed", device=self.name)

        reply = self._run(["pull", "-Z", str(source), str(destination.absolute())], deadline, tick=watch)
        if reply.returncode != 0 or not destination.is_file():
            self._raise_if_refused(reply)
            raise DeviceLost(f"fetching {source} broke off: {last_line(reply)}", device=self.name)
        watch()

    def _run(
        self,
        arguments: list[str],
        deadline: Deadline,
        *,
        tick: Callable[[], None] | None = None,
        on_output: OnOutput | None = None,
    ) -> Reply:
        argv = ["-s", self._serial, *arguments]
        return self._adb.run(argv, deadline, device=self.name, tick=tick, on_output=on_output)

    def _raise_if_refused(self, reply: Reply) -> None:
        """The client's own complaints, which it makes instead of running anything."""
        said = reply.stderr[-2000:].decode("utf-8", "replace")
        if reply.returncode == 0 or not re.search(r"^(adb|error): ", said, re.MULTILINE):
            return
        if "unauthorized" in said or "still authorizing" in said:
            raise unauthorized(self.name)
        hint = "check the cable; `edgekit devices` shows whether it is back"
        if re.search(r"device .*not found|device offline|no devices|cannot connect to daemon", said):
            raise LinkDown(last_line(reply), device=self.name, hint=hint)
        if re.search(r"protocol fault|closed", said):
            raise DeviceLost(last_line(reply), device=self.name, hint=hint)

    def _row(self, deadline: Deadline) -> AttachedDevice | None:
        return next((r for r in attached(self._adb, deadline) if r.serial == self._serial), None)

    def _wait(self, deadline: Deadline) -> AttachedDevice:
        """The device's row once it is in a settled state. Raises DeviceLost when it does not come back."""
        while True:
            row = self._row(deadline)
            if row is not None and row.state not in ("offline", "connecting", "authorizing"):
                return row
            if deadline.remaining <= 0.3:
                state = f"stays '{row.state}'" if row else "is gone"
                raise DeviceLost(
                    state, device=self.name, hint="check the cable; `edgekit devices` shows whether it is back"
                )
            time.sleep(0.1)

    def _is_tcp(self) -> bool:
        return TCP_SERIAL.fullmatch(self._serial) is not None

    def _connect(self, deadline: Deadline) -> None:
        """`adb connect`, to private addresses only: adbd over TCP has no authentication worth the name."""
        match = TCP_SERIAL.fullmatch(self._serial)
        if match is None:
            return
        host = match["host"].strip("[]")
        try:
            address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        except ValueError:
            address = None
        if address is None or not (address.is_private or address.is_loopback or address.is_link_local):
            raise DeviceUnusable(
                "adb over the network is only used on private addresses",
                device=self.name,
                hint="use USB, or an ssh tunnel to a port of this host, and name it 127.0.0.1:PORT",
            )
        # `adb connect` exits 0 even when it was refused; what counts is the row that appears.
        self._adb.run(["connect", self._serial], deadline.within(10.0), device=self.name)

    def _require_shell_v2(self, deadline: Deadline) -> None:
        reply = self._run(["features"], deadline)
        features = reply.stdout.decode("utf-8", "replace").split()
        if reply.returncode != 0:
            self._raise_if_refused(reply)
            raise DeviceLost(f"does not tell its features: {last_line(reply)}", device=self.name)
        if "shell_v2" not in features:
            raise DeviceUnusable(
                "its adbd is too old (no shell_v2): exit codes would be lost",
                device=self.name,
                hint="edgekit needs Android 7 or newer",
            )


class AdbDevice(PosixDevice):
    """A device behind adb."""

    kind = "adb"

    def __init__(self, transport: AdbTransport, *, spec: str | None = None, root: PurePosixPath = DEFAULT_ROOT) -> None:
        super().__init__(spec=spec or transport.name, transport=transport, root=root)

    def probe(self, deadline: Deadline) -> DeviceInfo:
        ask = command([self.python, "-c", "import platform; print(platform.python_version())"])
        text = self._query(f'{PROBE_SCRIPT}\nsay python "$({ask} 2>/dev/null)"; :', deadline)
        return device_info(text, spec=self.spec, kind=self.kind)


def open_adb(argument: str | None) -> AdbDevice:
    """The device for `adb:SERIAL` or `adb:model:NAME` (`@HOST:PORT` chooses the server), or for `adb` when exactly
    one is attached."""
    adb, serial = choose(argument)
    return AdbDevice(AdbTransport(adb, serial))
