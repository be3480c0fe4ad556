"""Converting children started early, so that a toolchain is imported while the model is still being exported.

Importing a toolchain takes seconds, and so does loading the user's model; on two cores the one hides behind the
other. A child that is not used after all is ended.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from edgekit.isolation import INSTALLER_VARIABLES, Child

__all__ = ["TARGET_NAME", "EarlyChild", "EarlyChildren", "shared_folder"]

TARGET_NAME = "target.txt"
"""In a work folder: the converter whose toolchain the child imports before it waits for its request."""
INSTALLING = ("onnx-tf",)
"""Converters whose child makes an environment of its own, and so needs pip's variables."""


@contextmanager
def shared_folder(output_dir: Path) -> Iterator[Path]:
    """A folder beside the children's own for files that all of them read; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f".convert-{os.getpid()}-", dir=output_dir))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class EarlyChild:
    """One converting child and its work folder, waiting for `request.json`."""

    def __init__(self, target: str, output_dir: Path, threads: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f".convert-{os.getpid()}-", dir=output_dir))
        (self.folder / TARGET_NAME).write_text(target)
        also = INSTALLER_VARIABLES if target in INSTALLING else ()
        self.process = Child("edgekit.converters.worker", self.folder, threads=threads, also=also)

    def close(self) -> None:
        """End the child if it still runs, and remove its folder."""
        self.process.end()
        shutil.rmtree(self.folder, ignore_errors=True)


class EarlyChildren:
    """Children for the first `jobs` of the targets; a context manager that ends those nobody took."""

    def __init__(self, targets: Sequence[str], output_dir: Path, jobs: int, *, threads: int = 1) -> None:
        self._waiting: dict[str, EarlyChild] = {}
        for target in list(dict.fromkeys(targets))[:jobs]:
            output_dir.mkdir(parents=True, exist_ok=True)
            self._waiting[target] = EarlyChild(target, output_dir, threads)

    def take(self, target: str) -> EarlyChild | None:
        """The child of a target, whose end is then the caller's; None when there is none."""
        return self._waiting.pop(target, None)

    def __enter__(self) -> EarlyChildren:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._waiting.values():
            child.close()
        self._waiting.clear()
