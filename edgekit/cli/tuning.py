"""`edgekit tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.app import app

if TYPE_CHECKING:
    from edgekit.tuning.values import TuneResult

PAGE_NAME = "tune.html"
JSON_NAME = "tune.json"


@app.command(epilog="Example: edgekit tune recipe.yaml --to tflite --max-drop 1 --budget 20m -o tuned")
def tune(
    subject: Annotated[str, typer.Argument(help="A recipe (YAML) or a workload (module:function).")],
    backend: Annotated[str, typer.Option("--to", help="The converter.")] = "tflite",
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="Gate: points of accuracy under the teacher [default: 1].")
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Gate: accuracy, 0 to 1.")] = None,
    budget: Annotated[str, typer.Option(help="Time for this call: 90s, 20m, 1.5h.")] = "20m",
    rungs: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The student: a .safetensors file or a stage folder.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="The teacher, likewise, where it is another.")] = None,
    params: Annotated[
        list[str] | None, typer.Option("--param", help="A parameter of the workload: name=value.")
    ] = None,
    calibration: Annotated[int, typer.Option(min=1, help="Samples that set ranges.")] = 500,
    searched: Annotated[int, typer.Option("--search", min=1, help="Training samples kept apart to search on.")] = 1000,
    epochs: Annotated[int, typer.Option(min=1, help="Of distillation and of quantization-aware training.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    device: Annotated[str, typer.Option("--device", "-d", help="Where files are timed; 'none' times none.")] = "local",
    seed: Annotated[int, typer.Option()] = 0,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Where finished rungs are kept.")] = Path("runs"),
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=f"Folder for the file that passed, {PAGE_NAME} and {JSON_NAME}."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Bring a model to int8 within a gate: from better ranges up to quantization-aware training, the first that passes.

    What is finished is kept: run it again to go on where it was. Exit status 1 where no rung passed.
    """
    from rich.console import Console

    from edgekit.cli.converting import workload_params
    from edgekit.tuning.ladder import tune as climb
    from edgekit.tuning.options import RUNGS, TuneOptions, seconds_of

    options = TuneOptions(
        backend=backend,
        max_drop=max_drop,
        min_accuracy=min_accuracy,
        budget_seconds=seconds_of(budget),
        rungs=tuple(name.strip() for name in rungs.split(",")) if rungs is not None else RUNGS,
        calibration=calibration,
        searched=searched,
        epochs=epochs,
        batch_size=batch_size,
        device=None if device == "none" else device,
        seed=seed,
        params=workload_params(params),
        weights=weights,
        teacher=teacher,
        workspace=workspace,
        output=output,
    )
    with Console(stderr=True).status("starting") as status:
        result = climb(subject, options=options, tell=status.update)
    if output is not None:
        _write(result, output)
    if as_json:
        print(result.model_dump_json())
    else:
        _show(result)
    return 0 if result.passed is not None else 1


def _write(result: TuneResult, folder: Path) -> None:
    from edgekit.schema import write_atomically
    from edgekit.tuning.page import write_page

    folder.mkdir(parents=True, exist_ok=True)
    write_page(result, folder / PAGE_NAME)
    write_atomically(folder / JSON_NAME, result.model_dump_json(indent=2) + "\n")


def _show(result: TuneResult) -> None:
    from rich import table as rich_table
    from rich.console import Console
    from rich.markup import escape
    from rich.text import Text

    from edgekit.tuning.view import rung_table, sentences

    told = rung_table(result)
    drawn = rich_table.Table(title=escape(told.title), title_justify="left", box=None, pad_edge=False)
    for heading in told.headings:
        drawn.add_column(escape(heading), overflow="fold")
    for row in told.rows:
        drawn.add_row(*(escape(cell) for cell in row.cells), style="bold green" if row.is_marked else None)
    console = Console()
    console.print(drawn, Text())
    for sentence in sentences(result):
        console.print(Text(f"- {sentence}"))
