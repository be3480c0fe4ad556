"""What adb servers list: the rows of `adb devices -l`, what each state means, and which row a spec names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.benchmarks.devices.adb_client import AdbClient, find_adb
from edgekit.benchmarks.devices.adb_server import checked_server, chosen_servers
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.transport import Reply
from edgekit.errors import DeviceLost, DeviceUnauthorized, DeviceUnusable, UserError

__all__ = [
    "SERIAL",
    "TCP_SERIAL",
    "AdbChoice",
    "AttachedDevice",
    "attached",
    "choose",
    "last_line",
    "matches",
    "parse_choice",
    "parse_devices",
    "state_problem",
    "unauthorized",
]

SERIAL = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:%\[\]-]{0,127}")
TCP_SERIAL = re.compile(r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.%]+\]):(?P<port>[0-9]{1,5})")

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,99}")
_ROW = re.compile(
    r"(?P<serial>\S.*?)\s+(?P<state>device|offline|unauthorized|authorizing|connecting|bootloader|recovery|rescue|"
    r"sideload|host|detached|unknown|no permissions)(?P<rest>[\s;].*)?"
)
_LIST_SECONDS = 15.0
_MAX_ROW, _MAX_ROWS = 1000, 512


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
        row = _parse_row(line[:_MAX_ROW])
        if row is not None and row.serial not in {r.serial for r in rows}:
            rows.append(row)
        if len(rows) == _MAX_ROWS:
            break
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


def state_problem(row: AttachedDevice, *, spec: str | None = None) -> DeviceUnusable | None:
    """Why a device in this state cannot be measured on, or None."""
    spec, state = spec or f"adb:{row.serial}", row.state
    if not SERIAL.fullmatch(row.serial):
        return DeviceUnusable(
            "its serial holds characters that cannot be passed on safely", device=spec, hint="use another cable or port"
        )
    if state == "device":
        return None
    if state in ("unauthorized", "authorizing"):
        return unauthorized(spec)
    is_tcp = TCP_SERIAL.fullmatch(row.serial) is not None
    replug = "check that it is on and in this network" if is_tcp else "unplug it and plug it in again"
    hints = {
        "offline": f"{replug}, then `adb reconnect {row.serial}`",
        "no permissions": "install the udev rules (`apt install android-sdk-platform-tools-common`)",
        "connecting": "wait a few seconds",
        "recovery": "restart it into Android",
        "sideload": "restart it into Android",
        "rescue": "restart it into Android",
        "bootloader": "`fastboot reboot`",
    }
    causes = {
        "offline": "adb had it and gets no answer from it any more",
        "no permissions": "this account may not open its USB port",
        "connecting": "adb is still talking to it for the first time",
    }
    cause = causes.get(state, f"adb lists it as '{state}'")
    return DeviceUnusable(cause, device=spec, hint=hints.get(state, "restart it"))


def unauthorized(spec: str) -> DeviceUnauthorized:
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
        raise _no_list(adb, last_line(reply))
    return parse_devices(reply.stdout.decode("utf-8", "replace"))


def _no_list(adb: AdbClient, said: str) -> DeviceLost:
    """The error for a server that gives no list."""
    if adb.server_name is None:
        return DeviceLost(f"`adb devices` failed: {said}", device="adb", hint="`adb kill-server`, then again")
    host, _, port = adb.server_name.rpartition(":")
    start = f"`adb -P {port} start-server`"
    is_here = host in ("localhost", "127.0.0.1", "[::1]")
    hint = start if is_here else f"{start} on {host}; it listens there only, so `ssh -L {port}:localhost:{port} {host}`"
    why = said.rpartition(": ")[2]
    return DeviceLost(f"the adb server {adb.server_name} does not answer: {why}", device="adb", hint=hint)


def last_line(reply: Reply) -> str:
    lines = (reply.stderr or reply.stdout).decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else f"exit status {reply.returncode}, nothing said"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdbChoice:
    """What the part after `adb:` names; all None is the only one attached."""

    serial: str | None = None
    model: str | None = None
    server: str | None = None


def parse_choice(argument: str | None) -> AdbChoice:
    """`SERIAL`, `model:NAME` or nothing, each with `@HOST:PORT` behind it. Raises UserError for what is none."""
    rest, separator, server = (argument or "").rpartition("@")
    if not separator:
        rest, server = argument or "", ""
    found = checked_server(server) if separator else None
    if not rest:
        return AdbChoice(server=found)
    kind, colon, model = rest.partition(":")
    if colon and kind == "model":
        if not _MODEL.fullmatch(model):
            raise UserError(
                f"{model[:80]!r} cannot be a model", hint="`edgekit devices` shows models: adb:model:Pixel_8"
            )
        return AdbChoice(model=model, server=found)
    if not SERIAL.fullmatch(rest):
        raise UserError(f"{rest[:80]!r} cannot be an adb serial", hint="`edgekit devices` lists what is attached")
    return AdbChoice(serial=rest, server=found)


def matches(choice: AdbChoice, row: AttachedDevice) -> bool:
    """Whether this row of the chosen server is meant. Models are compared as adb writes them (`Pixel 8`, `Pixel_8`)."""
    if choice.model is not None:
        return row.model is not None and _plain(row.model) == _plain(choice.model)
    return choice.serial is None or choice.serial == row.serial


def _plain(model: str) -> str:
    return re.sub(r"[^a-z0-9]", "_", model.lower())


def choose(argument: str | None) -> tuple[AdbClient, str]:
    """The client and serial that `adb:argument` names. Raises DeviceUnusable, listing what there is, unless one fits.

    A serial on the only server is not looked up: it may be an address that is yet to be connected to.
    """
    choice = parse_choice(argument)
    clients = [find_adb(server=server) for server in ((choice.server,) if choice.server else chosen_servers())]
    if choice.serial is not None and len(clients) == 1:
        return clients[0], choice.serial
    deadline = Deadline.after(_LIST_SECONDS)
    rows = [(adb, row) for adb in clients for row in attached(adb, deadline)]
    found = [(adb, row) for adb, row in rows if matches(choice, row)]
    if len(found) == 1:
        return found[0][0], found[0][1].serial
    if choice.serial is not None and not found and TCP_SERIAL.fullmatch(choice.serial):
        return clients[0], choice.serial
    raise _not_one(choice, rows, found)


def _not_one(
    choice: AdbChoice, rows: list[tuple[AdbClient, AttachedDevice]], found: list[tuple[AdbClient, AttachedDevice]]
) -> DeviceUnusable:
    """The error that lists what fits, or what is attached when nothing fits."""
    listed = ", ".join(
        adb.spec_of(row.serial) + (f" ({row.model})" if row.model else "") for adb, row in (found or rows)[:20]
    )
    what = f" with the model '{choice.model}'" if choice.model else ""
    hint = "name one: adb:SERIAL" if rows else "plug one in, or use `local`"
    if found:
        said = f"{len(found)} devices{what} are attached ({listed})"
    elif choice.serial:
        said = f"{choice.serial} is not attached" + (f"; there are {listed}" if rows else "")
    else:
        said = f"no device{what} is attached" + (f"; there are {listed}" if rows else "")
    return DeviceUnusable(said, device="adb", hint=hint)
