"""`edgekit init`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.app import app


@app.command(epilog="Example: edgekit init mymodel && edgekit run mymodel/recipe.yaml")
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write into; made if it is not there.")],
    name: Annotated[str | None, typer.Option(help="Name of the recipe; the folder's name when left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")] = False,
) -> int:
    """Write a commented workload.py and recipe.yaml that run as they are."""
    from edgekit.disk import disk_errors_explained
    from edgekit.scaffold import write_scaffold

    with disk_errors_explained(folder):
        written = write_scaffold(folder, name=name or folder.resolve().name, force=force)
    if as_json:
        print(json.dumps([str(path) for path in written]))
        return 0
    for path in written:
        print(f"wrote {path}")
    print(f"next: edgekit run {folder / 'recipe.yaml'}")
    return 0
