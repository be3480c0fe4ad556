"""What a representation is worth: a linear classifier on it, or its nearest neighbours, with few labels or all.

The model is frozen and in eval mode; only the classifier on top sees labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgekit.errors import MissingDependencyError, UserError
from edgekit.pretrain.representation import find_representation, frozen, pooled
from edgekit.training.batches import BatchSource

if TYPE_CHECKING:
    from edgekit.workload import MapDataset

__all__ = [
    "FittedProbe",
    "ProbeResult",
    "extract_features",
    "few_labels",
    "fitted_probe",
    "knn_accuracy",
    "linear_probe",
    "nearest_classes",
]

FloatArray = np.ndarray[Any, np.dtype[np.float32]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """Top-1 accuracy on the evaluation data, 0 to 1, of a classifier that saw `labels` labelled samples."""

    accuracy: float
    labels: int
    samples: int
    """Of the evaluation data."""


def extract_features(
    module: nn.Module, data: MapDataset, *, features: str | None = None, batch_size: int = 256
) -> tuple[FloatArray, IntArray]:
    """The representation of all of `data`, `float32 [N, D]`, and the targets `int64 [N]`.

    `features` is a submodule's name as in PretrainOptions; None is the input of the last linear layer.
    """
    source = BatchSource(data, "probe")
    place = find_representation(module, source.fetch(torch.arange(min(2, len(source)))).inputs, features)
    collected, targets = [], []
    with frozen(module):
        for indices in torch.split(torch.arange(len(source)), batch_size):
            batch = source.fetch(indices)
            collected.append(pooled(place.read(module, batch.inputs)).float())
            targets.append(batch.known_targets())
    return torch.cat(collected).numpy(), torch.cat(targets).numpy()


def few_labels(targets: IntArray, count: int, *, seed: int = 0) -> IntArray:
    """Indices of `count` samples, as many of each class as can be, drawn from `seed`; in order."""
    if not 1 <= count <= len(targets):
        raise UserError(f"{count} labels of {len(targets)} samples cannot be taken")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(targets))
    nth = np.zeros(len(targets), dtype=np.int64)
    for each in np.unique(targets):
        mine = order[targets[order] == each]
        nth[mine] = np.arange(len(mine))
    # The first of every class, then the second of every class, …
    return np.sort(order[np.argsort(nth[order], kind="stable")][:count])


def linear_probe(
    module: nn.Module,
    train: MapDataset,
    evaluation: MapDataset,
    *,
    labels: int | None = None,
    features: str | None = None,
    seed: int = 0,
    regularisation: float = 1.0,
) -> ProbeResult:
    """Logistic regression on the frozen representation, each dimension standardised by the labelled samples.

    `labels` of `train` are drawn from `seed`, balanced; None takes all. `regularisation` is the weight of the L2 term
    against the summed loss (the inverse of scikit-learn's C).
    """
    known, known_targets, unknown, truth = _split(module, train, evaluation, labels, features, seed)
    right = fitted_probe(known, known_targets, regularisation=regularisation).predicted(unknown) == truth
    return ProbeResult(accuracy=float(right.mean()), labels=len(known), samples=len(truth))


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedProbe:
    """Logits `features @ weight.T + bias` of the classes that have labels, the standardisation within."""

    weight: np.ndarray[Any, np.dtype[np.float64]]
    """`[classes, D]`"""
    bias: np.ndarray[Any, np.dtype[np.float64]]
    classes: IntArray

    def predicted(self, features: FloatArray) -> IntArray:
        """The class of each row of `features` `[N, D]`."""
        chosen: IntArray = self.classes[(features @ self.weight.T + self.bias).argmax(axis=1)]
        return chosen


def fitted_probe(features: FloatArray, targets: IntArray, *, regularisation: float = 1.0) -> FittedProbe:
    """Logistic regression of `targets` `[N]` on `features` `[N, D]`, each dimension standardised."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as e:
        raise MissingDependencyError("the linear probe", extra="train", package="scikit-learn") from e
    _require_classes(targets)
    if regularisation <= 0:
        raise UserError(f"regularisation is {regularisation:g}; give a weight above 0")
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    deviation[deviation < 1e-12] = 1
    classifier = LogisticRegression(C=1 / regularisation, max_iter=2000)
    classifier.fit((features - mean) / deviation, targets)
    weight, bias = classifier.coef_, classifier.intercept_
    if len(weight) == 1:  # two classes share one row, the second's log odds
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    weight = weight / deviation
    return FittedProbe(weight=weight, bias=bias - weight @ mean, classes=classifier.classes_.astype(np.int64))


def knn_accuracy(
    module: nn.Module,
    train: MapDataset,
    evaluation: MapDataset,
    *,
    labels: int | None = None,
    features: str | None = None,
    seed: int = 0,
    k: int = 20,
    temperature: float = 0.07,
) -> ProbeResult:
    """The weighted vote of the `k` nearest labelled samples by cosine (Wu et al. 2018, section 3.4)."""
    known, known_targets, unknown, truth = _split(module, train, evaluation, labels, features, seed)
    _require_classes(known_targets)
    voted = nearest_classes(known, known_targets, unknown, k=k, temperature=temperature)
    return ProbeResult(accuracy=float((voted == truth).mean()), labels=len(known), samples=len(truth))


def nearest_classes(
    known: FloatArray, targets: IntArray, unknown: FloatArray, *, k: int = 20, temperature: float = 0.07
) -> IntArray:
    """The class of each row of `unknown` `[M, D]` by its `k` nearest of `known` `[N, D]`, each voting exp(cos / T)."""
    if k < 1:
        raise UserError(f"k is {k}; give 1 neighbour or more")
    bank = torch.nn.functional.normalize(torch.from_numpy(known), dim=1)
    classes = torch.from_numpy(targets)
    voted = []
    for part in torch.split(torch.from_numpy(unknown), 1024):
        similar, index = (torch.nn.functional.normalize(part, dim=1) @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(part), int(classes.max()) + 1)
        votes.scatter_add_(1, classes[index], (similar / temperature).exp())
        voted.append(votes.argmax(dim=1))
    return torch.cat(voted).numpy()


def _split(
    module: nn.Module, train: MapDataset, evaluation: MapDataset, labels: int | None, features: str | None, seed: int
) -> tuple[FloatArray, IntArray, FloatArray, IntArray]:
    known, targets = extract_features(module, train, features=features)
    unknown, truth = extract_features(module, evaluation, features=features)
    if labels is not None:
        chosen = few_labels(targets, labels, seed=seed)
        known, targets = known[chosen], targets[chosen]
    return known, targets, unknown, truth


def _require_classes(targets: IntArray) -> None:
    if len(np.unique(targets)) < 2:
        raise UserError(f"the {len(targets)} labelled samples are all of one class; a probe needs two classes at least")
