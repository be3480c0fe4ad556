"""`edgekit devices`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.app import app

if TYPE_CHECKING:
    from rich.table import Table

    from edgekit.benchmarks.values import DeviceInfo, DeviceStatus


@app.command(epilog="Example: edgekit devices --json | jq '.[] | select(.usable) | .spec'")
def devices(
    probe: Annotated[bool, typer.Option(help="Ask each usable device for its facts.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> int:
    """What is attached, with its facts, and why a thing cannot be used."""
    from edgekit.benchmarks.devices.registry import list_devices

    found = list_devices(probe=probe)
    if as_json:
        print(json.dumps([status.model_dump(mode="json") for status in found]))
    else:
        from rich.console import Console

        Console().print(_table(found))
    return 0


def _table(found: tuple[DeviceStatus, ...]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("device", "state", "facts"):
        table.add_column(heading, overflow="fold")
    for status in found:
        facts = describe(status.info) if status.info else ""
        if status.reason:
            facts = f"{status.reason}" + (f"\ntry: {status.hint}" if status.hint else "")
        style = "green" if status.usable else "yellow"
        table.add_row(escape(status.spec), f"[{style}]{escape(status.state)}[/]", escape(facts))
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
