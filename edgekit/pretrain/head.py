"""The model's own head, set by the linear probe before fine-tuning begins.

Fine-tuning under a head of random weights first moves the representation towards that head; starting from the probe's
solution does not (LP-FT, Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", section 3.4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.errors import WorkloadError
from edgekit.pretrain.evaluation import extract_features, fitted_probe
from edgekit.pretrain.representation import find_representation, frozen
from edgekit.training.batches import BatchSource

if TYPE_CHECKING:
    from edgekit.workload import MapDataset

__all__ = ["set_probe_head", "why_no_probe_head"]

ABSENT_LOGIT = -5.0
"""Under the lowest bias: what a class gets that no labelled sample is of."""


def set_probe_head(module: nn.Module, data: MapDataset, *, regularisation: float = 1.0) -> str:
    """The name of the last linear layer of `module`, whose weights now are the linear probe's on labelled `data`.

    The representation is untouched. Raises WorkloadError where that layer does not read one vector a sample and give
    the logits, or has too few outputs for the classes.
    """
    reason = why_no_probe_head(module, data)
    if reason is not None:
        raise WorkloadError(reason, hint="probe_head: false")
    place = find_representation(module, _two(data))
    layer = module.get_submodule(place.module)
    if not isinstance(layer, nn.Linear):
        raise WorkloadError(f"'{place.module}' is no linear layer")
    features, targets = extract_features(module, data)
    if int(targets.max()) >= layer.out_features or int(targets.min()) < 0:
        raise WorkloadError(
            f"train data has targets from {targets.min()} to {targets.max()}, but '{place.module}' gives "
            f"{layer.out_features} classes",
            hint="targets count from 0; the model's last layer needs one output per class",
        )
    probe = fitted_probe(features, targets, regularisation=regularisation)
    weight = np.zeros((layer.out_features, layer.in_features))
    bias = np.full(layer.out_features, probe.bias.min() + ABSENT_LOGIT)
    weight[probe.classes], bias[probe.classes] = probe.weight, probe.bias
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))
    return place.module


def why_no_probe_head(module: nn.Module, data: MapDataset) -> str | None:
    """Why a probe's weights do not fit the last layer of `module`; None where they do."""
    inputs = _two(data)
    place = find_representation(module, inputs)
    layer = module.get_submodule(place.module)
    with frozen(module):
        is_vector = place.read(module, inputs).ndim == 2
    if isinstance(layer, nn.Linear) and is_vector:
        return None
    return (
        f"'{place.module}', the model's last layer, is {type(layer).__name__} over "
        f"{'a vector' if is_vector else 'positions'}; a probe's weights fit a linear layer over one vector"
    )


def _two(data: MapDataset) -> tuple[Tensor, ...]:
    source = BatchSource(data, "train")
    return source.fetch(torch.arange(min(2, len(source)))).inputs
