"""Facts of the graph inside an XNNPACK delegate: its nodes with the type each computes in, and what its values hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from edgekit.converters.passports.facts import BOUNDARY, HYBRID, Lifetime, Node

__all__ = ["Delegated", "read_delegate"]

_TYPES = {
    "qint8": ("int8", 1),
    "quint8": ("uint8", 1),
    "qint32": ("int32", 4),
    "fp32": ("float32", 4),
    "fp16": ("float16", 2),
    "bf16": ("bfloat16", 2),
    "int32": ("int32", 4),
    "qdint8": ("qdint8", 1),
    "qpint8": ("qpint8", 1),
}
"""XNNPACK's name of a type: numpy's, and the bytes of an element."""
_DYNAMIC = ("qdint8", "qpint8")
_PER_CHANNEL = ("qcint8", "qcint4", "qbint4")
_FLOATS = ("fp32", "fp16", "bf16")
_NO_HANDLE = 65535
"""Of a node XNNPACK's own passes put in."""
_KEYS_IN = ("input_id", "input1_id", "query_id")
_KEYS_OUT = ("output_id", "output_value_id")


class Delegated(NamedTuple):
    """One delegate."""

    nodes: tuple[Node, ...]
    handles: tuple[int | None, ...]
    """executorch's debug handle of each node."""
    float_weights: tuple[int, ...]
    """Indices of the nodes with constant float weights."""
    transposes: int
    per_channel_weights: int
    lifetimes: tuple[Lifetime, ...]
    """Of the values inside, in positions of its nodes; what goes in and out is the caller's."""


def read_delegate(graph: dict[str, Any]) -> Delegated:
    """What the XNNGraph says."""
    values = _values(graph)
    entries = [(str(entry["xnode_union_type"]), entry["xnode_union"]) for entry in graph["xnodes"]]
    nodes = tuple(
        Node(op, _node_dtype(op, node, values), f"XNNPACK node {index}") for index, (op, node) in enumerate(entries)
    )
    handles = tuple(int(entry.get("debug_handle", _NO_HANDLE)) for entry in graph["xnodes"])
    filters = {int(node["filter_id"]) for _, node in entries if "filter_id" in node}
    return Delegated(
        nodes=nodes,
        handles=tuple(None if handle == _NO_HANDLE else handle for handle in handles),
        float_weights=tuple(i for i, (_, node) in enumerate(entries) if _has_float_weights(node, values)),
        transposes=sum(
            op == "XNNStaticTranspose" and not _is_constant(values.get(int(node["input_id"]))) for op, node in entries
        ),
        per_channel_weights=sum(_kind(values.get(i)) in _PER_CHANNEL for i in filters),
        lifetimes=tuple(_lifetimes(entries, values)),
    )


def _values(graph: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The tensor of each value of the graph, by id."""
    unions = [entry["xvalue_union"] for entry in graph.get("xvalues", ())]
    tensors = [union.get("tensor_value", union) for union in unions]
    return {int(tensor["id_out"]): tensor for tensor in tensors}


def _node_dtype(op: str, node: dict[str, Any], values: dict[int, dict[str, Any]]) -> str:
    kinds = {key: _kind(values.get(int(node[key]))) for key in node if key.endswith("_id")}
    given = next((kinds[key] for key in _KEYS_OUT if key in kinds), "")
    taken = next((kinds[key] for key in _KEYS_IN if key in kinds), "")
    if op == "XNNConvert" and taken != given:
        return BOUNDARY
    if kinds.get("filter_id", "") in _PER_CHANNEL and (taken in _DYNAMIC or given in ("fp32", "fp16")):
        return HYBRID
    return _TYPES.get(given, (given or "none", 0))[0]


def _kind(value: dict[str, Any] | None) -> str:
    return str(value["datatype"]).removeprefix("xnn_datatype_") if value else ""


def _is_constant(value: dict[str, Any] | None) -> bool:
    return value is not None and int(value.get("constant_buffer_idx", 0)) != 0


def _has_float_weights(node: dict[str, Any], values: dict[int, dict[str, Any]]) -> bool:
    weight = values.get(int(node["filter_id"])) if "filter_id" in node else None
    return _is_constant(weight) and _kind(weight) in _FLOATS


def _lifetimes(entries: list[tuple[str, dict[str, Any]]], values: dict[int, dict[str, Any]]) -> Iterator[Lifetime]:
    """Every value that is neither constant nor an input or output of the delegate, from its making to its last use."""
    positions: dict[int, list[int]] = {}
    for index, (_, node) in enumerate(entries):
        for key in node:
            if key.endswith("_id"):
                positions.setdefault(int(node[key]), []).append(index)
    for identity, used in positions.items():
        value = values.get(identity)
        if value is None or _is_constant(value) or int(value.get("flags", 0)) != 0:
            continue
        yield Lifetime(_bytes_of(value), min(used), max(used))


def _bytes_of(value: dict[str, Any]) -> int:
    count = _TYPES.get(_kind(value), ("", 4))[1]
    for extent in value.get("dims", ()):
        count *= int(extent)
    return count
