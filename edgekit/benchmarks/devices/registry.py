"""From what a user types (`local`, `adb:SERIAL`, `ssh:HOST`, `board:amd64`, an inventory's name) to a device."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.benchmarks.devices.base import Device
from edgekit.benchmarks.devices.inventory import load_inventory, remember_entry
from edgekit.benchmarks.devices.lock import device_lock
from edgekit.errors import UserError
from edgekit.plugins import Registry
from edgekit.schema import near_miss

__all__ = ["DEVICES", "device_lock", "open_device", "resolve"]

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


def open_device(spec: str) -> Device:
    """The device `spec` names, not yet connected (enter it to connect). Raises UserError for an unknown kind or name.

    `spec` is `kind` or `kind:argument`: `local`, `adb` (the only one attached), `adb:SERIAL`, `adb:model:NAME`,
    `ssh:HOST`, `board:amd64`; or a name of the inventory, or `tag:NAME` where one device there has the tag.
    """
    concrete, name = resolve(spec)
    kind, separator, argument = concrete.partition(":")
    if separator and not argument:
        raise UserError(f"'{spec}' names no device after the colon", hint=f"write `{kind}`, or `{kind}:NAME`")
    factory: Callable[[str | None], Device] = DEVICES.load(kind)
    device = factory(argument or None)
    if name is not None:
        remember_entry(device.spec, name)
    return device


def resolve(spec: str) -> tuple[str, str | None]:
    """`spec` as kind and argument, and its name in the inventory where it was found there."""
    for prefix, kind in (("tag:", None), ("adb:tag:", "adb")):
        if spec.startswith(prefix) and spec != prefix:
            inventory = load_inventory()
            name = inventory.tagged(spec.removeprefix(prefix), kind=kind)
            return inventory.devices[name].spec, name
    kinds = DEVICES.names()
    kind, separator, _ = spec.partition(":")
    if kind in kinds:
        return spec, None
    devices = {} if separator else load_inventory().devices
    if kind not in devices:
        known = near_miss(kind, [*kinds, *devices])
        raise UserError(f"unknown device {kind[:100]!r}; {known}", hint="see `edgekit devices`")
    return devices[kind].spec, kind
