"""`edgekit devices`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.app import app
from edgekit.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from edgekit.benchmarks.values import DeviceInfo, DeviceStatus


_ACCEPT_SECONDS = 30.0

AcceptHostKey = Annotated[
    str | None,
    typer.Option(
        metavar="SHA256:…",
        help="The fingerprint of an ssh device's host key, compared by you: it is stored, and known from then on.",
    ),
]


def accept(specs: Sequence[str], fingerprint: str | None) -> None:
    """Store the host key with this fingerprint, if one was given, for the only ssh device among `specs`."""
    if fingerprint is None:
        return
    from edgekit.benchmarks.devices.base import Deadline
    from edgekit.benchmarks.devices.ssh import accept_host_key

    hosts = [spec for spec in specs if spec.startswith("ssh:")]
    if len(hosts) != 1:
        raise UserError(
            f"--accept-host-key is for one ssh device, and {len(hosts)} are named",
            hint=f"edgekit devices ssh:HOST --accept-host-key {fingerprint}",
        )
    accept_host_key(hosts[0], fingerprint, Deadline.after(_ACCEPT_SECONDS))


@app.command(epilog="Example: edgekit devices --json | jq '.[] | select(.usable) | .spec'")
def devices(
    device: Annotated[
        list[str] | None, typer.Argument(help="Only these, for example ssh:pi@raspberrypi.local.", show_default=False)
    ] = None,
    accept_host_key: AcceptHostKey = None,
    probe: Annotated[bool, typer.Option(help="Ask each usable device for its facts.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> int:
    """What is attached, with its facts, and why a thing cannot be used. Hosts behind ssh are asked only by name."""
    from edgekit.benchmarks.devices.registry import list_devices

    accept(device or (), accept_host_key)
    found = list_devices(probe=probe, named=device or ())
    if as_json:
        print(json.dumps([status.model_dump(mode="json") for status in found]))
    else:
        from rich.console import Console

        Console().print(_table(found))
    return 0 if not device or all(status.usable for status in found) else 3


def _table(found: tuple[DeviceStatus, ...]) -> Table:
    from rich.table import Table

    from edgekit.cli.shown import shown

    table = Table(box=None, pad_edge=False)
    for heading in ("device", "state", "facts"):
        table.add_column(heading, overflow="fold")
    for status in found:
        facts = describe(status.info) if status.info else ""
        if status.reason:
            facts = f"{status.reason}" + (f"\ntry: {status.hint}" if status.hint else "")
        style = "green" if status.usable else "yellow"
        table.add_row(shown(status.spec), f"[{style}]{shown(status.state)}[/]", shown(facts))
    return table


def describe(info: DeviceInfo) -> str:
    """A device's facts on one line."""
    from edgekit.report import quantities

    parts = [
        info.model,
        info.soc or info.cpu_model,
        f"{info.cores} cores" if info.cores else None,
        quantities.size(info.ram_bytes) if info.ram_bytes else None,
        info.os,
        info.abi,
        f"Python {info.python}" if info.python else "no Python",
        f"governor {info.governor}" if info.governor else None,
        f"EMULATED: {info.emulation}" if info.emulated else None,
    ]
    return " · ".join(part for part in parts if part)
