"""Batches out of a map-style data set, in an order that depends only on the seed and the epoch.

A tensor data set (`torch.utils.data.TensorDataset`) is read by index_select, whole batches at a time; any other
item by item. Before each batch is fetched every random generator is seeded from (seed, epoch, batch), so that a run
resumed in the middle of an epoch sees the very batches, augmented the very way, that it would have seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgekit.errors import WorkloadError
from edgekit.training.objective import Batch

if TYPE_CHECKING:
    from edgekit.workload import MapDataset

__all__ = ["BatchSource", "EpochBatches", "derive_seed", "generators_kept", "seed_generators"]


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
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@dataclass(frozen=True, slots=True)
class BatchSource:
    """`fetch(indices)` on one data set; `name` says which in errors."""

    data: MapDataset
    name: str

    def __len__(self) -> int:
        return len(self.data)

    @property
    def tensors(self) -> tuple[Tensor, ...] | None:
        """The columns of a tensor data set, None for any other."""
        columns = getattr(self.data, "tensors", None)
        if not isinstance(columns, tuple | list) or len(columns) < 2:
            return None
        if not all(isinstance(column, Tensor) for column in columns):
            return None
        # A subclass that changes its items (transforms) must be asked item by item.
        if type(self.data).__getitem__ is not torch.utils.data.TensorDataset.__getitem__:
            return None
        return tuple(columns)

    def fetch(self, indices: Tensor) -> Batch:
        """The samples at `indices` as one batch; raises WorkloadError for items that are not (input, target)."""
        columns = self.tensors
        if columns is not None:
            chosen = [column.index_select(0, indices) for column in columns]
            return self._checked(tuple(chosen[:-1]), chosen[-1], indices)
        inputs, targets = self._collate([self.data[int(i)] for i in indices])
        return self._checked(inputs, targets, indices)

    def _collate(self, items: list[Any]) -> tuple[tuple[Tensor, ...], Tensor]:
        first = items[0]
        if not isinstance(first, tuple | list) or len(first) != 2:
            raise WorkloadError(
                f"{self.name} data: an item is {_describe(first)}, not (input, target)",
                hint="__getitem__ must return a tuple of the input (a tensor, or a tuple of tensors) and the target",
            )
        try:
            inputs, targets = torch.utils.data.default_collate([tuple(item) for item in items])
        except (TypeError, RuntimeError, ValueError, KeyError) as e:
            shapes = sorted({_describe(item[0]) for item in items})
            raise WorkloadError(
                f"{self.name} data: items cannot be stacked into a batch ({e}); inputs seen: {', '.join(shapes[:4])}",
                hint="every input needs the same shape and dtype; resize or pad in the data set",
            ) from e
        return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), targets

    def _checked(self, inputs: tuple[Tensor, ...], targets: Any, indices: Tensor) -> Batch:
        for value in inputs:
            if not isinstance(value, Tensor):
                raise WorkloadError(f"{self.name} data: an input is {_describe(value)}, not a tensor")
        if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.dtype.is_floating_point:
            raise WorkloadError(
                f"{self.name} data: targets of a batch are {_describe(targets)}; classification needs one class "
                "number (an int from 0) per item"
            )
        return Batch(inputs=inputs, targets=targets.long(), indices=indices)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


class EpochBatches:
    """An iterable of one epoch's batches that starts at `position` (batches already trained on, over all epochs)."""

    def __init__(
        self,
        source: BatchSource,
        *,
        batch_size: int,
        seed: int,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.source = source
        # A last batch of one sample has no variance for batch normalisation; the remainder is dropped, as is usual.
        self.batch_size = min(batch_size, len(source))
        self.seed = seed
        self.augment = augment
        self.position = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.source) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = divmod(self.position, len(self))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        order = torch.randperm(len(self.source), generator=generator)
        for index in range(start, len(self)):
            seed_generators(derive_seed(self.seed, "fetch", epoch, index))
            batch = self.source.fetch(order[index * self.batch_size : (index + 1) * self.batch_size])
            yield self._augmented(batch)

    def _augmented(self, batch: Batch) -> Batch:
        if self.augment is None:
            return batch
        first = self.augment(batch.inputs[0])
        if not isinstance(first, Tensor) or first.shape != batch.inputs[0].shape:
            raise WorkloadError(
                f"augment turned {_describe(batch.inputs[0])} into {_describe(first)}; it must keep the batch's shape"
            )
        return Batch(inputs=(first, *batch.inputs[1:]), targets=batch.targets, indices=batch.indices)
