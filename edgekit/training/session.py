"""One training run put together: data, Lightning module, hardware, logger, checkpoint; and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor, nn

from edgekit.training.batches import BatchSource
from edgekit.training.checkpoint import CheckpointWriter, StoredRun, find_stored_run
from edgekit.training.epochs import EpochBatches, ValidationBatches, split_samples
from edgekit.training.hardware import Hardware, choose_hardware
from edgekit.training.lightning_loop import StepReport, TrainingModule
from edgekit.training.loggers import make_logger
from edgekit.training.objective import Objective
from edgekit.training.trainer import borrowed_process_state, make_trainer, run_trainer

if TYPE_CHECKING:
    from edgekit.compress.options import TrainOptions
    from edgekit.workload import MapDataset

__all__ = ["Session"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a training run is made from."""

    module: nn.Module
    objective: Objective
    data: MapDataset
    options: TrainOptions
    seed: int
    work_dir: Path
    key: str
    augment: Callable[[Tensor], Tensor] | None
    after_step: Callable[[nn.Module], None] | None
    checkpoint_seconds: float

    def batches(self) -> tuple[EpochBatches, ValidationBatches | None]:
        """The training batches, and those of the held-out share where there is one."""
        options = self.options
        source = BatchSource(self.data, "train", labelled=self.objective.needs_targets)
        kept, held_out = split_samples(len(source), options.validation, seed=self.seed)
        batches = EpochBatches(
            source,
            batch_size=options.batch_size,
            seed=self.seed,
            augment=self.augment,
            samples=kept,
            workers=options.workers,
            devices=options.devices,
        )
        validation = ValidationBatches(source, held_out, batch_size=options.batch_size, devices=options.devices)
        return batches, validation if len(held_out) else None

    def train(
        self,
        batches: EpochBatches,
        validation: ValidationBatches | None,
        on_step: Callable[[StepReport], None] | None,
    ) -> TrainingModule:
        """Train to the end from wherever an earlier run stopped; the module holds the last, or the best, weights."""
        hardware = choose_hardware(self.options)
        found = find_stored_run(self.work_dir, key=self.key)
        training = TrainingModule(
            self.module, self.objective, batches, self.options,
            seed=self.seed, validation=validation, on_step=on_step, after_step=self.after_step,
        )  # fmt: skip
        ended = found if found is not None and found.finished else None
        if ended is None:
            self._run(training, hardware, found, on_step)
            if hardware.devices > 1:  # trained in other processes; all of it is in the file
                ended = find_stored_run(self.work_dir, key=self.key)
        if ended is not None:
            _restore(training, ended)
        training.first_step = found.step if found is not None else 0
        if training.best.state:
            training.load_state_dict(training.best.state)
        self.module.eval()
        return training

    def _run(
        self,
        training: TrainingModule,
        hardware: Hardware,
        found: StoredRun | None,
        on_step: Callable[[StepReport], None] | None,
    ) -> None:
        with borrowed_process_state(self.options.threads):
            self.module.train()
            arguments = hardware.trainer_arguments()
            if hardware.devices > 1:
                from edgekit.training.processes import Relay, forked_ddp

                relay = Relay(hardware.devices, on_step)
                training.on_step = relay.tell
                arguments |= forked_ddp(relay, training, backend=hardware.backend)
            trainer = make_trainer(
                self.work_dir,
                epochs=self.options.epochs,
                callbacks=self._callbacks(),
                logger=self._logger(),
                hardware=arguments,
                gradient_clip=self.options.gradient_clip,
                validates=training.validation is not None,
            )
            try:
                run_trainer(trainer, training, checkpoint=found.path if found is not None else None)
            finally:
                training.cpu()
                self.objective.to(torch.device("cpu"))

    def _logger(self) -> Any:
        config: dict[str, Any] = {**self.options.model_dump(mode="json"), "seed": self.seed}
        return make_logger(self.options.logger, self.work_dir, config=config)

    def _callbacks(self) -> list[pl.Callback]:
        writer = CheckpointWriter(self.work_dir, key=self.key, seconds=self.checkpoint_seconds)
        if self.options.patience is None:
            return [writer]
        # Lightning runs it after every other callback where it acts at an epoch's end: too late for the checkpoint.
        early = EarlyStopping(
            "validation_score", patience=self.options.patience, mode="min", check_on_train_epoch_end=False
        )
        return [early, writer]


def _restore(training: TrainingModule, stored: StoredRun) -> None:
    checkpoint = stored.load()
    training.load_state_dict(checkpoint["state_dict"])
    training.on_load_checkpoint(checkpoint)
