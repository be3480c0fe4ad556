"""Self-supervised pretraining: an encoder that has seen the data before it sees the labels.

    from edgekit.pretrain import PretrainOptions, linear_probe, pretrain

    result = pretrain(net, unlabelled, PretrainOptions(method="simclr", epochs=30), seed=0)
    print(linear_probe(result.module, train, test, labels=100))

Loaded on first use: a recipe's options need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.pretrain.augment import augmentation_for
    from edgekit.pretrain.evaluation import ProbeResult, extract_features, few_labels, knn_accuracy, linear_probe
    from edgekit.pretrain.head import set_probe_head
    from edgekit.pretrain.loop import PretrainResult, pretrain
    from edgekit.pretrain.options import Modality, PretrainMethod, PretrainOptions

_HOME = {
    "Modality": "options",
    "PretrainMethod": "options",
    "PretrainOptions": "options",
    "PretrainResult": "loop",
    "ProbeResult": "evaluation",
    "augmentation_for": "augment",
    "extract_features": "evaluation",
    "few_labels": "evaluation",
    "knn_accuracy": "evaluation",
    "linear_probe": "evaluation",
    "pretrain": "loop",
    "set_probe_head": "head",
}

__all__ = [
    "Modality",
    "PretrainMethod",
    "PretrainOptions",
    "PretrainResult",
    "ProbeResult",
    "augmentation_for",
    "extract_features",
    "few_labels",
    "knn_accuracy",
    "linear_probe",
    "pretrain",
    "set_probe_head",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
