"""Exercises from a smartwatch's six axes: a 1D-CNN on windows of two seconds, tested on people it has never seen.

The data come in the package seglearn (Burns et al. 2018): 140 recordings of 10 people, 7 shoulder exercises, 50 Hz.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgekit import Workload
from edgekit.errors import MissingDependencyError, WorkloadError

WINDOW, STEP = 100, 50
"""Samples: 2 s, half overlapping. Windows of one recording are alike, so the split is by person."""


class WatchNet(nn.Module):
    """Logits `[N, 7]` of windows `[N, 6, WINDOW]`."""

    def __init__(self, *, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv(6, width, kernel=7), conv(width, 2 * width, kernel=5), conv(2 * width, 2 * width, kernel=5)
        )
        self.head = nn.Linear(2 * width, 7)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x).mean(2))
        return logits


def conv(inputs: int, outputs: int, *, kernel: int) -> nn.Sequential:
    """A convolution over time that halves its length."""
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, kernel, 2, kernel // 2, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()
    )


def recordings(data: str) -> dict[str, object]:
    """The package's file, or a copy of it at `data`."""
    if data != "seglearn":
        path = Path(data).expanduser()
        if not path.is_file():
            raise WorkloadError(f"{data}: no such file", hint="leave data out, or give a copy of watch_dataset.npy")
    else:
        found = importlib.util.find_spec("seglearn")
        if found is None or found.origin is None:
            raise MissingDependencyError("the watch's recordings", extra="examples", package="seglearn")
        path = Path(found.origin).parent / "data" / "watch_dataset.npy"
    # A pickle: as much to be trusted as the package that it comes in.
    loaded: dict[str, object] = np.load(path, allow_pickle=True).item()
    return loaded


def windows(series: list[np.ndarray], labels: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> TensorDataset:
    """`[N, 6, WINDOW]` float32 of all recordings, and the exercise of each."""
    cut = [((s - mean) / deviation)[i : i + WINDOW].T for s in series for i in range(0, len(s) - WINDOW + 1, STEP)]
    counts = [len(range(0, len(s) - WINDOW + 1, STEP)) for s in series]
    return TensorDataset(
        torch.from_numpy(np.stack(cut).astype(np.float32)), torch.from_numpy(np.repeat(labels.astype(np.int64), counts))
    )


def workload(data: str = "seglearn", unseen: str = "8,9,10") -> Workload:
    """People `unseen` for the test, the others for training."""
    loaded = recordings(data)
    series, labels, people = list(loaded["X"]), np.asarray(loaded["y"]), np.asarray(loaded["subject"])  # type: ignore[call-overload]
    tested = np.isin(people, [int(number) for number in unseen.split(",")])
    if tested.all() or not tested.any():
        raise WorkloadError(f"unseen: {unseen} leaves nobody on one side", hint="people are 1 to 10: unseen: '8,9,10'")
    seen = np.concatenate([s for s, is_tested in zip(series, tested, strict=True) if not is_tested])
    train, test = (
        windows(
            [s for s, t in zip(series, tested, strict=True) if t == side],
            labels[tested == side],
            seen.mean(0),
            seen.std(0),
        )
        for side in (False, True)
    )
    return Workload(
        name="watch-net",
        model=functools.partial(WatchNet),
        example_inputs=(torch.zeros(1, 6, WINDOW),),
        train=train,
        evaluation=test,
        classes=tuple(str(name) for name in loaded["y_labels"]),  # type: ignore[attr-defined]
        data_name=f"watch exercises, unseen people {unseen}",
        data_source="package seglearn, BSD-3-Clause; Burns et al. 2018",
    )
