"""Where the curves of a training run go: TensorBoard's files by default, CSV, or Weights & Biases."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from edgekit.errors import MissingDependencyError, UserError

__all__ = ["LOGS", "keep_logs", "make_logger"]

LOGS = "logs"
"""The folder in a run's `work_dir` that holds its curves."""


def make_logger(kind: str, work_dir: Path, *, config: dict[str, Any]) -> Any:
    """A Lightning logger that writes below `work_dir/logs`, or False for none.

    Raises MissingDependencyError for TensorBoard's absence, UserError for W&B's, which no extra of edgekit brings.
    """
    if kind == "none":
        return False
    if kind == "csv":
        from pytorch_lightning.loggers import CSVLogger

        return CSVLogger(work_dir, name="", version=LOGS)
    if kind == "wandb":
        return _weights_and_biases(work_dir, config)
    if importlib.util.find_spec("tensorboard") is None and importlib.util.find_spec("tensorboardX") is None:
        raise MissingDependencyError("logging to TensorBoard", extra="train", package="tensorboard")
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(work_dir, name="", version=LOGS, default_hp_metric=False)


def _weights_and_biases(work_dir: Path, config: dict[str, Any]) -> Any:
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            "logger: wandb needs the package 'wandb', which is not installed",
            hint="pip install wandb, or leave logger out: TensorBoard's files need no account",
        )
    from pytorch_lightning.loggers import WandbLogger

    (work_dir / LOGS).mkdir(parents=True, exist_ok=True)
    # WANDB_PROJECT, WANDB_MODE, WANDB_API_KEY and the rest are wandb's own.
    return WandbLogger(save_dir=work_dir / LOGS, name=work_dir.name, config=config)


def keep_logs(work: Path, out: Path) -> None:
    """Copy the curves of every run below `work` to `out/logs`, at the same relative place."""
    for found in sorted(work.rglob(LOGS)):
        if found.is_dir() and out not in found.parents:
            below = found.parent.relative_to(work)
            shutil.copytree(found, out / LOGS / below, dirs_exist_ok=True)
