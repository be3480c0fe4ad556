"""`edgekit doctor`: what is missing here and how to install it; of an artifact, whether it will load on a device."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.app import app
from edgekit.cli.devices import AcceptHostKey, accept


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at."""

    what: str
    is_ok: bool | None
    """None where it cannot be told."""
    detail: str
    hint: str | None = None


@app.command(epilog="Example: edgekit doctor artifacts/model.static_w8a8.tflite --device board:amd64")
def doctor(
    artifact: Annotated[
        Path | None, typer.Argument(help="An artifact: will it load on the device? Without it, this host is looked at.")
    ] = None,
    device: Annotated[str, typer.Option("--device", "-d", help="The device asked about.")] = "local",
    accept_host_key: AcceptHostKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> int:
    """Say what is missing on this host; or whether an artifact will load on a device, before anything is pushed."""
    accept([device], accept_host_key)
    if artifact is not None:
        return _examine(artifact, device, as_json=as_json)
    findings = [_python(), *_toolkits(), _adb(), _board(), *_devices()]
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        _print(findings)
    return 0 if all(finding.is_ok for finding in findings if finding.what.startswith("core")) else 5


def _examine(path: Path, spec: str, *, as_json: bool) -> int:
    """The findings about one artifact on one device; 6 when it will not load there."""
    from edgekit.api import open_artifact
    from edgekit.benchmarks.devices.base import Deadline
    from edgekit.benchmarks.devices.registry import open_device
    from edgekit.runtimes.compatibility import examine

    opened = open_artifact(path)
    with open_device(spec) as place:
        info = place.probe(Deadline.after(60))
    found = examine(opened.passport, info)
    findings = [Finding(what=f.what, is_ok=f.is_ok, detail=f.detail, hint=f.hint) for f in found]
    refused = [finding for finding in findings if finding.is_ok is False]
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        _print(findings)
        verdict = "will not load" if refused else "should load"
        print(f"{opened.passport.name} {verdict} on {info.spec}" + (f" ({info.model})" if info.model else ""))
    return 6 if refused else 0


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    from edgekit.cli.shown import shown

    table = Table.grid(padding=(0, 2))
    for finding in findings:
        mark = {True: "[green]✓[/]", False: "[yellow]✗[/]", None: "[dim]?[/]"}[finding.is_ok]
        hint = f"\n[dim]try: {shown(finding.hint)}[/]" if finding.hint else ""
        table.add_row(mark, shown(finding.what), shown(finding.detail) + hint)
    Console().print(table)


def _python() -> Finding:
    is_ok = sys.version_info >= (3, 11)
    hint = None if is_ok else "install Python 3.11 or newer"
    return Finding(what="core: Python", is_ok=is_ok, detail=sys.version.split()[0], hint=hint)


def _toolkits() -> list[Finding]:
    from edgekit.pipeline.facts import TOOLKITS, tool_versions

    installed = tool_versions()
    findings = []
    for extra, names in TOOLKITS.items():
        missing = [name for name in names if name not in installed]
        told = ", ".join(f"{name} {installed[name]}" for name in names if name in installed)
        if missing:
            told = "missing: " + ", ".join(missing) + (f"; has {told}" if told else "")
        hint = f"pip install 'edgekit[{extra}]'" if missing else None
        findings.append(Finding(what=f"extra: {extra}", is_ok=not missing, detail=told, hint=hint))
    return findings


def _adb() -> Finding:
    from edgekit.benchmarks.devices.adb_client import find_adb
    from edgekit.errors import EdgekitError

    try:
        client = find_adb()
    except EdgekitError as e:
        return Finding(what="adb client", is_ok=False, detail=e.message, hint=e.hint)
    return Finding(what="adb client", is_ok=True, detail=f"{'.'.join(map(str, client.version))} ({client.path})")


def _board() -> Finding:
    from edgekit.benchmarks.devices.board import board_unavailable_reason

    reason = board_unavailable_reason()
    detail = reason or f"can be built with {shutil.which('mmdebstrap')}"
    return Finding(what="virtual board", is_ok=reason is None, detail=detail)


def _devices() -> list[Finding]:
    from edgekit.benchmarks.devices.listing import list_devices
    from edgekit.cli.devices import describe

    return [
        Finding(
            what=f"device {status.spec}",
            is_ok=status.usable,
            detail=status.reason or (describe(status.info) if status.info else status.state),
            hint=status.hint,
        )
        for status in list_devices(probe=True)
    ]
