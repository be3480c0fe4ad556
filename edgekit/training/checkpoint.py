"""The checkpoint of a training run: written by rename, read without unpickling code."""

from __future__ import annotations

import os
import time
from logging import getLogger
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

__all__ = ["CHECKPOINT_NAME", "KEY", "CheckpointWriter", "usable_checkpoint"]

CHECKPOINT_NAME = "last.ckpt"
KEY = "edgekit_fit_key"

logger = getLogger(__name__)


class CheckpointWriter(pl.Callback):  # type: ignore[misc]  # Lightning is not followed by mypy
    """Writes `last.ckpt` after each epoch, and within one whenever `seconds` have passed.

    The file appears by rename, so a run killed while writing leaves the one before. When it is written does not
    change what a resumed run computes.
    """

    def __init__(self, folder: Path, *, key: str, seconds: float) -> None:
        self.path = folder / CHECKPOINT_NAME
        self.fit_key = key
        self.seconds = seconds
        self._written = time.monotonic()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.fit_key

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        is_last = batch_idx + 1 == trainer.num_training_batches
        if not is_last and time.monotonic() - self._written >= self.seconds:
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._write(trainer)

    def _write(self, trainer: Any) -> None:
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        with partial.open("rb") as f:
            os.fsync(f.fileno())
        partial.replace(self.path)
        self._written = time.monotonic()


def usable_checkpoint(folder: Path, *, key: str) -> Path | None:
    """The checkpoint in `folder` if it belongs to the run `key`, else None (the run then starts at the beginning)."""
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get(KEY)
    except Exception as e:  # noqa: BLE001 - torch.load raises whatever the broken bytes lead it to
        logger.warning("%s cannot be read (%s: %s); training starts at the beginning", path, type(e).__name__, e)
        return None
    if found != key:
        logger.warning("%s belongs to another training run; training starts at the beginning", path)
        return None
    return path
