"""Artifacts and bare model files, opened and looked into."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import PASSPORT_NAME, Artifact, Format, Passport

if TYPE_CHECKING:
    pass

__all__ = ["inspect", "open_artifact"]


def inspect(path: Path | str) -> Passport:
    """The passport of an artifact, or one read from a bare .tflite, .pte or .onnx file.

    Raises ArtifactError when the file is missing, corrupt, truncated or not the one its passport names.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or (folder / PASSPORT_NAME).is_file():
        return Artifact.open(path).passport
    return _bare_artifact(path).passport


def _bare_artifact(path: Path) -> Artifact:
    from edgekit.converters.passports import inspect_file

    Format.of(path)
    return Artifact(path=path, passport=inspect_file(path))


def open_artifact(path: Path) -> Artifact:
    """The artifact in a folder or beside a passport, or a bare model file with the passport read from it."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or not path.exists() or (folder / PASSPORT_NAME).is_file():
        return Artifact.open(path)
    return _bare_artifact(path)
