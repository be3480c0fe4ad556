"""From what a user types (`local`, `adb:SERIAL`, `board:amd64`) to a device, and what is attached."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.benchmarks.devices.base import Device
from edgekit.errors import UserError
from edgekit.plugins import Registry

__all__ = ["DEVICES", "open_device"]

DEVICES = Registry(
    "device",
    "edgekit.devices",
    {
        "local": "edgekit.benchmarks.devices.local:open_local",
    },
)


def open_device(spec: str) -> Device:
    """The device `spec` names, not yet connected (enter it to connect). Raises UserError for an unknown kind.

    `spec` is `kind` or `kind:argument`: `local`, `adb` (the only one attached), `adb:SERIAL`, `board:amd64`.
    """
    kind, separator, argument = spec.partition(":")
    if separator and not argument:
        raise UserError(f"'{spec}' names no device after the colon", hint=f"write `{kind}`, or `{kind}:NAME`")
    factory: Callable[[str | None], Device] = DEVICES.load(kind)
    return factory(argument or None)
