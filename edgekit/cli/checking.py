"""`edgekit check` and `edgekit converters`: what can be converted to what, told before anything is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.app import app
from edgekit.cli.converting import names, workload_params

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgekit.converters.base import Capability
    from edgekit.converters.checking import CheckReport


@app.command(epilog="Example: edgekit check workload.py:workload --to tflite,executorch --scheme static_w8a8")
def check(
    workload: Annotated[str, typer.Argument(help="module:function or path/to/file.py:function.")],
    to: Annotated[str, typer.Option("--to", help="Converters, comma-separated.")] = "tflite,executorch,onnx",
    scheme: Annotated[str, typer.Option("--scheme", help="Schemes, comma-separated.")] = "fp32,static_w8a8",
    params: Annotated[
        list[str] | None, typer.Option("--param", help="A parameter of the workload: name=value.")
    ] = None,
    dynamic: Annotated[list[str] | None, typer.Option(help="A free axis: INPUT:AXIS=MIN..MAX[:NAME].")] = None,
    jobs: Annotated[int, typer.Option(help="Converters at a time.", min=1)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> int:
    """Name every obstacle to a conversion at once: the op, your module and line, and what to change. Exit 6 if any."""
    import dataclasses

    from rich.console import Console

    from edgekit.api import check_workload
    from edgekit.converters.shapes import parse_dynamic_axis
    from edgekit.converters.target_run import ConversionOptions

    with Console(stderr=True).status("exporting") as status:
        report = check_workload(
            workload,
            params=workload_params(params),
            targets=names(to),
            schemes=names(scheme),
            options=ConversionOptions(dynamic=tuple(parse_dynamic_axis(text) for text in dynamic or ()), jobs=jobs),
            on_progress=lambda p: status.update(f"{p.target} {p.scheme or ''} · {p.stage}"),
        )
    if as_json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        Console().print(_check_view(report))
    return 6 if report.problems else 0


def _check_view(report: CheckReport) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for problem in report.problems:
        place = " ".join(part for part in (problem.module, problem.source) if part)
        parts.append(Text.assemble(("✗ ", "red"), (problem.backend, "bold"), f"  {problem.message}"))
        if place:
            parts.append(Text(f"    at {place}", "dim"))
        if problem.available_in:
            parts.append(Text(f"    available in {', '.join(problem.available_in)}", "dim"))
        if problem.hint:
            parts.append(Text(f"    try: {problem.hint}", "dim"))
    parts += [Text.assemble(("✓ ", "green"), (target, "bold"), f"  {scheme}") for target, scheme in report.clear]
    return Group(*parts)


@app.command(epilog="Example: edgekit converters --to tflite")
def converters(
    to: Annotated[str | None, typer.Option("--to", help="Only these, comma-separated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> int:
    """List the converters and which quantization schemes each can write, or why not and what is nearest."""
    import dataclasses

    from rich.console import Console

    from edgekit.converters.registry import CONVERTERS, capabilities

    wanted = names(to) if to else list(CONVERTERS.names())
    table = {name: capabilities(name) for name in wanted}
    if as_json:
        print(json.dumps({name: [dataclasses.asdict(c) for c in known] for name, known in table.items()}))
    else:
        Console().print(_capability_table(table))
    return 0


def _capability_table(table: dict[str, tuple[Capability, ...]]) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    shown = Table("converter", "scheme", "", "how, or why not", box=None, pad_edge=False)
    for name, known in table.items():
        for index, capability in enumerate(known):
            note = escape(capability.note)
            if not capability.supported and capability.nearest:
                note += f" [dim]nearest: {escape(capability.nearest)}[/]"
            mark = "[green]yes[/]" if capability.supported else "[yellow]no[/]"
            shown.add_row(name if index == 0 else "", capability.scheme.value, mark, note)
        shown.add_section()
    return shown
