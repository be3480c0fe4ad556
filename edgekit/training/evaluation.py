"""Running a module over a data set without training it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.errors import WorkloadError
from edgekit.training.batches import BatchSource
from edgekit.training.objective import NO_TARGET, Batch

if TYPE_CHECKING:
    from edgekit.workload import MapDataset

__all__ = ["agreement", "check_targets", "collect_outputs", "evaluate_outputs", "forward", "top1_accuracy"]

FloatArray = np.ndarray[Any, np.dtype[np.float32]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]


def forward(module: nn.Module, batch: Batch, *, name: str) -> Tensor:
    """Output 0 of `module` on a batch; raises WorkloadError, with the shapes, when they do not fit."""
    try:
        outputs = module(*batch.inputs)
    except (RuntimeError, ValueError, TypeError) as e:
        shapes = ", ".join(f"{str(v.dtype).removeprefix('torch.')}{tuple(v.shape)}" for v in batch.inputs)
        said = str(e).strip().splitlines()
        raise WorkloadError(
            f"the model cannot take the {name} data, a batch of {shapes}: {said[0] if said else type(e).__name__}",
            hint="an item's input must have the model's input shape without the batch axis",
        ) from e
    if isinstance(outputs, tuple | list) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != batch.indices.shape:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise WorkloadError(f"the model's output 0 is {shape} for a batch of {len(batch)}; expected [{len(batch)}, …]")
    return outputs


def check_targets(outputs: Tensor, batch: Batch, *, name: str, some_missing: bool = False) -> None:
    """Raise WorkloadError unless `outputs` are `[B, classes]` and every target is one of the classes.

    With `some_missing` a target may also be NO_TARGET.
    """
    if outputs.ndim != 2:
        raise WorkloadError(
            f"the model's output 0 has shape {tuple(outputs.shape)}; classification needs [batch, classes] logits"
        )
    targets = batch.known_targets()
    if some_missing:
        targets = targets[targets != NO_TARGET]
    if not len(targets):
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= outputs.shape[1]:
        raise WorkloadError(
            f"{name} data has targets from {low} to {high}, but the model gives {outputs.shape[1]} classes",
            hint="targets count from 0; the model's last layer needs one output per class",
        )


def evaluate_outputs(
    module: nn.Module,
    data: MapDataset,
    *,
    batch_size: int = 256,
    name: str = "evaluation",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[FloatArray, IntArray]:
    """Output 0 of `module` in eval mode on all of `data` (`float32 [N, …]`) and the targets (`int64 [N]`).

    `on_progress` gets (samples done, samples in all). Raises WorkloadError when data and model do not fit.
    """
    collected: list[Tensor] = []
    targets: list[Tensor] = []
    for outputs, batch in _run_through(module, BatchSource(data, name), batch_size, on_progress):
        collected.append(outputs)
        targets.append(batch.known_targets())
    return torch.cat(collected).contiguous().numpy(), torch.cat(targets).numpy()


def collect_outputs(
    module: nn.Module,
    data: MapDataset,
    *,
    batch_size: int = 256,
    name: str = "unlabelled",
    on_progress: Callable[[int, int], None] | None = None,
) -> FloatArray:
    """Output 0 of `module` in eval mode on all of `data` (`float32 [N, …]`), whose items may have targets or not."""
    source = BatchSource(data, name, labelled=False)
    return torch.cat([o for o, _ in _run_through(module, source, batch_size, on_progress)]).contiguous().numpy()


def _run_through(
    module: nn.Module, source: BatchSource, batch_size: int, on_progress: Callable[[int, int], None] | None
) -> Iterator[tuple[Tensor, Batch]]:
    """Each batch in order with the module's output 0 as float32; the module's mode is given back."""
    if not len(source):
        raise WorkloadError(f"{source.name} data: there are no items")
    training = module.training
    module.eval()
    try:
        for indices in torch.split(torch.arange(len(source)), batch_size):
            with torch.inference_mode():
                batch = source.fetch(indices)
                outputs = forward(module, batch, name=source.name).float()
            yield outputs, batch
            if on_progress is not None:
                on_progress(int(indices[-1]) + 1, len(source))
    finally:
        module.train(training)


def top1_accuracy(outputs: FloatArray, targets: IntArray) -> float:
    """The share of rows of `outputs` `[N, classes]` whose largest value is at `targets` `[N]`, 0 to 1.

    A row with a value that is not finite counts as wrong.
    """
    finite = np.isfinite(outputs).all(axis=1)
    return float(np.mean((outputs.argmax(axis=1) == targets) & finite))


def agreement(outputs: FloatArray, reference: FloatArray) -> float:
    """The share of rows with the same top-1 class in `outputs` and `reference`, both `[N, classes]`."""
    return float(np.mean(outputs.argmax(axis=1) == reference.argmax(axis=1)))
