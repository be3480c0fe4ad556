"""Data sets as pretraining and its evaluation read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from edgekit.training.batches import BatchSource

if TYPE_CHECKING:
    from edgekit.workload import MapDataset

__all__ = ["evenly_spaced", "without_labels"]


class _Inputs(Dataset[Any]):
    """Items `((first, second, …),)` of a tensor data set whose first columns are a model's inputs."""

    def __init__(self, data: MapDataset, inputs: int) -> None:
        self.data = data
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return (tuple(self.data[index][: self.inputs]),)


def without_labels(data: MapDataset, *, inputs: int = 1) -> MapDataset:
    """Labelled `data` as unlabelled: of a tensor data set the first `inputs` columns are what a model reads.

    Only a TensorDataset of several inputs has to be told apart; the first part of any other item is its input.
    """
    columns = BatchSource(data, "train").tensors
    return data if inputs == 1 or columns is None else _Inputs(data, inputs)


def evenly_spaced(data: MapDataset, count: int) -> MapDataset:
    """`count` samples of `data`, evenly spaced; all of them where there are no more."""
    if len(data) <= count:
        return data
    indices = torch.linspace(0, len(data) - 1, count).long()
    columns = BatchSource(data, "probe").tensors
    if columns is not None:
        return TensorDataset(*(column[indices] for column in columns))
    whole: Any = data
    return Subset(whole, indices.tolist())
