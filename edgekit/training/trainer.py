"""Lightning's Trainer as edgekit runs it: quiet, on the hardware asked for, and gone without a trace."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from edgekit.training.batches import generators_kept

if TYPE_CHECKING:
    from edgekit.training.lightning_loop import TrainingModule

__all__ = ["borrowed_process_state", "make_trainer", "run_trainer"]

_LIGHTNING_LOGGERS = (
    "pytorch_lightning", "lightning_fabric", "lightning", "lightning.pytorch", "lightning.fabric",
    "torch.multiprocessing.spawn",
)  # fmt: skip
_LAUNCH_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "GLOBAL_RANK", "NODE_RANK", "WORLD_SIZE", "GROUP_RANK")


@contextlib.contextmanager
def borrowed_process_state(threads: int | None) -> Iterator[None]:
    """Gives back, on leaving, what training changes in the process.

    That is: torch's threads, the three random generators, the SIGINT handler, warning filters, Lightning's log level,
    the environment variables of a launch.
    """
    loggers = [logging.getLogger(name) for name in _LIGHTNING_LOGGERS]
    levels = [log.level for log in loggers]
    before = torch.get_num_threads()
    launched = {name: os.environ.get(name) for name in _LAUNCH_VARIABLES}
    with warnings.catch_warnings(), generators_kept():
        # Lightning comments on every choice made here (no workers, no validation); its own words only.
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)(\..*)?")
        warnings.filterwarnings("ignore", category=_possible_user_warning())
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")
        for log in loggers:
            log.setLevel(logging.ERROR)
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
            for name, value in launched.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _possible_user_warning() -> type[Warning]:
    from lightning_fabric.utilities.warnings import PossibleUserWarning

    category: type[Warning] = PossibleUserWarning
    return category


def make_trainer(
    work_dir: Path,
    *,
    epochs: int,
    callbacks: list[pl.Callback],
    logger: Any,
    hardware: dict[str, Any],
    gradient_clip: float | None,
    validates: bool,
) -> Any:
    """A Lightning Trainer that prints nothing and writes nothing but what `logger` does."""
    return pl.Trainer(
        **hardware,
        max_epochs=epochs,
        logger=logger,
        callbacks=callbacks,
        gradient_clip_val=gradient_clip,
        limit_val_batches=None if validates else 0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=work_dir,
    )


def run_trainer(trainer: Any, module: TrainingModule, *, checkpoint: Path | None) -> None:
    """Train to the end; raises KeyboardInterrupt on Ctrl-C, which Lightning would turn into sys.exit(1)."""
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            module,
            train_dataloaders=module.batches,
            val_dataloaders=module.validation,
            ckpt_path=checkpoint,
            weights_only=True,
        )
    except SystemExit as e:
        if not isinstance(e.__context__, KeyboardInterrupt):
            raise
        # Lightning left SIGINT ignored on its way out (trainer/call.py): a later Ctrl-C must work.
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from e
