"""The PyTorch Lightning side of the training loop: the module, its progress, and a Trainer that keeps quiet."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from edgekit.errors import EdgekitError, UserError
from edgekit.training.batches import EpochBatches, derive_seed, generators_kept, seed_generators
from edgekit.training.objective import Batch, Objective, top1_counts

if TYPE_CHECKING:
    from edgekit.compress.options import TrainOptions

__all__ = ["RunningMeans", "TrainingModule", "borrowed_process_state", "make_trainer", "run_trainer"]

_LIGHTNING_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning", "lightning.pytorch", "lightning.fabric")


@dataclass(slots=True)
class RunningMeans:
    """Exponential means of loss and accuracy, bias-corrected as Adam's are; part of the checkpoint."""

    steps: int = 0
    loss: float = 0.0
    judged: int = 0
    """Steps that had targets to judge by."""
    accuracy: float = 0.0
    decay: float = 0.98

    def add(self, loss: float, right: int, labelled: int) -> None:
        """Take in one more batch; one without targets leaves the accuracy as it is."""
        self.steps += 1
        self.loss = self.decay * self.loss + (1 - self.decay) * loss
        if labelled:
            self.judged += 1
            self.accuracy = self.decay * self.accuracy + (1 - self.decay) * right / labelled

    def current(self) -> tuple[float, float | None]:
        """Loss and accuracy; None for the accuracy where no batch had targets."""
        loss = self.loss / (1 - self.decay**self.steps) if self.steps else 0.0
        return loss, self.accuracy / (1 - self.decay**self.judged) if self.judged else None

    def dump(self) -> list[float]:
        """For a checkpoint."""
        return [self.steps, self.loss, self.judged, self.accuracy]

    @classmethod
    def load(cls, values: list[float]) -> RunningMeans:
        steps, loss, judged, accuracy = values
        return cls(steps=int(steps), loss=loss, judged=int(judged), accuracy=accuracy)


class TrainingModule(pl.LightningModule):  # type: ignore[misc]  # Lightning is not followed by mypy
    """One optimisation step, and the state that makes a resumed run equal to an uninterrupted one."""

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        batches: EpochBatches,
        options: TrainOptions,
        *,
        seed: int,
        on_step: Callable[[int, float, float | None], None] | None,
        after_step: Callable[[nn.Module], None] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.parts = objective.parts if objective.parts is not None else nn.Module()
        # In a tuple, lest one that is an nn.Module is registered: a teacher within is not trained, moved or saved.
        self._objective = (objective,)
        self.after_step = after_step
        self.batches = batches
        self.options = options
        self.seed = seed
        self.on_step = on_step
        self.means = RunningMeans()
        self.first_step = 0

    @property
    def objective(self) -> Objective:
        return self._objective[0]

    @property
    def total_steps(self) -> int:
        return self.options.epochs * len(self.batches)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad],
            lr=self.options.learning_rate,
            weight_decay=self.options.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.options.learning_rate, total_steps=max(self.total_steps, 2)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # training is on the CPU, where the data is

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed_generators(derive_seed(self.seed, "step", self.batches.position))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        outcome = self.objective.step(self.module, batch)
        value = float(outcome.loss.detach())
        if not math.isfinite(value):
            raise UserError(
                f"training diverged: the loss is {value} at step {self.batches.position + 1} of {self.total_steps} "
                f"(learning_rate {self.options.learning_rate:g})",
                hint=f"lower the learning rate, to {self.options.learning_rate / 10:g} say; "
                "if it happens at step 1, look for values that are not finite in the data",
            )
        self.means.add(value, *top1_counts(outcome.outputs, batch))
        return outcome.loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.position += 1
        with torch.no_grad():
            self.objective.after_step(self.module, self.batches.position, self.total_steps)
            if self.after_step is not None:
                self.after_step(self.module)
        if self.on_step is not None:
            self.on_step(self.batches.position, *self.means.current())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["edgekit_means"] = self.means.dump()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The optimizer's count, not a position saved by the batches: callbacks save before on_train_batch_end here.
        self.batches.position = self.first_step = int(checkpoint["global_step"])
        self.means = RunningMeans.load(checkpoint["edgekit_means"])


@contextlib.contextmanager
def borrowed_process_state(threads: int | None) -> Iterator[None]:
    """Gives back, on leaving, what training changes in the process.

    That is: torch's threads, the three random generators, the SIGINT handler, warning filters, Lightning's log level.
    """
    loggers = [logging.getLogger(name) for name in _LIGHTNING_LOGGERS]
    levels = [log.level for log in loggers]
    before = torch.get_num_threads()
    with warnings.catch_warnings(), generators_kept():
        # Lightning comments on every choice made here (no workers, no logger, no validation); its own words only.
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)(\..*)?")
        warnings.filterwarnings("ignore", category=_possible_user_warning())
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


def _possible_user_warning() -> type[Warning]:
    from lightning_fabric.utilities.warnings import PossibleUserWarning

    category: type[Warning] = PossibleUserWarning
    return category


def make_trainer(work_dir: Path, *, epochs: int, callbacks: list[pl.Callback]) -> Any:
    """A Lightning Trainer on the CPU that prints nothing and writes nothing of its own."""
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        callbacks=callbacks,
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
        trainer.fit(module, train_dataloaders=module.batches, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as e:
        if not isinstance(e.__context__, KeyboardInterrupt):
            raise
        # Lightning left SIGINT ignored on its way out (trainer/call.py): a later Ctrl-C must work.
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from e
    except (EdgekitError, KeyboardInterrupt):
        raise
