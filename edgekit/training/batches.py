"""Batches out of a map-style data set, and the random generators its items may draw from.

A tensor data set (`torch.utils.data.TensorDataset`) is read by index_select, whole batches at a time; any other
item by item.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgekit.errors import WorkloadError
from edgekit.training.objective import NO_TARGET, Batch

if TYPE_CHECKING:
    from edgekit.workload import MapDataset

__all__ = ["BatchSource", "derive_seed", "describe", "generators_kept", "joined", "seed_generators"]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from `parts`; the same parts give the same seed on every machine."""
    hashed = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(hashed[:8], "big") >> 1


def seed_generators(seed: int) -> None:
    """Seed torch's, numpy's and Python's global generators, which a user's data set or layers may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Gives torch's, numpy's and Python's global generators back as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=_gpus()):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _gpus() -> list[int]:
    """GPUs this process has used already; asking for others' generators would start them."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class BatchSource:
    """`fetch(indices)` on one data set; `name` says which in errors."""

    data: MapDataset
    name: str
    labelled: bool = True
    """False: targets are not read, and items need none (`MapDataset` says how such items look)."""

    def __len__(self) -> int:
        return len(self.data)

    @property
    def tensors(self) -> tuple[Tensor, ...] | None:
        """The columns of a tensor data set, None for any other."""
        columns = getattr(self.data, "tensors", None)
        if not isinstance(columns, tuple | list) or len(columns) < (2 if self.labelled else 1):
            return None
        if not all(isinstance(column, Tensor) for column in columns):
            return None
        # A subclass that changes its items (transforms) must be asked item by item.
        if type(self.data).__getitem__ is not torch.utils.data.TensorDataset.__getitem__:
            return None
        return tuple(columns)

    def fetch(self, indices: Tensor) -> Batch:
        """The samples at `indices` as one batch; raises WorkloadError for items that are not what they must be."""
        columns = self.tensors
        if columns is not None:
            chosen = tuple(column.index_select(0, indices) for column in columns)
            if not self.labelled:
                return self._checked(chosen[:1], None, indices)
            return self._checked(chosen[:-1], chosen[-1], indices)
        items = [self.data[int(i)] for i in indices]
        if not self.labelled:
            return self._checked(self._stacked([_input_of(item) for item in items]), None, indices)
        pairs = [self._pair(item) for item in items]
        targets = self._collate([target for _, target in pairs])
        return self._checked(self._stacked([inputs for inputs, _ in pairs]), targets, indices)

    def _pair(self, item: Any) -> tuple[Any, Any]:
        if isinstance(item, tuple | list) and len(item) > 2:
            return tuple(item[:-1]), item[-1]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise WorkloadError(
                f"{self.name} data: an item is {describe(item)}, not (input, target)",
                hint="__getitem__ must return a tuple of the input (a tensor, or a tuple of tensors) and the target",
            )
        return item[0], item[1]

    def _stacked(self, values: list[Any]) -> tuple[Tensor, ...]:
        inputs = self._collate(values)
        return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)

    def _collate(self, values: list[Any]) -> Any:
        try:
            return torch.utils.data.default_collate(values)
        except (TypeError, RuntimeError, ValueError, KeyError) as e:
            shapes = sorted({describe(value) for value in values})
            raise WorkloadError(
                f"{self.name} data: items cannot be stacked into a batch ({e}); seen: {', '.join(shapes[:4])}",
                hint="every input needs the same shape and dtype; resize or pad in the data set",
            ) from e

    def _checked(self, inputs: tuple[Tensor, ...], targets: Any, indices: Tensor) -> Batch:
        for value in inputs:
            if not isinstance(value, Tensor):
                raise WorkloadError(f"{self.name} data: an input is {describe(value)}, not a tensor")
        if not self.labelled:
            return Batch(inputs=inputs, indices=indices)
        if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.dtype.is_floating_point:
            raise WorkloadError(
                f"{self.name} data: targets of a batch are {describe(targets)}; classification needs one class "
                "number (an int from 0) per item"
            )
        return Batch(inputs=inputs, targets=targets.long(), indices=indices)


class _Joined(torch.utils.data.Dataset[Any]):
    """The items of `labelled`, then those of `unlabelled` with NO_TARGET."""

    def __init__(self, labelled: MapDataset, unlabelled: MapDataset) -> None:
        self.labelled = labelled
        self.unlabelled = unlabelled

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, index: int) -> Any:
        known = len(self.labelled)
        if index >= known:
            return _input_of(self.unlabelled[index - known]), NO_TARGET
        value, target = self.labelled[index]
        return value, int(target)


def joined(labelled: MapDataset, unlabelled: MapDataset) -> MapDataset:
    """Labelled data, then unlabelled ones whose targets are NO_TARGET, for an objective that takes missing targets."""
    first = BatchSource(labelled, "train").tensors
    second = BatchSource(unlabelled, "unlabelled", labelled=False).tensors
    if first is None or second is None or len(first) != 2 or first[0].dtype != second[0].dtype:
        return _Joined(labelled, unlabelled)
    missing = torch.full((len(second[0]),), NO_TARGET, dtype=torch.int64)
    return torch.utils.data.TensorDataset(torch.cat([first[0], second[0]]), torch.cat([first[1].long(), missing]))


def _input_of(item: Any) -> Any:
    """The input (a tensor, or a tuple of tensors) of an unlabelled item: the item itself, or the first of a tuple."""
    return item[0] if isinstance(item, tuple | list) and item else item


def describe(value: Any) -> str:
    """`a float32 tensor of shape (3, 32, 32)`, for errors."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
