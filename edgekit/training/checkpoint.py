"""The checkpoint of a training run: written by rename, read without unpickling code."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

__all__ = ["CHECKPOINT_NAME", "FINISHED", "KEY", "CheckpointWriter", "StoredRun", "find_stored_run"]

CHECKPOINT_NAME = "last.ckpt"
KEY = "edgekit_fit_key"
FINISHED = "edgekit_finished"

logger = getLogger(__name__)


class CheckpointWriter(pl.Callback):  # type: ignore[misc]  # Lightning is not followed by mypy
    """Writes `last.ckpt` after each epoch, and within one whenever `seconds` have passed.

    The file appears by rename, so a run killed while writing leaves the one before; weights that are not finite are
    never written. When it is written does not change what a resumed run computes.
    """

    def __init__(self, folder: Path, *, key: str, seconds: float) -> None:
        self.path = folder / CHECKPOINT_NAME
        self.fit_key = key
        self.seconds = seconds
        self._written = time.monotonic()
        self._is_last = False

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.fit_key
        checkpoint[FINISHED] = self._is_last

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        is_last = batch_idx + 1 == trainer.num_training_batches
        if not is_last and self._is_due(trainer, batch_idx):
            self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._is_last = bool(trainer.should_stop) or trainer.current_epoch + 1 >= trainer.max_epochs
        self._write(trainer, pl_module)

    def _is_due(self, trainer: Any, batch_idx: int) -> bool:
        if trainer.world_size > 1:  # every process writes together, so one of them says when
            is_asked = batch_idx % 16 == 15
            return is_asked and bool(trainer.strategy.broadcast(time.monotonic() - self._written >= self.seconds))
        return time.monotonic() - self._written >= self.seconds

    def _write(self, trainer: Any, pl_module: Any) -> None:
        pl_module.require_finite_weights()
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            with partial.open("rb") as f:
                os.fsync(f.fileno())
            partial.replace(self.path)
        self._written = time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A checkpoint that belongs to the run that asks."""

    path: Path
    step: int
    """Optimizer steps done, over all epochs."""
    finished: bool
    """Nothing is left to train."""

    def load(self) -> dict[str, Any]:
        """All of it, on the CPU."""
        loaded: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        return loaded


def find_stored_run(folder: Path, *, key: str) -> StoredRun | None:
    """The run stored in `folder` if it is the run `key`, else None (the run then starts at the beginning)."""
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        told, step, finished = found[KEY], int(found["global_step"]), bool(found[FINISHED])
    except Exception as e:  # noqa: BLE001 - torch.load raises whatever the broken bytes lead it to
        logger.warning("%s cannot be read (%s: %s); training starts at the beginning", path, type(e).__name__, e)
        return None
    if told != key:
        logger.warning("%s belongs to another training run; training starts at the beginning", path)
        return None
    return StoredRun(path=path, step=step, finished=finished)
