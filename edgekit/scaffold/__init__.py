"""What `edgekit init` writes: a workload and a recipe that run as they are, and say where your own parts go."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from edgekit.errors import UserError
from edgekit.schema import write_atomically

__all__ = ["write_scaffold"]

FILES = {"workload.py": "workload.py.template", "recipe.yaml": "recipe.yaml.template"}


def write_scaffold(folder: Path, *, name: str, force: bool = False) -> tuple[Path, ...]:
    """The files written into `folder`, which is made if it is not there.

    `name` is made fit for a recipe (letters, digits, `.`, `_`, `-`). Raises UserError, before anything is written,
    for files that are there already unless `force`.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, not a folder", hint="give the name of a folder to make")
    there = [file for file in FILES if (folder / file).exists()]
    if there and not force:
        raise UserError(
            f"{folder}: {' and '.join(there)} {'is' if len(there) == 1 else 'are'} there already",
            hint="give another folder, or --force to overwrite",
        )
    plain = plain_name(name)
    templates = resources.files("edgekit.scaffold") / "templates"
    written = []
    for file, template in FILES.items():
        text = (templates / template).read_text(encoding="utf-8").replace("@NAME@", plain)
        write_atomically(folder / file, text)
        written.append(folder / file)
    return tuple(written)


def plain_name(name: str) -> str:
    """`name` as a recipe may be called: other characters become `-`, at most 64, `model` where nothing is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64].rstrip("-._") or "model"
