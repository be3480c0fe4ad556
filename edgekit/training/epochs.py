"""One epoch's batches, in an order that depends only on the seed and the epoch, and the validation's.

Before each batch is fetched every random generator is seeded from (seed, epoch, batch), so that a run resumed in the
middle of an epoch sees the very batches, augmented the very way, that it would have seen; that worker processes may
fetch them changes nothing of it. With several devices each takes an equal part of every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from edgekit.errors import EdgekitError, UserError, WorkloadError
from edgekit.training.batches import BatchSource, derive_seed, describe, seed_generators
from edgekit.training.objective import Batch

__all__ = ["EpochBatches", "ValidationBatches", "split_samples"]

logger = getLogger(__name__)


def split_samples(count: int, share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on and to validate on, `share` of `count`, each sorted; the same for the same seed."""
    held_out = round(share * count)
    if share and not 0 < held_out < count:
        raise UserError(f"validation: {share:g} of {count} training samples leaves none on one side")
    generator = torch.Generator().manual_seed(derive_seed(seed, "validation split"))
    order = torch.randperm(count, generator=generator)
    return order[held_out:].sort().values, order[:held_out].sort().values


class EpochBatches:
    """An iterable of one epoch's batches that starts at `position` (batches already trained on, over all epochs)."""

    def __init__(
        self,
        source: BatchSource,
        *,
        batch_size: int,
        seed: int,
        augment: Callable[[Tensor], Tensor] | None = None,
        samples: Tensor | None = None,
        workers: int = 0,
        devices: int = 1,
    ) -> None:
        self.source = source
        self.samples = torch.arange(len(source)) if samples is None else samples
        self.batch_size = _fitting_batch(batch_size, len(self.samples), source.name, devices)
        self.seed = seed
        self.augment = augment
        self.workers = workers
        self.devices = devices
        self.rank = 0
        self.position = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        # A last batch of one sample has no variance for batch normalisation; the remainder is dropped, as is usual.
        return len(self.samples) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = divmod(self.position, len(self))
        fetching = _EpochFetching(self, epoch)
        if not self.workers:
            for index in range(start, len(self)):
                yield fetching.batch(index)
            return
        loader: Any = torch.utils.data.DataLoader(
            fetching,
            batch_size=None,
            sampler=range(start, len(self)),
            num_workers=self.workers,
            collate_fn=_as_it_is,
        )
        for batch in loader:
            if isinstance(batch, _Refusal):
                raise batch.error()
            yield batch

    def order_of(self, epoch: int) -> Tensor:
        """The samples of an epoch, in order."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        return self.samples[torch.randperm(len(self.samples), generator=generator)]

    def part_of(self, order: Tensor, index: int) -> Tensor:
        """This device's samples of a batch."""
        part = self.batch_size // self.devices
        start = index * self.batch_size + self.rank * part
        return order[start : start + part]


def _fitting_batch(wanted: int, available: int, name: str, devices: int) -> int:
    if available < devices or not available:
        raise WorkloadError(f"{name} data: there are {available or 'no'} items to train on")
    batch = min(wanted, available - available % devices)
    if batch < wanted:
        logger.warning("%s data: %d samples do not fill a batch of %d; a batch is %d", name, available, wanted, batch)
    return batch


class _Refusal:
    """An error of the user's data, on its way out of a worker process."""

    def __init__(self, error: EdgekitError) -> None:
        self.message, self.hint = str(error), error.hint

    def error(self) -> WorkloadError:
        return WorkloadError(self.message, hint=self.hint)


class _EpochFetching(torch.utils.data.Dataset[Any]):
    """The batches of one epoch by their number."""

    def __init__(self, batches: EpochBatches, epoch: int) -> None:
        self.batches = batches
        self.epoch = epoch
        self.order = batches.order_of(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch | _Refusal:
        try:
            return self.batch(index)
        except EdgekitError as e:
            return _Refusal(e)

    def batch(self, index: int) -> Batch:
        batches = self.batches
        apart = (batches.rank,) if batches.rank else ()
        seed_generators(derive_seed(batches.seed, "fetch", self.epoch, index, *apart))
        batch = batches.source.fetch(batches.part_of(self.order, index))
        return batch if batches.augment is None else _augmented(batch, batches.augment)


def _as_it_is(value: Any) -> Any:
    return value


def _augmented(batch: Batch, augment: Callable[[Tensor], Tensor]) -> Batch:
    first = augment(batch.inputs[0])
    if not isinstance(first, Tensor) or first.shape != batch.inputs[0].shape:
        raise WorkloadError(
            f"augment turned {describe(batch.inputs[0])} into {describe(first)}; it must keep the batch's shape"
        )
    return Batch(inputs=(first, *batch.inputs[1:]), targets=batch.targets, indices=batch.indices)


class ValidationBatches:
    """The held-out samples in order, as (batch, its samples that count); not augmented.

    With several devices each takes a part of every batch; one left without a sample gets one that counts 0.
    """

    def __init__(self, source: BatchSource, samples: Tensor, *, batch_size: int, devices: int = 1) -> None:
        self.source = source
        self.chunks = torch.split(samples, batch_size)
        self.devices = devices
        self.rank = 0

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        for chunk in self.chunks:
            mine = chunk[self.rank :: self.devices]
            yield self.source.fetch(mine if len(mine) else chunk[:1]), len(mine)
