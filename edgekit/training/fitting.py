"""`fit`: one training run from its first step to its last, whatever stops it in between."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.errors import MissingDependencyError, WorkloadError
from edgekit.schema import digest
from edgekit.training.constraints import constrained
from edgekit.training.objective import Objective
from edgekit.training.validation import Judgement
from edgekit.workload import sample_digest

if TYPE_CHECKING:
    from edgekit.compress.options import TrainOptions
    from edgekit.compress.student import WeightConstraint
    from edgekit.training.lightning_loop import StepReport
    from edgekit.workload import MapDataset

__all__ = ["TrainProgress", "TrainResult", "fit", "weights_digest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """Where a training run is, after a step."""

    epoch: int
    """From 1."""
    epochs: int
    step: int
    """From 1, over all epochs."""
    total_steps: int
    loss: float
    """Running mean over about the last 50 batches."""
    accuracy: float | None
    """Running top-1 on the (augmented) training batches, 0 to 1; None where nothing has targets."""
    validation: Judgement | None = None
    """The latest epoch on the held-out share, where there is one."""
    seconds_left: float | None = None
    """At the pace so far; None at the first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """A trained module in eval mode, and how it went."""

    module: nn.Module
    steps: int
    loss: float
    accuracy: float | None
    """Running top-1 on the training batches at the end; None where nothing has targets."""
    seconds: float
    """Wall time of this call; what ran before an interruption is not in it."""
    resumed_from: int
    """Steps that were already done when this call began."""
    validation: Judgement | None = None
    """The held-out share judged by the weights that `module` has, those of `best_epoch`."""
    best_epoch: int | None = None
    """From 1; None without a held-out share: the weights are then the last ones."""


def weights_digest(module: nn.Module) -> str:
    """sha256 over the names, shapes and bytes of the module's state."""
    hasher = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous()
            hasher.update(f"{name}{flat.dtype}{tuple(flat.shape)}".encode())
            hasher.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def fit(
    module: nn.Module,
    objective: Objective,
    data: MapDataset,
    options: TrainOptions,
    *,
    seed: int,
    work_dir: Path,
    augment: Callable[[Tensor], Tensor] | None = None,
    constraints: Sequence[WeightConstraint] = (),
    after_step: Callable[[nn.Module], None] | None = None,
    checkpoint_seconds: float = 10.0,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> TrainResult:
    """Train `module` in place to the end of the last epoch; resumes from `work_dir` what was cut off there.

    Where the objective needs no targets, items of `data` may have none (see `MapDataset`). `constraints` keep zeros and
    shared values (`training.constraints`). `after_step` is called with the module after each optimizer step, without
    grad: what else must hold of the weights is put back there, as a function of the module alone. Checkpoints go to
    `work_dir/last.ckpt` after every epoch and every `checkpoint_seconds` within one. Raises WorkloadError when data and
    module do not fit, UserError when the loss stops being finite, KeyboardInterrupt on Ctrl-C with the last checkpoint
    kept.
    """
    _require_lightning()
    from edgekit.training.session import Session

    if not any(p.requires_grad for p in module.parameters()):
        raise WorkloadError("the model has no parameters to train (all have requires_grad=False)")
    if not len(data):
        raise WorkloadError("train data: there are no items to train on")
    work_dir.mkdir(parents=True, exist_ok=True)
    session = Session(
        module=module,
        objective=objective,
        data=data,
        options=options,
        seed=seed,
        work_dir=work_dir,
        key=_fit_key(module, objective, data, options, seed, constraints),
        augment=augment,
        after_step=after_step,
        checkpoint_seconds=checkpoint_seconds,
    )
    batches, validation = session.batches()
    on_step = _reporter(on_progress, options.epochs, len(batches))
    began = time.monotonic()
    with constrained(module, constraints):
        trained = session.train(batches, validation, on_step)
    loss, accuracy = trained.means.current()
    return TrainResult(
        module=module,
        steps=batches.position,
        loss=loss,
        accuracy=accuracy,
        seconds=time.monotonic() - began,
        resumed_from=trained.first_step,
        validation=trained.best.judgement,
        best_epoch=trained.best.epoch,
    )


def _require_lightning() -> None:
    try:
        import pytorch_lightning  # noqa: F401
    except ImportError as e:
        raise MissingDependencyError("training", extra="train", package="pytorch-lightning") from e


def _fit_key(
    module: nn.Module,
    objective: Objective,
    data: MapDataset,
    options: TrainOptions,
    seed: int,
    constraints: Sequence[WeightConstraint],
) -> str:
    """What a checkpoint must have been made from to be resumed."""
    parts = weights_digest(objective.parts) if objective.parts is not None else None
    held = [constraint.model_dump(mode="json") for constraint in constraints]
    trained = (objective.key, sample_digest(data), options.model_dump(mode="json"), seed)
    return digest(weights_digest(module), parts, *trained, held)


def _reporter(
    on_progress: Callable[[TrainProgress], None] | None, epochs: int, steps_per_epoch: int
) -> Callable[[StepReport], None] | None:
    if on_progress is None:
        return None
    total = epochs * steps_per_epoch
    began: list[tuple[float, int]] = []

    def report(done: StepReport) -> None:
        now = time.monotonic()
        if not began:
            began.append((now, done.step))
        since, first = began[0]
        measured = done.step - first
        on_progress(
            TrainProgress(
                epoch=(done.step - 1) // steps_per_epoch + 1,
                epochs=epochs,
                step=done.step,
                total_steps=total,
                loss=done.loss,
                accuracy=done.accuracy,
                validation=done.validation,
                seconds_left=(now - since) / measured * (total - done.step) if measured else None,
            )
        )

    return report
