"""The teacher: how it comes by its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from edgekit.errors import WorkloadError
from edgekit.training.batches import derive_seed, generators_kept, seed_generators
from edgekit.training.fitting import TrainProgress, fit
from edgekit.training.objective import CrossEntropy
from edgekit.training.weights import load_weights

if TYPE_CHECKING:
    from edgekit.recipe import TeacherOptions
    from edgekit.workload import MapDataset, Workload

__all__ = ["fresh_model", "train_teacher", "training_data"]


def train_teacher(
    workload: Workload,
    options: TeacherOptions,
    *,
    seed: int,
    work_dir: Path,
    weights_base: Path,
    pretrained: nn.Module | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> nn.Module:
    """The teacher in eval mode: trained, or with the weights of a file (relative to `weights_base`), or as it is.

    Training starts from `pretrained`, which it changes in place, where that is given.

    Raises WorkloadError for weights that are not this model's, for training without data, and for a model that is a
    factory (so has no weights) with neither.
    """
    module = pretrained if pretrained is not None else fresh_model(workload, seed=seed)
    if options.weights is not None:
        load_weights(module, weights_base / options.weights)
    elif options.train is not None:
        objective = CrossEntropy(label_smoothing=options.train.label_smoothing)
        data = training_data(workload, "training the teacher")
        result = fit(
            module, objective, data, options.train,
            seed=seed, work_dir=work_dir, augment=workload.augment, on_progress=on_progress,
        )  # fmt: skip
        module = result.module
    elif not workload.has_weights:
        raise WorkloadError(
            f"workload '{workload.name}': model is a function that makes an untrained model, and the recipe says "
            "nothing about its weights",
            hint="give teacher: {train: {epochs: 3}} or teacher: {weights: file.safetensors}, "
            "or let the workload return a trained instance",
        )
    return module.eval()


def fresh_model(workload: Workload, *, seed: int) -> nn.Module:
    """The workload's model; where it is a factory, initialised from `seed` whatever the process drew before."""
    with generators_kept():
        seed_generators(derive_seed(seed, "initial weights"))
        return workload.build_model()


def training_data(workload: Workload, what: str) -> MapDataset:
    """The workload's training data; raises WorkloadError, naming `what` wants it, where there is none."""
    if workload.train is None:
        raise WorkloadError(
            f"workload '{workload.name}': {what} needs training data, and train is None",
            hint="give the workload a train data set, or leave the step out",
        )
    return workload.train
