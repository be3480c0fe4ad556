"""`pretrain`: a model trained without labels, on the one training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.errors import UserError, WorkloadError
from edgekit.pretrain.augment import Augmentation, augmentation_for
from edgekit.pretrain.collapse import Spread, spread_of
from edgekit.pretrain.modality import time_axis_of, told_modality
from edgekit.pretrain.objectives import MaskedSignals, MaskedTokens, TwoViews, require_finite
from edgekit.pretrain.options import Modality, PretrainMethod, PretrainOptions
from edgekit.pretrain.representation import (
    Representation,
    dense_representation,
    find_representation,
    frozen,
    pooled,
    token_embedding,
    trained_by,
)
from edgekit.training.batches import BatchSource, derive_seed, generators_kept, seed_generators
from edgekit.training.fitting import TrainProgress, fit
from edgekit.training.objective import Batch, Objective

if TYPE_CHECKING:
    from edgekit.workload import MapDataset

__all__ = ["PretrainResult", "pretrain"]

logger = getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainResult:
    """A pretrained module in eval mode, where its representation is, and how it went."""

    module: nn.Module
    features: str
    """The representation's name, for `linear_probe` and `knn_accuracy`."""
    modality: Modality
    steps: int
    loss: float
    """Running mean over about the last 50 batches."""
    spread: Spread
    """Of the representation over the data; says whether it collapsed."""
    untouched: tuple[str, ...]
    """Parameters the representation does not depend on (the model's own head); they are as they were."""
    seconds: float
    resumed_from: int


def pretrain(
    module: nn.Module,
    data: MapDataset,
    options: PretrainOptions | None = None,
    *,
    seed: int = 0,
    work_dir: Path | str | None = None,
    augment: Augmentation | None = None,
    checkpoint_seconds: float = 10.0,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> PretrainResult:
    """Train `module` in place on the inputs of `data`; whatever labels it has are not looked at.

    The first input is augmented or masked, others go with it as they are. `augment` of (batch) takes the place of the
    options' augmentations; it must draw from torch's generator alone. With `work_dir` an interrupted call resumes there
    to the very same weights. Warns when the representation collapsed. Raises WorkloadError for data, model and method
    that do not go together, UserError for a loss that stops being finite.
    """
    options = options or PretrainOptions()
    source = BatchSource(data, "pretraining", labelled=False)
    _require_samples(source, options)
    example = source.fetch(torch.arange(2))
    modality = told_modality(example.inputs[0], options)
    require_finite(example)
    with generators_kept():
        seed_generators(derive_seed(seed, "pretraining head"))
        place = find_representation(module, example.inputs, options.features)
        made = _objective(module, example, place, modality, options, augment, len(source))
    needed = trained_by(module, example.inputs, made.place)
    if not needed:
        raise WorkloadError(
            f"features '{made.place}' depend on no parameter that can be trained",
            hint="name a later submodule, or set requires_grad on the model's parameters",
        )
    with _only_trained(module, needed) as untouched, _folder(work_dir) as folder:
        result = fit(
            module, made.objective, data, options, seed=seed, work_dir=folder,
            checkpoint_seconds=checkpoint_seconds, on_progress=on_progress,
        )  # fmt: skip
    # What the head reads, where all of it was trained; else what was, which masked prediction finds further inside.
    kept = place if trained_by(module, example.inputs, place) <= needed else made.place
    spread = spread_of(_features(module, source, kept))
    _warn_collapse(spread, options)
    return PretrainResult(
        module=module,
        features=str(kept),
        modality=modality,
        steps=result.steps,
        loss=result.loss,
        spread=spread,
        untouched=untouched,
        seconds=result.seconds,
        resumed_from=result.resumed_from,
    )


@dataclass(frozen=True, slots=True)
class _Made:
    objective: Objective
    place: Representation


def _objective(
    module: nn.Module,
    example: Batch,
    place: Representation,
    modality: Modality,
    options: PretrainOptions,
    augment: Augmentation | None,
    samples: int,
) -> _Made:
    axis = time_axis_of(example.inputs[0], modality, options)
    if options.method is not PretrainMethod.MASKED:
        width = _width(module, example, place)
        changed = augment or augmentation_for(modality, options.augmentations, time_axis=axis)
        _check_augmentation(changed, example.inputs[0])
        trained_on = samples - round(samples * options.validation)
        steps = options.epochs * max(trained_on // options.batch_size, 1)
        return _Made(TwoViews(module, place, width, changed, options, total_steps=steps), place)
    if options.features is None:
        place = dense_representation(module, example.inputs, place) or place
    if modality is Modality.TOKENS:
        return _Made(_masked_tokens(module, example, place, options), place)
    feature = _example_feature(module, example, place)
    return _Made(MaskedSignals(place, feature, example.inputs[0], modality, axis, options), place)


def _masked_tokens(module: nn.Module, example: Batch, place: Representation, options: PretrainOptions) -> MaskedTokens:
    name = token_embedding(module, example.inputs)
    if name is None:
        raise WorkloadError(
            "no nn.Embedding looks up the model's first input, so the vocabulary is not known",
            hint="masked tokens need a model with an nn.Embedding layer",
        )
    embedding = module.get_submodule(name)
    if not isinstance(embedding, nn.Embedding):
        raise WorkloadError(f"'{name}' is no nn.Embedding")
    if options.mask_token is not None and options.mask_token >= embedding.num_embeddings:
        raise UserError(
            f"mask_token is {options.mask_token}, but '{name}' has {embedding.num_embeddings} tokens",
            hint="give an id below that, or leave it out: a learned vector then stands for a masked token",
        )
    pad = options.pad_token if options.pad_token is not None else embedding.padding_idx
    return MaskedTokens(
        place, _width(module, example, place), name, embedding.num_embeddings, options,
        pad_token=pad, embedding_width=embedding.embedding_dim,
    )  # fmt: skip


def _require_samples(source: BatchSource, options: PretrainOptions) -> None:
    if len(source) < 2:
        raise WorkloadError(f"pretraining needs two samples at least, and the data have {len(source)}")
    if options.batch_size < 2:
        raise UserError(
            f"batch_size is {options.batch_size}; {options.method} needs 2 at least (batch norm in the head, and other "
            "samples to tell apart)",
            hint="contrastive methods want hundreds: batch_size: 256",
        )


def _check_augmentation(augment: Augmentation, x: Tensor) -> None:
    changed = augment(x)
    if not isinstance(changed, Tensor) or changed.shape != x.shape or changed.dtype != x.dtype:
        told = f"{changed.dtype} {list(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
        raise WorkloadError(f"the augmentation turned {x.dtype} {list(x.shape)} into {told}; it must keep both")


def _example_feature(module: nn.Module, example: Batch, place: Representation) -> Tensor:
    with frozen(module):
        return place.read(module, example.inputs)


def _width(module: nn.Module, example: Batch, place: Representation) -> int:
    return _example_feature(module, example, place).shape[1]


@contextmanager
def _only_trained(module: nn.Module, names: set[str]) -> Iterator[tuple[str, ...]]:
    """Within, only the parameters in `names` require grad; gives the names of the others that did."""
    frozen = {n: p for n, p in module.named_parameters() if p.requires_grad and n not in names}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    try:
        yield tuple(frozen)
    finally:
        for parameter in frozen.values():
            parameter.requires_grad_(True)


@contextmanager
def _folder(work_dir: Path | str | None) -> Iterator[Path]:
    if work_dir is not None:
        yield Path(work_dir)
        return
    with TemporaryDirectory(prefix="edgekit-pretrain-") as folder:
        yield Path(folder)


def _features(module: nn.Module, source: BatchSource, place: Representation, *, samples: int = 512) -> Tensor:
    indices = torch.linspace(0, len(source) - 1, min(samples, len(source))).long()
    with torch.inference_mode():
        return torch.cat([pooled(place.read(module, source.fetch(part).inputs)) for part in torch.split(indices, 128)])


def _warn_collapse(spread: Spread, options: PretrainOptions) -> None:
    if spread.is_collapsed:
        logger.warning("%s pretraining: %s", options.method, spread.told())
