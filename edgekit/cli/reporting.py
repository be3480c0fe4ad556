"""`edgekit report`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.app import app
from edgekit.errors import UserError


class Kind(StrEnum):
    """What `edgekit report` writes."""

    TABLE = "table"
    HTML = "html"
    JSON = "json"
    MARKDOWN = "markdown"
    JUNIT = "junit"


@app.command(epilog="Example: edgekit report latest --format junit -o results.xml")
def report(
    run: Annotated[str, typer.Argument(help="A run: its id, the beginning of it, `latest`, or a path.")] = "latest",
    kind: Annotated[Kind, typer.Option("--format", "-f", help="How to show it.")] = Kind.TABLE,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; stdout when left out.")] = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> int:
    """Show a run's report again, in any of its forms; nothing is measured."""
    from rich.console import Console

    from edgekit.pipeline.workspace import Workspace
    from edgekit.report.html import render_html
    from edgekit.report.junit import render_junit
    from edgekit.report.markdown import render_markdown
    from edgekit.report.text import render_table
    from edgekit.report.write import read_report
    from edgekit.schema import write_atomically

    folder = Workspace(workspace).find_run(run)
    value = read_report(folder / "report.json")
    kind = Kind.JSON if as_json else kind
    if kind is Kind.TABLE:
        if output is not None:
            raise UserError("--output goes with --format html, json, markdown or junit")
        Console().print(render_table(value))
        print(f"Report: {folder / 'report.html'}")
        return 0
    text = {
        Kind.HTML: render_html,
        Kind.JSON: lambda r: json.dumps(r.model_dump(mode="json"), indent=2) + "\n",
        Kind.MARKDOWN: render_markdown,
        Kind.JUNIT: render_junit,
    }[kind](value)
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, text)
        print(output)
    return 0
