"""From what a user types (`local`, `adb:SERIAL`, `ssh:HOST`, `board:amd64`) to a device, and what is attached."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.benchmarks.devices.base import Deadline, Device
from edgekit.benchmarks.devices.lock import device_lock
from edgekit.benchmarks.values import DeviceInfo, DeviceStatus
from edgekit.errors import DeviceError, EdgekitError, UserError
from edgekit.plugins import Registry

__all__ = ["DEVICES", "device_lock", "list_devices", "open_device"]

DEVICES = Registry(
    "device",
    "edgekit.devices",
    {
        "adb": "edgekit.benchmarks.devices.adb:open_adb",
        "board": "edgekit.benchmarks.devices.board:open_board",
        "local": "edgekit.benchmarks.devices.local:open_local",
        "ssh": "edgekit.benchmarks.devices.ssh:open_ssh",
    },
)

_LIST_SECONDS = 20.0
_PROBE_SECONDS = 10.0


def open_device(spec: str) -> Device:
    """The device `spec` names, not yet connected (enter it to connect). Raises UserError for an unknown kind.

    `spec` is `kind` or `kind:argument`: `local`, `adb` (the only one attached), `adb:SERIAL`, `ssh:HOST`,
    `board:amd64`.
    """
    kind, separator, argument = spec.partition(":")
    if separator and not argument:
        raise UserError(f"'{spec}' names no device after the colon", hint=f"write `{kind}`, or `{kind}:NAME`")
    factory: Callable[[str | None], Device] = DEVICES.load(kind)
    return factory(argument or None)


def list_devices(probe: bool = True, named: Sequence[str] = ()) -> tuple[DeviceStatus, ...]:
    """This host, everything adb lists, and the virtual board, each with why it cannot be used if so; or those `named`.

    `probe` reads the facts of those that are ready. The board is not started for that unless it is named. Hosts
    behind ssh are only listed by name: none is connected to uninvited.
    """
    if named:
        return tuple(_named(spec, probe) for spec in named)
    return (_local_status(probe), *_adb_statuses(probe), _board_status())


def _named(spec: str, probe: bool) -> DeviceStatus:
    """What `spec` names, connected to; its facts only with `probe`. Raises UserError for what names no device."""
    try:
        device = open_device(spec)
    except DeviceError as e:
        return _unusable(spec, "unusable", e)
    return _probed(device, facts=probe)


def _unusable(spec: str, state: str, error: EdgekitError) -> DeviceStatus:
    reason = error.message.removeprefix(f"{spec}: ")
    return DeviceStatus(spec=spec, state=state, usable=False, reason=reason, hint=error.hint)


def _probed(device: Device, *, facts: bool = True) -> DeviceStatus:
    """A device that should be ready: ready, with its facts where they are wanted, or unusable with what went wrong."""
    spec = device.spec
    try:
        with device:
            info: DeviceInfo | None = device.probe(Deadline.after(_PROBE_SECONDS)) if facts else None
    except EdgekitError as e:
        return _unusable(spec, "unusable", e)
    return DeviceStatus(spec=spec, state="ready", usable=True, info=info)


def _local_status(probe: bool) -> DeviceStatus:
    if not probe:
        return DeviceStatus(spec="local", state="ready", usable=True)
    return _probed(open_device("local"))


def _adb_statuses(probe: bool) -> list[DeviceStatus]:
    from edgekit.benchmarks.devices.adb import AdbDevice, AdbTransport, attached, state_problem
    from edgekit.benchmarks.devices.adb_client import find_adb

    try:
        adb = find_adb()
        rows = attached(adb, Deadline.after(_LIST_SECONDS))
    except EdgekitError as e:
        return [_unusable("adb", "unusable", e)]
    statuses = []
    for row in rows:
        spec = f"adb:{row.serial}"
        problem = state_problem(row)
        if problem is not None:
            statuses.append(_unusable(spec, row.state, problem))
        elif probe:
            statuses.append(_probed(AdbDevice(AdbTransport(adb, row.serial))))
        else:
            statuses.append(DeviceStatus(spec=spec, state="ready", usable=True))
    return statuses


def _board_status() -> DeviceStatus:
    from edgekit.benchmarks.devices.board import board_unavailable_reason

    reason = board_unavailable_reason()
    if reason is None:
        return DeviceStatus(spec="board:amd64", state="ready", usable=True)
    _, separator, command = reason.rpartition(": apt install ")
    hint = f"apt install {command}" if separator else None
    return DeviceStatus(spec="board:amd64", state="unavailable", usable=False, reason=reason, hint=hint)
