"""The Lightning module of the training loop: one optimisation step, validation, and what a checkpoint holds."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from edgekit.errors import UserError
from edgekit.training.batches import derive_seed, seed_generators
from edgekit.training.epochs import EpochBatches, ValidationBatches
from edgekit.training.objective import Batch, Objective, top1_counts
from edgekit.training.schedules import make_optimizer, make_schedule
from edgekit.training.validation import BestWeights, Judged, Judgement

if TYPE_CHECKING:
    from edgekit.compress.options import TrainOptions

__all__ = ["RunningMeans", "StepReport", "TrainingModule"]

_LOG_EVERY = 20
"""Steps between two points of a curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What is told after a step."""

    step: int
    loss: float
    accuracy: float | None
    validation: Judgement | None
    """Of the latest epoch that was judged."""


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
        validation: ValidationBatches | None = None,
        on_step: Callable[[StepReport], None] | None = None,
        after_step: Callable[[nn.Module], None] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.parts = objective.parts if objective.parts is not None else nn.Module()
        # In a tuple, lest one that is an nn.Module is registered: a teacher within is not trained, moved or saved.
        self._objective = (objective,)
        self.batches = batches
        self.validation = validation
        self.options = options
        self.seed = seed
        self.on_step = on_step
        self.after_step = after_step
        self.means = RunningMeans()
        self.judged = Judged()
        self.best = BestWeights(monitor=options.monitor)
        self.first_step = 0
        self._sigterm = signal.getsignal(signal.SIGTERM)

    @property
    def objective(self) -> Objective:
        return self._objective[0]

    @property
    def total_steps(self) -> int:
        return self.options.epochs * len(self.batches)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer([p for p in self.parameters() if p.requires_grad], self.options)
        schedule = make_schedule(optimizer, self.options, len(self.batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        self.objective.to(self.device)
        self.batches.rank = self.global_rank
        if self.validation is not None:
            self.validation.rank = self.global_rank

    def on_train_start(self) -> None:
        # Lightning's own handler ends a terminated run with exit status 0, and talks to processes that may be gone.
        if threading.current_thread() is threading.main_thread():
            one_of_many = self.trainer.world_size > 1
            signal.signal(signal.SIGTERM, signal.SIG_DFL if one_of_many else self._sigterm or signal.SIG_DFL)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, tuple):
            return self.transfer_batch_to_device(batch[0], device, dataloader_idx), batch[1]
        return batch if device.type == "cpu" else batch.to(device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        apart = (self.global_rank,) if self.global_rank else ()
        seed_generators(derive_seed(self.seed, "step", self.batches.position, *apart))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        outcome = self.objective.step(self.module, batch)
        value, right, labelled = self._over_devices(
            float(outcome.loss.detach()) / self.trainer.world_size, *top1_counts(outcome.outputs, batch)
        )
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", self.batches.position + 1)
        self.means.add(value, int(right), int(labelled))
        return outcome.loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.objective.after_step(self.module, self.batches.position + 1, self.total_steps)
            if self.after_step is not None:
                self.after_step(self.module)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.position += 1
        loss, accuracy = self.means.current()
        if self.logger is not None and self.batches.position % min(_LOG_EVERY, len(self.batches)) == 0:
            self._log_curves(loss, accuracy)
        if self.on_step is not None and self.global_rank == 0:
            self.on_step(
                StepReport(step=self.batches.position, loss=loss, accuracy=accuracy, validation=self.judged.latest)
            )

    def on_validation_epoch_start(self) -> None:
        self.judged.start()

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        # An objective that draws (two views) draws the same in every epoch, so that epochs can be compared.
        seed_generators(derive_seed(self.seed, "validation", batch_idx, self.global_rank))

    def validation_step(self, batch: tuple[Batch, int], batch_idx: int) -> None:
        outcome = self.objective.step(self.module, batch[0])
        right, labelled = top1_counts(outcome.outputs, batch[0]) if batch[1] else (0, 0)
        self.judged.add(float(outcome.loss) * batch[1], batch[1], right, labelled)

    def on_validation_epoch_end(self) -> None:
        judgement = self.judged.finish(self._over_devices(*self.judged.sums))
        if not math.isfinite(judgement.loss):
            raise self._diverged(f"the validation loss is {judgement.loss}", self.batches.position)
        score = self.best.offer(judgement, self.current_epoch + 1, self)
        self.log("validation_score", score, logger=False)
        if self.logger is not None:
            curves = {"validation_loss": judgement.loss, "validation_accuracy": judgement.accuracy}
            self.logger.log_metrics({k: v for k, v in curves.items() if v is not None}, step=self.batches.position)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["edgekit_means"] = self.means.dump()
        checkpoint["edgekit_judged"] = self.judged.dump()
        checkpoint["edgekit_best"] = self.best.dump()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The optimizer's count, not a position saved by the batches: callbacks save before on_train_batch_end here.
        self.batches.position = int(checkpoint["global_step"])
        self.means = RunningMeans.load(checkpoint["edgekit_means"])
        self.judged.load(checkpoint["edgekit_judged"])
        self.best.load(checkpoint["edgekit_best"])

    def require_finite_weights(self) -> None:
        """Raise UserError where a weight is not finite: such a checkpoint would be of no use."""
        for name, value in self.named_parameters():
            if not bool(torch.isfinite(value).all()):
                raise self._diverged(f"the weights of {name} are not finite", self.global_step)

    def _over_devices(self, *values: float) -> tuple[float, ...]:
        """The sums of `values` over all devices."""
        if self.trainer.world_size == 1:
            return values
        summed = self.trainer.strategy.reduce(torch.tensor(values, device=self.device), reduce_op="sum")
        return tuple(summed.tolist())

    def _diverged(self, what: str, step: int) -> UserError:
        rate = self.options.learning_rate
        return UserError(
            f"training diverged: {what} at step {step} of {self.total_steps} (learning_rate {rate:g}); "
            "the last good checkpoint is kept",
            hint=f"lower the learning rate, to {rate / 10:g} say, or give gradient_clip: 1.0; "
            "if it happens at step 1, look for values that are not finite in the data",
        )

    def _log_curves(self, loss: float, accuracy: float | None) -> None:
        curves = {"loss": loss, "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"]}
        if accuracy is not None:
            curves["accuracy"] = accuracy
        self.logger.log_metrics(curves, step=self.batches.position)
