"""`edgekit devices`: what is attached or in the inventory, in what health, and why a thing cannot be used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekit.benchmarks.devices.adb_attached import TCP_SERIAL, AttachedDevice, attached, parse_choice, state_problem
from edgekit.benchmarks.devices.adb_attached import matches as row_matches
from edgekit.benchmarks.devices.adb_client import AdbClient, find_adb
from edgekit.benchmarks.devices.adb_server import chosen_servers
from edgekit.benchmarks.devices.base import Deadline, Device
from edgekit.benchmarks.devices.health import Floors, health_problems, health_warnings, python_problem
from edgekit.benchmarks.devices.inventory import InventoryEntry, entry_of, load_inventory
from edgekit.benchmarks.devices.parallel import in_parallel
from edgekit.benchmarks.devices.posix import PosixDevice
from edgekit.benchmarks.devices.registry import device_lock, open_device, resolve
from edgekit.benchmarks.devices.state import read_state
from edgekit.benchmarks.values import DeviceInfo, DeviceState, DeviceStatus
from edgekit.errors import DeviceBusy, DeviceError, EdgekitError, UserError

__all__ = ["list_devices"]

_LIST_SECONDS = 20.0
_CONNECT_SECONDS = 20.0
_PROBE_SECONDS = 15.0

_STATES = {
    "DEVICE_BATTERY_LOW": "battery low",
    "DEVICE_BUSY": "busy",
    "DEVICE_DISK_FULL": "no space",
    "DEVICE_LOST": "unreachable",
    "DEVICE_NO_PYTHON": "no python",
    "DEVICE_TIMEOUT": "unreachable",
    "DEVICE_TOO_HOT": "too hot",
    "DEVICE_UNAUTHORIZED": "unauthorized",
    "HOST_KEY_CHANGED": "host key changed",
    "HOST_KEY_UNKNOWN": "host key unknown",
}

_REMEDIES = {
    "unreachable": "check the cable or the network; unplug it and plug it in again, or restart it",
    "unusable": "`edgekit --debug devices` shows what was tried",
}
"""Where the error itself has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """One thing to ask: what opens it, its row in an adb server's list, and its entry in the inventory."""

    spec: str
    name: str | None = None
    entry: InventoryEntry | None = None
    row: AttachedDevice | None = None
    server: str | None = None

    @property
    def floors(self) -> Floors:
        return self.entry.floors if self.entry else Floors()

    @property
    def is_tcp(self) -> bool:
        kind, _, argument = self.spec.partition(":")
        serial = self.row.serial if self.row else argument.partition("@")[0]
        return kind == "adb" and TCP_SERIAL.fullmatch(serial) is not None

    def status(self, state: str, **values: object) -> DeviceStatus:
        """A status of this thing."""
        about: dict[str, object] = {"spec": self.spec, "state": state, "name": self.name, "server": self.server}
        if self.row is not None:
            about["model"] = self.row.model
        if self.entry is not None:
            about |= {"tags": self.entry.tags, "notes": self.entry.notes}
        return DeviceStatus.model_validate({**about, "usable": False, **values})

    def sick(self, error: EdgekitError, *, state: str | None = None, **values: object) -> DeviceStatus:
        """A status that says why it cannot be used."""
        reason = error.message.removeprefix(f"{error.device}: ") if isinstance(error, DeviceError) else error.message
        word = state or _STATES.get(error.code, "unusable")
        hint = error.hint or _REMEDIES.get(word)
        return self.status(word, code=error.code, reason=reason, hint=hint, **values)


def list_devices(probe: bool = True, named: Sequence[str] = ()) -> tuple[DeviceStatus, ...]:
    """This host, what the adb servers list, the inventory's devices and the virtual board; or those `named`.

    `probe` reads the facts and the state of those that are ready, several at a time. The board is not started for
    that unless it is named; of hosts behind ssh, those are asked that are named or in the inventory. A device that is
    reached in two ways is listed once. Raises UserError for a name or an inventory that is wrong.
    """
    if named:
        things = [_named(spec) for spec in named]
        return _merged(in_parallel(lambda thing: _examined(thing, probe), things))
    from edgekit.benchmarks.devices.boards import board_statuses

    things, failed = _attached_and_listed()
    found = in_parallel(lambda thing: _examined(thing, probe) if _is_asked(thing) else _board_status(thing), things)
    return _merged([*found, *board_statuses(), *failed])


def _is_asked(thing: _Listed) -> bool:
    return not thing.spec.startswith("board:")


def _named(spec: str) -> _Listed:
    """What the user named. Raises UserError for what names no device."""
    concrete, name = resolve(spec)
    found = entry_of(name or concrete)
    server = None
    if concrete.partition(":")[0] == "adb":
        server = parse_choice(concrete.partition(":")[2]).server
    return _Listed(spec=concrete, name=found[0] if found else None, entry=found[1] if found else None, server=server)


def _attached_and_listed() -> tuple[list[_Listed], list[DeviceStatus]]:
    """Everything to be asked, the inventory's devices under their names, and the adb servers that do not answer."""
    entries = load_inventory().devices
    servers = dict.fromkeys((*chosen_servers(), *(e.adb_server for e in entries.values() if e.adb_server)))
    rows: list[tuple[AdbClient, AttachedDevice]] = []
    failed: list[DeviceStatus] = []
    for found, status in in_parallel(_rows_of, list(servers)):
        rows += found
        failed += [status] if status else []
    things = [_Listed(spec="local")]
    for name, entry in entries.items():
        thing, place = _listed_entry(name, entry, rows)
        if place is not None:
            del rows[place]
        if thing.spec == "local":
            things[0] = thing
        else:
            things.append(thing)
    things += [_Listed(spec=adb.spec_of(row.serial), row=row, server=adb.server_name) for adb, row in rows]
    if not any(thing.spec == "board:amd64" for thing in things):
        things.append(_Listed(spec="board:amd64"))
    told = {thing.server for thing in things}
    return things, [status for status in failed if status.server is None or status.server not in told]


def _rows_of(server: str | None) -> tuple[list[tuple[AdbClient, AttachedDevice]], DeviceStatus | None]:
    try:
        adb = find_adb(server=server)
        return [(adb, row) for row in attached(adb, Deadline.after(_LIST_SECONDS))], None
    except EdgekitError as e:
        spec = f"adb:@{server}" if server else "adb"
        return [], _Listed(spec=spec, server=server).sick(e, state="unreachable" if server else "unusable")


def _listed_entry(
    name: str, entry: InventoryEntry, rows: list[tuple[AdbClient, AttachedDevice]]
) -> tuple[_Listed, int | None]:
    """An entry of the inventory, and the place of the attached device that it names when it names exactly one."""
    kind, _, argument = entry.spec.partition(":")
    if kind != "adb":
        return _Listed(spec=entry.spec, name=name, entry=entry), None
    choice = parse_choice(argument or None)
    fits = [
        place
        for place, (adb, row) in enumerate(rows)
        if row_matches(choice, row) and (choice.server is None or choice.server == adb.server_name)
    ]
    if len(fits) != 1:
        return _Listed(spec=entry.spec, name=name, entry=entry, server=choice.server), None
    adb, row = rows[fits[0]]
    spec = adb.spec_of(row.serial)
    return _Listed(spec=spec, name=name, entry=entry, row=row, server=adb.server_name), fits[0]


def _examined(thing: _Listed, probe: bool) -> DeviceStatus:
    """The health of one thing: connected to, asked, and judged."""
    if thing.row is not None:
        problem = state_problem(thing.row, spec=thing.spec)
        if problem is not None:
            return thing.sick(problem, state=thing.row.state, warnings=_warnings(thing))
        if not probe:
            return thing.status("ready", usable=True, warnings=_warnings(thing))
    elif not probe and thing.spec == "local":
        return thing.status("ready", usable=True)
    try:
        device = open_device(thing.spec)
    except DeviceError as e:
        return thing.sick(e, state=_absent(thing, e))
    except UserError as e:
        if thing.entry is None:
            raise
        return thing.sick(e)
    thing = replace(thing, spec=device.spec)  # `adb:model:NAME` is a serial now
    if isinstance(device, PosixDevice) and _is_asked(thing):
        device.connect_seconds = _CONNECT_SECONDS
    try:
        with device:
            return _asked(thing, device) if probe else thing.status("ready", usable=True)
    except EdgekitError as e:
        return thing.sick(e, state=_absent(thing, e), warnings=_warnings(thing))


def _absent(thing: _Listed, error: EdgekitError) -> str | None:
    """The word for an adb device that no server lists."""
    is_absent = error.code == "DEVICE_UNUSABLE" and re.search(r"is not attached|^adb: no device", error.message)
    return "not attached" if is_absent and thing.spec.startswith("adb") else None


def _asked(thing: _Listed, device: Device) -> DeviceStatus:
    deadline = Deadline.after(_PROBE_SECONDS)
    info = device.probe(deadline)
    busy = _busy(info)
    if busy is not None:  # asking for more would disturb what is being measured
        return thing.sick(busy, info=info, warnings=_warnings(thing, info))
    state = read_state(device, deadline)
    warnings = _warnings(thing, info, state)
    for problem in (python_problem(info), *health_problems(state, thing.floors)):
        if problem is not None:
            return thing.sick(problem, info=info, conditions=state, warnings=warnings)
    return thing.status("ready", usable=True, info=info, conditions=state, warnings=warnings)


def _busy(info: DeviceInfo) -> DeviceBusy | None:
    try:
        with device_lock(info, Deadline.after(0)):
            return None
    except DeviceBusy as e:
        return e


def _warnings(thing: _Listed, info: DeviceInfo | None = None, state: DeviceState | None = None) -> tuple[str, ...]:
    return health_warnings(info, state, thing.floors, is_tcp=thing.is_tcp)


def _board_status(thing: _Listed) -> DeviceStatus:
    from edgekit.benchmarks.devices.board import board_unavailable_reason

    reason = board_unavailable_reason()
    if reason is None:
        return thing.status("ready", usable=True)
    _, separator, command = reason.rpartition(": apt install ")
    hint = f"apt install {command}" if separator else None
    return thing.status("unavailable", code="DEVICE_UNUSABLE", reason=reason, hint=hint)


def _merged(found: Sequence[DeviceStatus]) -> tuple[DeviceStatus, ...]:
    """`found` with each device once, by the identity it tells: under its name, else its USB serial, and the others
    beside it."""
    by_identity: dict[str, list[DeviceStatus]] = {}
    for place, status in enumerate(found):
        key = status.info.serial if status.info else f"place {place}"
        by_identity.setdefault(key, []).append(status)
    merged = []
    for same in by_identity.values():
        first, *others = sorted(same, key=_rank)
        warnings = dict.fromkeys(w for status in (first, *others) for w in status.warnings)
        also = dict.fromkeys(s.spec for s in others if s.spec != first.spec)
        merged.append(first.model_copy(update={"also": tuple(also), "warnings": tuple(warnings)}))
    return tuple(merged)


def _rank(status: DeviceStatus) -> tuple[bool, bool, bool]:
    serial = status.spec.partition(":")[2].partition("@")[0]
    return status.spec != "local", status.name is None, TCP_SERIAL.fullmatch(serial) is not None
