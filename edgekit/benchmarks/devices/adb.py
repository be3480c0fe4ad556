"""`adb` and `adb:SERIAL`: phones, tablets and boards behind the real adb client."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgekit.benchmarks.devices.adb_client import AdbClient, find_adb
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

__all__ = [
    "DEFAULT_ROOT",
    "AdbDevice",
    "AdbTransport",
    "AttachedDevice",
    "attached",
    "open_adb",
    "parse_devices",
    "state_problem",
]

DEFAULT_ROOT = PurePosixPath("/data/local/tmp/edgekit")

_SERIAL = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:%\[\]-]{0,127}")
_TCP_SERIAL = re.compile(r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.%]+\]):(?P<port>[0-9]{1,5})")
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_ROW = re.compile(
    r"(?P<serial>\S.*?)\s+(?P<state>device|offline|unauthorized|authorizing|connecting|bootloader|recovery|rescue|"
    r"sideload|host|detached|unknown|no permissions)(?P<rest>[\s;].*)?"
)
_RECOVERY_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedDevice:
    """One row of `adb devices -l`."""

    serial: str
    state: str
    model: str | None = None
    transport_id: int | None = None


def parse_devices(text: str) -> tuple[AttachedDevice, ...]:
    """The rows of `adb devices -l`. A row that is not one is left out; values are only shown, never run."""
    rows: list[AttachedDevice] = []
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("List of devices attached"):
            break
    for line in lines:
        row = _parse_row(line)
        if row is not None and row.serial not in {r.serial for r in rows}:
            rows.append(row)
    return tuple(rows)


def _parse_row(line: str) -> AttachedDevice | None:
    """`SERIAL STATE [usb:…] [product:…] [model:…] [device:…] [transport_id:N]`; a state may hold spaces."""
    match = _ROW.fullmatch(line.strip())
    if match is None or not match["serial"].isprintable():
        return None
    words = (match["rest"] or "").split()
    last = re.fullmatch(r"transport_id:([0-9]{1,9})", words[-1]) if words else None
    models = [w.removeprefix("model:") for w in words if w.startswith("model:")]
    return AttachedDevice(
        serial=match["serial"][:128],
        state=match["state"],
        model=models[-1][:100] if models else None,
        transport_id=int(last[1]) if last else None,
    )


def state_problem(row: AttachedDevice) -> DeviceUnusable | None:
    """Why a device in this state cannot be measured on, or None."""
    spec, state = f"adb:{row.serial}", row.state
    if not _SERIAL.fullmatch(row.serial):
        return DeviceUnusable(
            "its serial holds characters that cannot be passed on safely", device=spec, hint="use another cable or port"
        )
    if state == "device":
        return None
    if state in ("unauthorized", "authorizing"):
        return _unauthorized(spec)
    hints = {
        "offline": f"unplug it and plug it in again, or `adb reconnect {row.serial}`",
        "no permissions": "install the udev rules (`apt install android-sdk-platform-tools-common`)",
        "connecting": "wait a few seconds",
        "recovery": "restart it into Android",
        "sideload": "restart it into Android",
        "rescue": "restart it into Android",
        "bootloader": "`fastboot reboot`",
    }
    return DeviceUnusable(f"is in state '{state}'", device=spec, hint=hints.get(state, "restart it"))


def _unauthorized(spec: str) -> DeviceUnauthorized:
    return DeviceUnauthorized(
        "is waiting for permission to debug",
        device=spec,
        hint="unlock the screen and accept 'Allow USB debugging'; if no question appears, "
        "revoke USB debugging authorizations in the developer options and plug it in again",
    )


def attached(adb: AdbClient, deadline: Deadline) -> tuple[AttachedDevice, ...]:
    """What `adb devices -l` lists now."""
    adb.start_server(deadline)
    reply = adb.run(["devices", "-l"], deadline)
    if reply.returncode != 0:
        raise DeviceLost(
            f"`adb devices` failed: {_last_line(reply)}", device="adb", hint="`adb kill-server`, then again"
        )
    return parse_devices(reply.stdout.decode("utf-8", "replace"))


def _last_line(reply: Reply) -> str:
    lines = (reply.stderr or reply.stdout).decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else f"exit status {reply.returncode}, nothing said"


class AdbTransport:
    """One device behind one adb client."""

    outlives_client = True

    def __init__(self, adb: AdbClient, serial: str) -> None:
        if not _SERIAL.fullmatch(serial):
            raise UserError(f"{serial[:80]!r} cannot be an adb serial", hint="`edgekit devices` lists what is attached")
        self._adb = adb
        self._serial = serial

    @property
    def name(self) -> str:
        return f"adb:{self._serial}"

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
        problem = state_problem(row)
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
        problem = state_problem(row)
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
            raise DeviceError(f"cannot write {destination}: {_last_line(reply)}", device=self.name)
        raise DeviceLost(f"sending {source.name} broke off: {_last_line(reply)}", device=self.name)

    def receive(self, source: PurePosixPath, destination: Path, deadline: Deadline, *, max_bytes: int) -> None:
        def watch() -> None:
            if destination.exists() and destination.stat().st_size > max_bytes:
                raise OutputLimitError(f"{source} is larger than the {max_bytes} bytes allowed", device=self.name)

        reply = self._run(["pull", "-Z", str(source), str(destination.absolute())], deadline, tick=watch)
        if reply.returncode != 0 or not destination.is_file():
            self._raise_if_refused(reply)
            raise DeviceLost(f"fetching {source} broke off: {_last_line(reply)}", device=self.name)
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
            raise _unauthorized(self.name)
        hint = "check the cable; `edgekit devices` shows whether it is back"
        if re.search(r"device .*not found|device offline|no devices|cannot connect to daemon", said):
            raise LinkDown(_last_line(reply), device=self.name, hint=hint)
        if re.search(r"protocol fault|closed", said):
            raise DeviceLost(_last_line(reply), device=self.name, hint=hint)

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
        return _TCP_SERIAL.fullmatch(self._serial) is not None

    def _connect(self, deadline: Deadline) -> None:
        """`adb connect`, to private addresses only: adbd over TCP has no authentication worth the name."""
        match = _TCP_SERIAL.fullmatch(self._serial)
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
            raise DeviceLost(f"does not tell its features: {_last_line(reply)}", device=self.name)
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
    """The device for `adb:SERIAL`, or for `adb` when exactly one is attached."""
    adb = find_adb()
    if argument is not None:
        return AdbDevice(AdbTransport(adb, argument))
    rows = attached(adb, Deadline.after(15.0))
    if len(rows) != 1:
        names = ", ".join(f"adb:{r.serial}" for r in rows)
        said = f"{len(rows)} devices are attached ({names})" if rows else "no device is attached"
        raise DeviceUnusable(said, device="adb", hint="name one: adb:SERIAL" if rows else "plug one in, or use `local`")
    return AdbDevice(AdbTransport(adb, rows[0].serial))
