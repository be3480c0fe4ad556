"""The data of a climb: a part to search on, the rest to calibrate and train with, and the evaluation set kept away.

What is calibrated or trained on tells too much good of a file, so the search data are taken out of the training data
first; and the evaluation data are shown only files that pass there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Subset, TensorDataset

from edgekit.errors import WorkloadError
from edgekit.training.batches import BatchSource

if TYPE_CHECKING:
    from edgekit.workload import MapDataset, Workload

__all__ = ["LEAST_SEARCHED", "TuneData", "split"]

LEAST_SEARCHED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneData:
    """`search` has the part of `train` (or of `calibration`) that nothing is made with; `visible` is the workload
    without it, which has it in the place of its evaluation data."""

    visible: Workload
    search: MapDataset
    search_name: str
    evaluation: MapDataset
    evaluation_name: str


def split(workload: Workload, count: int, *, seed: int) -> TuneData:
    """At most `count` samples, and at most a quarter, to search on. Raises WorkloadError where there are too few."""
    data = workload.train if workload.train is not None else workload.calibration
    if data is None:
        raise WorkloadError(
            f"workload '{workload.name}' has no training or calibration data to search on",
            hint="give Workload(train=…): the evaluation data are kept for the verdict",
        )
    size = int(workload.example_inputs[0].shape[0])
    wanted = min(count, len(data) // 4)
    wanted -= wanted % size
    if wanted < LEAST_SEARCHED:
        raise WorkloadError(
            f"workload '{workload.name}': a quarter of {len(data)} samples is too few to search on",
            hint=f"at least {4 * max(LEAST_SEARCHED, size)} are needed",
        )
    order = np.random.default_rng(seed).permutation(len(data))
    searched, rest = part_of(data, np.sort(order[:wanted])), part_of(data, np.sort(order[wanted:]))
    is_train = workload.train is not None
    visible = replace(
        workload,
        train=rest if is_train else None,
        calibration=workload.calibration if is_train else rest,
        evaluation=searched,
    )
    name = "training" if is_train else "calibration"
    return TuneData(
        visible=visible,
        search=searched,
        search_name=f"{wanted} {name} inputs that nothing was calibrated or trained with",
        evaluation=workload.evaluation,
        evaluation_name=f"{len(workload.evaluation) // size * size} evaluation inputs",
    )


def part_of(data: MapDataset, indices: Sequence[int] | np.ndarray[Any, Any]) -> MapDataset:
    """Some items of a data set; of a tensor data set, one again."""
    columns = BatchSource(data, "train").tensors
    chosen = torch.as_tensor(np.asarray(indices), dtype=torch.int64)
    if columns is not None:
        return TensorDataset(*(column.index_select(0, chosen) for column in columns))
    return Subset(data, chosen.tolist())  # type: ignore[arg-type]  # only its __getitem__ and __len__ are used
