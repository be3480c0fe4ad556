"""The student: a module on its way from teacher to artifact, and its lineage.

A student is stored without pickle: its weights as safetensors, and what changed its architecture as edits in JSON that
are replayed on a fresh copy of the workload's (`replay`).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from edgekit.artifact import LineageStep
from edgekit.schema import Record
from edgekit.sensing.options import MatrixKind

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "AttentionEdit",
    "Base",
    "Edit",
    "LowRankEdit",
    "PruningEdit",
    "SensingEdit",
    "Student",
    "WeightConstraint",
    "replay",
]


class PruningEdit(Record):
    """Channels removed from one module: output channels when `is_output`, else input channels."""

    kind: Literal["channels"] = "channels"
    module: str
    is_output: bool
    indices: tuple[int, ...]


class AttentionEdit(Record):
    """An `nn.MultiheadAttention` opened into separate projections, so that it can lose heads."""

    kind: Literal["attention"] = "attention"
    module: str


class LowRankEdit(Record):
    """A layer's weight replaced by factors: one rank for two, (input, output) ranks for Tucker-2's three."""

    kind: Literal["low_rank"] = "low_rank"
    module: str
    ranks: Annotated[tuple[int, ...], Field(min_length=1, max_length=2)]


class SensingEdit(Record):
    """A compressed-sensing front-end at `input`: `measurements` of each block, by a matrix made from `seed`."""

    kind: Literal["sensing"] = "sensing"
    input: int
    block: int | None
    measurements: int
    matrix: MatrixKind
    seed: int
    learned: bool


Edit = Annotated[PruningEdit | AttentionEdit | LowRankEdit | SensingEdit, Field(discriminator="kind")]
"""A change of architecture; a union of records told apart by `kind`, each with its function in `_REPLAYS`."""

_REPLAYS = {
    "channels": "edgekit.compress.prune:restore",
    "attention": "edgekit.compress.attention:restore",
    "low_rank": "edgekit.compress.low_rank:restore",
    "sensing": "edgekit.sensing.acquisition:restore",
}
"""`kind` to a function of (module, edits, example_inputs) that gives a changed copy, and raises ValueError for an edit
that does not fit."""


class WeightConstraint(Record):
    """What later training must keep of one parameter: its zeros (`sparse`), or which values are equal (`shared`)."""

    parameter: str
    kind: Literal["sparse", "shared"]


Base = Literal["model", "student"]
"""The workload's field that holds an architecture: the teacher's, or a student's of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A module in eval mode, the edits that made its shape, and the steps that made it."""

    module: nn.Module
    base: Base = "model"
    """Which of the workload's architectures the edits start from."""
    edits: tuple[Edit, ...] = ()
    constraints: tuple[WeightConstraint, ...] = ()
    trained: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Backend to what quantization-aware training made of the module for it (`compress.qat.trained_state`)."""
    lineage: tuple[LineageStep, ...] = field(default=())


def replay(module: nn.Module, edits: Sequence[Edit], example_inputs: Sequence[Tensor]) -> nn.Module:
    """A copy of `module`, in eval mode, with all `edits` made in order; the same edits give the same architecture.

    Raises ValueError for an edit that does not fit the module.
    """
    import copy

    module = copy.deepcopy(module).eval()
    for kind, same in groupby(edits, key=lambda edit: edit.kind):
        module = pkgutil.resolve_name(_REPLAYS[kind])(module, tuple(same), example_inputs)
    return module
