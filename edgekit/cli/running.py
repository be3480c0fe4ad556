"""`edgekit run` and `edgekit demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.app import app, fail
from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from edgekit.pipeline.run import RunOutcome
    from edgekit.recipe import Recipe

Workspace = Annotated[Path, typer.Option("--workspace", "-w", help="Folder for stages, results and reports.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")]
Data = Annotated[str | None, typer.Option("--data", help="Where the data lies: the workload's `data` parameter.")]
Devices = Annotated[
    list[str] | None, typer.Option("--device", "-d", help="Measure on this device instead (again for more).")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one recipe value: --set teacher.train.epochs=1")]


@app.command(epilog="Example: edgekit run recipe.yaml --device local --device adb:R5CT1234567")
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe (YAML).")],
    workspace: Workspace = Path("runs"),
    data: Data = None,
    device: Devices = None,
    overrides: Set = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> int:
    """Run a recipe: train, compress, convert, measure on devices, report, decide."""
    from edgekit.recipe import load_recipe

    loaded = load_recipe(recipe, overrides=_overrides(data, device, overrides))
    command = f"edgekit run {recipe}" + "".join(f" --set {text}" for text in overrides or ())
    return _run(loaded, recipe.resolve().parent, workspace, command, fresh=fresh, quiet=quiet, as_json=as_json)


@app.command(epilog="Example: edgekit demo --data /usr/share/datasets/fashion-mnist")
def demo(
    workspace: Workspace = Path("runs"),
    data: Data = None,
    device: Devices = None,
    overrides: Set = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> int:
    """Run the recipe that edgekit brings, on real data that a package brings."""
    from edgekit.recipe import load_recipe

    path = Path(__file__).parent.parent / "demo" / "recipe.yaml"
    loaded = load_recipe(path, overrides=_overrides(data, device, overrides))
    return _run(loaded, path.parent, workspace, "edgekit demo", fresh=fresh, quiet=quiet, as_json=as_json)


def _overrides(data: str | None, devices: list[str] | None, texts: list[str] | None) -> dict[tuple[str, ...], Any]:
    """The recipe values the command line changes, by their place in the recipe."""
    import yaml

    values: dict[tuple[str, ...], Any] = {}
    for text in texts or ():
        place, equals, value = text.partition("=")
        if not equals or not place:
            raise RecipeError(f"--set {text}: write it as place.in.recipe=value")
        try:
            values[tuple(place.split("."))] = yaml.safe_load(value)
        except yaml.YAMLError as e:
            raise RecipeError(f"--set {text}: the value is not YAML: {e}") from e
    if data is not None:
        values["params", "data"] = str(Path(data).expanduser().resolve()) if Path(data).expanduser().exists() else data
    if devices:
        values["devices",] = list(devices)
    return values


def _run(recipe: Recipe, base: Path, workspace: Path, command: str, *, fresh: bool, quiet: bool, as_json: bool) -> int:
    from edgekit.cli.progress import RunDisplay
    from edgekit.pipeline.run import RunOptions, run_recipe

    with RunDisplay(is_quiet=quiet) as display:
        outcome = run_recipe(
            recipe,
            RunOptions(workspace=workspace, base=base, is_fresh=fresh, observe=display.observe, command=command),
        )
    if as_json:
        print(json.dumps(outcome.report.model_dump(mode="json")))
    else:
        _show(outcome)
    if outcome.error is not None:
        return fail(outcome.error, as_json=False)
    return _exit_of(outcome)


def _show(outcome: RunOutcome) -> None:
    from rich.console import Console

    from edgekit.report.text import render_table

    console = Console()
    console.print(render_table(outcome.report))
    if outcome.did_nothing:
        console.print("Nothing to do: every stage and measurement was there already.", style="dim")
    console.print(f"Report: {outcome.folder / 'report.html'}", highlight=False, soft_wrap=True)


def _exit_of(outcome: RunOutcome) -> int:
    from edgekit.report.model import Verdict

    return 1 if outcome.report.verdict in (Verdict.FAIL, Verdict.NOISY) else 0
