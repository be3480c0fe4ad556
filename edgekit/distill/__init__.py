"""Distillation: a student that learns from a teacher, from its parameters, from its own generations or exits.

    >>> from edgekit.distill import DistillOptions, distill
    >>> small = distill(student, teacher, train, DistillOptions(epochs=10, features={"layer1": "layer1"}))

Everything here is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.distill.architecture import reinitialised
    from edgekit.distill.distilling import distill
    from edgekit.distill.exits import self_distill
    from edgekit.distill.generations import born_again
    from edgekit.distill.options import (
        AttentionOptions,
        BornAgainOptions,
        DistillOptions,
        FeatureOptions,
        RelationOptions,
        SelfDistillOptions,
        WeightDistillOptions,
    )
    from edgekit.distill.weights import selected_student, weight_distill

_HOME = {
    "AttentionOptions": "options",
    "BornAgainOptions": "options",
    "DistillOptions": "options",
    "FeatureOptions": "options",
    "RelationOptions": "options",
    "SelfDistillOptions": "options",
    "WeightDistillOptions": "options",
    "born_again": "generations",
    "distill": "distilling",
    "reinitialised": "architecture",
    "selected_student": "weights",
    "self_distill": "exits",
    "weight_distill": "weights",
}

__all__ = [
    "AttentionOptions",
    "BornAgainOptions",
    "DistillOptions",
    "FeatureOptions",
    "RelationOptions",
    "SelfDistillOptions",
    "WeightDistillOptions",
    "born_again",
    "distill",
    "reinitialised",
    "selected_student",
    "self_distill",
    "weight_distill",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"edgekit.distill.{_HOME[name]}"), name)
    raise AttributeError(f"module 'edgekit.distill' has no attribute {name!r}")
