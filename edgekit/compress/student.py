"""The student: a module on its way from teacher to artifact, and its lineage.

A student is stored without pickle: its weights as safetensors, and its structural edits (which channels
were removed) as JSON that is replayed on a fresh copy of the workload's architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekit.artifact import LineageStep

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PruningEdit", "Student"]


@dataclass(frozen=True, slots=True)
class PruningEdit:
    """Channels removed from one module: output channels when `is_output`, else input channels."""

    module: str
    is_output: bool
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A module in eval mode, the edits that made its shape, and the steps that made it."""

    module: nn.Module
    edits: tuple[PruningEdit, ...] = ()
    lineage: tuple[LineageStep, ...] = field(default=())
