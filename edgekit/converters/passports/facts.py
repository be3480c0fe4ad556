"""`FileFacts`: what the three readers of model files have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from pydantic import Field

from edgekit.artifact import Delegate, Format, OpCount, Scheme, Signature, TensorSpec, UnquantizedOp
from edgekit.schema import Record

__all__ = [
    "BOUNDARY",
    "HYBRID",
    "FileFacts",
    "InspectionAnswer",
    "InspectionRequest",
    "Lifetime",
    "Node",
    "count_ops",
    "infer_scheme",
    "peak_bytes",
    "unquantized",
]

BOUNDARY = "mixed"
"""dtype of an op that changes between float and integer: quantize, dequantize, convert."""
HYBRID = "hybrid"
"""dtype of an op with integer weights and float activations."""
_FLOATS = ("float32", "float16", "bfloat16", "float64")


class Node(NamedTuple):
    """One op of a file: its kind, the type it computes in, where it is, and its version."""

    op: str
    dtype: str
    where: str
    version: int | None = None
    is_delegated: bool = True


class Lifetime(NamedTuple):
    """One activation of a file: its size, and the first and last op (by position) at which it must be in memory."""

    size_bytes: int
    first: int
    last: int


def peak_bytes(lifetimes: Iterable[Lifetime]) -> int:
    """The most bytes alive at once, every op's inputs and outputs held together while it runs."""
    changes: Counter[int] = Counter()
    for lifetime in lifetimes:
        changes[lifetime.first] += lifetime.size_bytes
        changes[lifetime.last + 1] -= lifetime.size_bytes
    alive = most = 0
    for position in sorted(changes):
        alive += changes[position]
        most = max(most, alive)
    return most


class FileFacts(Record):
    """Everything one model file says about itself."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: tuple[OpCount, ...]
    float_ops: tuple[UnquantizedOp, ...] = ()
    """Ops that compute in float, listed whatever the scheme; they count as unquantized when it is a static one."""
    float_weights: tuple[UnquantizedOp, ...] = ()
    """Ops whose weights are float constants: what a dynamic or weight-only scheme left out."""
    delegates: tuple[Delegate, ...] = ()
    per_channel_weights: int = 0
    """Weight tensors with one scale per output channel."""
    minimum_runtime: dict[str, str] = Field(default_factory=dict)
    transposes: int | None = None
    """Ops that only reorder the axes of activations (a transpose of a constant is folded or counted as none)."""
    boundaries: int | None = None
    """Ops that quantize or dequantize activations."""
    peak_activation_bytes: int | None = None
    signatures: tuple[Signature, ...] = ()
    """Every entry point, when there are several."""
    scheme: Scheme | None = None
    """Where a reader can tell what the types of the ops cannot."""
    warnings: tuple[str, ...] = ()


class InspectionRequest(Record):
    """A file to read."""

    path: str
    format: Format


class InspectionAnswer(Record):
    """What was read, or why not."""

    facts: FileFacts | None = None
    error: str | None = None
    hint: str | None = None
    missing_package: str | None = None


def count_ops(nodes: Iterable[Node]) -> tuple[OpCount, ...]:
    """The nodes counted by kind, dtype and version, in a stable order."""
    counts = Counter((node.op, node.dtype, node.version) for node in nodes)
    ordered = sorted(counts.items(), key=lambda item: (item[0][0], item[0][1], item[0][2] or 0))
    return tuple(OpCount(name=op, dtype=dtype, count=n, version=version) for (op, dtype, version), n in ordered)


def unquantized(nodes: Iterable[Node], reason: str) -> tuple[UnquantizedOp, ...]:
    """The nodes that compute in float, each with `reason` (and that it is outside the delegate, where it is)."""
    return tuple(
        UnquantizedOp(op=node.op, where=node.where, reason=reason if node.is_delegated else f"{reason}; not delegated")
        for node in nodes
        if node.dtype in _FLOATS
    )


def infer_scheme(facts: FileFacts) -> Scheme | None:
    """The scheme of a foreign file as its ops tell it; None when they do not tell."""
    if facts.scheme is not None:
        return facts.scheme
    dtypes = {op.dtype for op in facts.ops} - {BOUNDARY}
    if "int8" in dtypes or "uint8" in dtypes:
        return Scheme.STATIC_W8A8
    if "int16" in dtypes:
        return Scheme.STATIC_W8A16
    if HYBRID in dtypes:
        return None  # dynamic or weight-only: decided by the kernel, not told by the types
    if "float16" in dtypes:
        return Scheme.FP16
    boundaries = any(op.dtype == BOUNDARY for op in facts.ops)
    return Scheme.FP32 if "float32" in dtypes and not boundaries else None
