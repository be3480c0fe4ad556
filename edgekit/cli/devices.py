"""`edgekit devices`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.app import app
from edgekit.errors import UserError
from edgekit.report.visible import visible

if TYPE_CHECKING:
    from rich.text import Text as RichText

    from edgekit.benchmarks.values import DeviceInfo, DeviceState, DeviceStatus


_ACCEPT_SECONDS = 30.0
_POWER_CYCLE_SECONDS = 60.0
_TABLE_WIDTH = 100

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
    from edgekit.benchmarks.devices.registry import resolve
    from edgekit.benchmarks.devices.ssh import accept_host_key

    hosts = [spec for spec in (resolve(spec)[0] for spec in specs) if spec.startswith("ssh:")]
    if len(hosts) != 1:
        raise UserError(
            f"--accept-host-key is for one ssh device, and {len(hosts)} are named",
            hint=f"edgekit devices ssh:HOST --accept-host-key {fingerprint}",
        )
    accept_host_key(hosts[0], fingerprint, Deadline.after(_ACCEPT_SECONDS))


@app.command(epilog="Example: edgekit devices --json | jq '.[] | select(.usable) | .spec'")
def devices(
    device: Annotated[
        list[str] | None,
        typer.Argument(help="Only these: names of the inventory, ssh:pi@raspberrypi.local, …", show_default=False),
    ] = None,
    accept_host_key: AcceptHostKey = None,
    probe: Annotated[bool, typer.Option(help="Ask each usable device for its facts and state.")] = True,
    power_cycle: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run the inventory's `power_cycle` command of this device.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> int:
    """What is attached and in the inventory, with facts and health, and why a thing cannot be used.

    Hosts behind ssh are asked only when they are named, here or in the inventory. `--inventory FILE` and
    `--adb-server HOST:PORT` (in any command) say where to look.
    """
    from edgekit.benchmarks.devices.listing import list_devices

    if power_cycle is not None:
        if device or accept_host_key:
            raise UserError("--power-cycle names its device itself", hint="edgekit devices --power-cycle NAME")
        return _power_cycle(power_cycle, as_json=as_json)
    accept(device or (), accept_host_key)
    found = list_devices(probe=probe, named=device or ())
    if as_json:
        print(json.dumps([status.model_dump(mode="json") for status in found]))
    else:
        _print(found)
    return 0 if not device or all(status.usable for status in found) else 3


def _power_cycle(name: str, *, as_json: bool) -> int:
    """Run what the inventory has for this: the one command that it ever runs."""
    from edgekit.benchmarks.devices.base import Deadline
    from edgekit.benchmarks.devices.inventory import entry_of, inventory_path
    from edgekit.benchmarks.devices.process import run_bounded
    from edgekit.errors import HostError

    found = entry_of(name)
    if found is None:
        raise UserError(f"the inventory has no device {name[:100]!r}", hint=f"it is {inventory_path() or 'not there'}")
    argv = found[1].power_cycle
    if not argv:
        raise UserError(f"{found[0]} has no power_cycle command", hint=f"add one to {inventory_path()}")
    reply = run_bounded(argv, Deadline.after(_POWER_CYCLE_SECONDS), device=found[0], max_output=1 << 20)
    text = (reply.stdout + reply.stderr).decode("utf-8", "replace")
    said = ["".join(c for c in line if c.isprintable())[:300] for line in text.splitlines()[-5:]]
    if reply.returncode != 0:
        raise HostError(f"`{shlex.join(argv)}` ended with {reply.returncode}: {' | '.join(said) or 'nothing said'}")
    if as_json:
        print(json.dumps({"device": found[0], "argv": argv, "output": said}))
    else:
        print("\n".join([*said, f"{found[0]}: power cycled; it may take a minute to come back"]))
    return 0


def _print(found: tuple[DeviceStatus, ...]) -> None:
    """A table; on a narrow terminal, the facts below each device instead of beside it."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if console.width < _TABLE_WIDTH:
        for status in found:
            console.print(Text.assemble(_names(status, " "), "  ", _state(status)))
            if told := _told(status):
                console.print(Padding(told, (0, 0, 0, 2)))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("device", "state", "facts"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "state")
    for status in found:
        table.add_row(_names(status, "\n"), _state(status), _told(status))
    console.print(table)


def _names(status: DeviceStatus, separator: str) -> RichText:
    """The name in the inventory, the spec, and `= spec` for each other way to the same device."""
    from rich.text import Text

    names = Text(visible(status.name), style="bold") if status.name else Text()
    for name in (status.spec, *(f"= {spec}" for spec in status.also)):
        names.append((separator if names else "") + visible(name))
    return names


def _state(status: DeviceStatus) -> RichText:
    from rich.text import Text

    return Text(visible(status.state), style="green" if status.usable else "yellow")


def _told(status: DeviceStatus) -> RichText:
    """What is wrong and what to try, the facts, the state, and the warnings: a line each."""
    from rich.text import Text

    lines: list[tuple[str, str]] = []
    if status.reason:
        lines.append((status.reason, "yellow"))
    if status.hint:
        lines.append((f"try: {status.hint}", "bold"))
    facts = describe(status.info) if status.info else status.model
    lines += [(facts, "")] if facts else []
    lines += [(describe_state(status.conditions), "dim")] if status.conditions else []
    lines += [(f"warning: {warning}", "yellow") for warning in status.warnings]
    about = [", ".join(status.tags), status.notes or ""]
    lines += [(" · ".join(part for part in about if part), "dim")] if any(about) else []
    text = Text()
    for line, style in lines:
        text.append(("\n" if text else "") + visible(line), style=style)
    return text


def describe(info: DeviceInfo) -> str:
    """A device's facts on one line."""
    from edgekit.report import quantities

    parts = [
        info.model,
        info.soc or info.cpu_model,
        _cores(info),
        quantities.size(info.ram_bytes) if info.ram_bytes else None,
        info.os,
        f"patch {info.security_patch}" if info.security_patch else None,
        ", ".join(info.abis) or info.abi,
        f"Python {info.python}" if info.python else "no Python",
        f"governor {info.governor}" if info.governor else None,
        "root" if info.is_rooted else None,
        f"EMULATED: {info.emulation}" if info.emulated else None,
    ]
    return " · ".join(part for part in parts if part)


def _cores(info: DeviceInfo) -> str | None:
    """`8 cores (3 little, 4 mid, 1 big)`."""
    if not info.cores:
        return None
    named = [f"{len(cluster.cores)} {cluster.name}" for cluster in info.clusters if cluster.name]
    plural = "s" if info.cores > 1 else ""
    return f"{info.cores} core{plural}" + (f" ({', '.join(named)})" if named else "")


def describe_state(state: DeviceState) -> str:
    """What changes on a device, on one line."""
    from edgekit.report import quantities

    battery = f"battery {state.battery_percent} %" if state.battery_percent is not None else None
    if battery and state.battery_status not in (None, "unknown"):
        battery += f" {state.battery_status}"
    parts = [
        battery,
        f"battery {state.battery_milli_c / 1000:.1f} °C" if state.battery_milli_c is not None else None,
        f"{state.hottest_zone} {state.hottest_milli_c / 1000:.1f} °C" if state.hottest_milli_c is not None else None,
        f"thermal status {state.thermal_status}" if state.thermal_status else None,
        f"load {state.load_average_1m:.2f}" if state.load_average_1m is not None else None,
        f"{quantities.size(state.free_bytes)} free" if state.free_bytes is not None else None,
    ]
    return " · ".join(part for part in parts if part)
