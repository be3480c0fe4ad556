"""A teacher that is not there: its outputs, stored in a file or an array."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import WorkloadError
from edgekit.schema import near_miss

if TYPE_CHECKING:
    from edgekit.distill.lesson import LessonData

__all__ = ["StoredOutputs", "read_outputs"]

Array = np.ndarray[Any, np.dtype[Any]]
ARRAYS = ("train", "unlabelled")


@dataclass(frozen=True, kw_only=True)
class StoredOutputs:
    """A teacher's outputs, sample by sample in the order of the data: `float [N, classes]` each."""

    name: str
    """The file, or what else errors should call it."""
    rows: Array | None = None
    """Of all samples: the labelled, then the unlabelled."""
    train: Array | None = None
    unlabelled: Array | None = None

    @cached_property
    def digest(self) -> str:
        """sha256 over shapes, types and bytes."""
        hasher = hashlib.sha256()
        for part in ("rows", *ARRAYS):
            value = getattr(self, part)
            if value is not None:
                hasher.update(f"{part}{value.dtype}{value.shape}".encode())
                hasher.update(np.ascontiguousarray(value).tobytes())
        return hasher.hexdigest()

    def checked(self, material: LessonData, *, is_augmented: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
        """All outputs as `float32 [N, classes]`; raises WorkloadError where they are not those of `material`."""
        if is_augmented:
            raise WorkloadError(
                f"{self.name}: stored outputs are of the samples as they are, and the workload augments them",
                hint="leave augment out of the workload, or distil from the teacher itself",
            )
        if self.rows is not None:
            whole = _numbers(self.rows, self.name)
            self._check_count(whole, material.labelled + material.unlabelled, self._samples(material))
            return whole
        parts = []
        for part, count in (("train", material.labelled), ("unlabelled", material.unlabelled)):
            if not count:
                continue
            value = getattr(self, part)
            if value is None:
                raise WorkloadError(
                    f"{self.name}: has no array '{part}', and there are {count} {part} samples",
                    hint="store the teacher's outputs on them as well"
                    + (", or say unlabelled: false" if part == "unlabelled" else ""),
                )
            numbers = _numbers(value, f"{self.name}, array '{part}'")
            self._check_count(numbers, count, f"{count} {part} samples")
            parts.append(numbers)
        if len({numbers.shape[1] for numbers in parts}) > 1:
            raise WorkloadError(f"{self.name}: its arrays have {' and '.join(str(p.shape[1]) for p in parts)} classes")
        return np.concatenate(parts)

    def _check_count(self, rows: Array, count: int, told: str) -> None:
        if len(rows) != count:
            raise WorkloadError(
                f"{self.name}: has outputs {tuple(rows.shape)}, but the data have {told}",
                hint="row i is the teacher's output on sample i; store them anew for this data",
            )

    @staticmethod
    def _samples(material: LessonData) -> str:
        if not material.unlabelled:
            return f"{material.labelled} samples"
        return (
            f"{material.labelled} + {material.unlabelled} samples, labelled then unlabelled "
            "(unlabelled: false leaves those out)"
        )


def _numbers(value: Array, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    if value.ndim != 2 or not np.issubdtype(value.dtype, np.floating):
        raise WorkloadError(
            f"{name}: is {value.dtype}{tuple(value.shape)}; a teacher's outputs are floats [samples, classes]"
        )
    numbers = np.ascontiguousarray(value, dtype=np.float32)
    bad = ~np.isfinite(numbers).all(axis=1)
    if bad.any():
        raise WorkloadError(f"{name}: {int(bad.sum())} rows are not finite, the first of them row {int(bad.argmax())}")
    return numbers


def read_outputs(path: Path) -> StoredOutputs:
    """The outputs in a .npy or .npz file; raises WorkloadError for any other and for one that holds something else."""
    if path.suffix not in (".npy", ".npz"):
        raise WorkloadError(f"{path}: a teacher's outputs are read from .npy or .npz files")
    if not path.is_file():
        raise WorkloadError(f"{path}: no such file", hint="the path is relative to the recipe")
    try:
        if path.suffix == ".npy":
            return StoredOutputs(name=str(path), rows=np.load(path, allow_pickle=False))
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                if name not in ARRAYS:
                    raise WorkloadError(f"{path}: unknown array '{name}'; {near_miss(name, ARRAYS)}")
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise WorkloadError(f"{path}: cannot be read as outputs ({e})") from e
    return StoredOutputs(name=str(path), train=arrays.get("train"), unlabelled=arrays.get("unlabelled"))
