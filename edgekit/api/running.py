"""`run`: a recipe from Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.pipeline.events import Observer
    from edgekit.pipeline.run import RunOutcome
    from edgekit.recipe import Recipe

__all__ = ["run"]


def run(
    recipe: Recipe | Path | str,
    *,
    workspace: Path | str = "runs",
    fresh: bool = False,
    observe: Observer | None = None,
) -> RunOutcome:
    """The outcome of running a recipe (a value, or the path of a YAML file): its report and where it lies.

    Raises RecipeError, WorkloadError and whatever stops the run as a whole; a conversion or device that
    failed is in the outcome's `error` and `report`.
    """
    from edgekit.pipeline.events import silent
    from edgekit.pipeline.run import RunOptions, run_recipe
    from edgekit.recipe import load_recipe

    base, command = Path(), "edgekit.run(recipe)"
    if not hasattr(recipe, "model_dump"):
        path = Path(str(recipe))
        base, command = path.resolve().parent, f"edgekit run {path}"
        recipe = load_recipe(path)
    options = RunOptions(
        workspace=Path(workspace), base=base, is_fresh=fresh, observe=observe or silent, command=command
    )
    return run_recipe(recipe, options)  # type: ignore[arg-type]
