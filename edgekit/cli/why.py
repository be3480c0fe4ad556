"""`edgekit why`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.app import app

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgekit.diagnosis.values import Diagnosis
    from edgekit.diagnosis.view import Table

PAGE_NAME = "why.html"


@app.command(epilog="Example: edgekit why artifacts/model.static_w8a8.tflite --workload workload.py:workload --apply")
def why(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts of one model: folders or model files.")],
    workload: Annotated[str, typer.Option("--workload", help="The workload they were made from: module:function.")],
    params: Annotated[
        list[str] | None, typer.Option("--param", help="A parameter of the workload: name=value.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Where the workload's model is not what was converted: a .safetensors file or stage folder."),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", "-d", help="Compare layers there with this host.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Evaluation inputs to compare layers on.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the draw of inputs, as at conversion.")] = 0,
    suggest: Annotated[bool, typer.Option(help="Try rules for the layers that break.")] = True,
    apply: Annotated[bool, typer.Option("--apply", help="Keep the artifact made with what was found.")] = False,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Rank layers by what quantizing costs.")] = False,
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="Points of accuracy to hold with as few float layers as possible.")
    ] = None,
    budget: Annotated[float, typer.Option(min=1, help="Seconds for trying and searching, for each artifact.")] = 900.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=f"Folder for {PAGE_NAME} and what is applied.")
    ] = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Where device runs are kept.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the diagnosis as JSON.")] = False,
) -> int:
    """Say why artifacts are worse than their model: layer by layer, the first that breaks, the rule that repairs it.

    Exit status 1 where --max-drop is not held for sure on evaluation data.
    """
    from rich.console import Console

    from edgekit.cli.converting import workload_params
    from edgekit.diagnosis.explain import WhyOptions
    from edgekit.diagnosis.explain import why as explain

    options = WhyOptions(
        params=workload_params(params),
        weights=weights,
        samples=samples,
        seed=seed,
        device=device,
        suggest=suggest,
        apply=apply,
        sensitivity=sensitivity,
        max_drop=max_drop,
        budget_seconds=budget,
        output=output,
        workspace=workspace,
    )
    with Console(stderr=True).status("starting") as status:
        diagnosis = explain(list(artifacts), workload, options=options, tell=status.update)
    if output is not None:
        from edgekit.diagnosis.page import write_page

        write_page(diagnosis, output / PAGE_NAME)
    if as_json:
        print(diagnosis.model_dump_json())
    else:
        _show(diagnosis, output)
    return 1 if any(found.verdict != "PASS" for found in diagnosis.searches) else 0


def _show(diagnosis: Diagnosis, output: Path | None) -> None:
    from rich.console import Console
    from rich.text import Text

    from edgekit.diagnosis.view import findings, layer_table, sensitivity_table, tried_table

    console = Console()
    tables = [layer_table(diagnosis, artifact) for artifact in diagnosis.artifacts]
    tables += [sensitivity_table(diagnosis, name) for name in diagnosis.sensitivity]
    tables += [tried_table(repair) for repair in diagnosis.repairs if repair.attempts]
    for table in tables:
        console.print(_drawn(table), Text())
    for sentence in findings(diagnosis):
        console.print(Text(f"- {sentence}"))
    if output is not None:
        console.print(Text(f"page: {output / PAGE_NAME}"))


def _drawn(table: Table) -> RenderableType:
    from rich import table as rich_table

    from edgekit.cli.shown import shown

    drawn = rich_table.Table(title=shown(table.title), title_justify="left", box=None, pad_edge=False)
    for heading in table.headings:
        drawn.add_column(shown(heading), overflow="fold")
    for row in table.rows:
        drawn.add_row(*(shown(cell) for cell in row.cells), style="bold red" if row.is_marked else None)
    return drawn
