"""Facts of one entry point of a `.pte`: what runs inside delegates and outside, in order, and the memory it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgekit.artifact import TensorSpec, UnquantizedOp
from edgekit.converters.passports.executorch_delegate import Delegated
from edgekit.converters.passports.facts import BOUNDARY, Lifetime, Node, peak_bytes

__all__ = ["ExecutionPlan", "Trace"]

_SCALARS = {
    "FLOAT": ("float32", 4),
    "DOUBLE": ("float64", 8),
    "HALF": ("float16", 2),
    "BFLOAT16": ("bfloat16", 2),
    "BOOL": ("bool", 1),
    "LONG": ("int64", 8),
    "INT": ("int32", 4),
    "SHORT": ("int16", 2),
    "CHAR": ("int8", 1),
    "BYTE": ("uint8", 1),
}
"""executorch's name of a type: numpy's, and the bytes of an element."""
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_WEIGHTED = ("convolution", "linear", "addmm", "mm", "embedding")
"""Ops whose constants are weights, where they run outside the delegate."""
_REORDERING = ("permute_copy", "transpose_copy", "t_copy")
_COPYING = ("_to_dim_order_copy", "_clone_dim_order", "clone", "_to_copy")
_IN_DELEGATE = "XNNPACK computes it in float: its quantizer does not take this op"
_OUTSIDE = "XNNPACK does not take it, and executorch's kernel computes in float"


@dataclass(frozen=True, slots=True)
class Trace:
    """Where the ops of the first entry point come from, by executorch's debug handles."""

    places: dict[int, str] = field(default_factory=dict)
    """`features.3 (conv2d_3)`."""
    names: dict[int, frozenset[str]] = field(default_factory=dict)
    """The node's names in the programs it was made from."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why XNNPACK's partitioner refused the op."""
    ops: list[str] = field(default_factory=list)
    """Every op in order, `convolution.default`."""
    instructions: dict[int, int] = field(default_factory=dict)
    """The handle of each instruction that runs outside a delegate."""


class ExecutionPlan:
    """One entry point, its delegates read."""

    def __init__(self, plan: Mapping[str, Any], graphs: Sequence[Delegated | None]) -> None:
        self._plan = plan
        self.graphs = graphs
        """One a delegate; None of one that is not XNNPACK's."""
        self.kernels = [(index, node) for index, node in self._kernel_nodes()]
        self.delegated = sum(len(graph.nodes) for graph in graphs if graph is not None)

    def specs(self, which: str) -> tuple[TensorSpec, ...]:
        """The inputs or outputs. An extent that is free is the largest it may be."""
        values = self._plan["values"]
        return tuple(_spec(values[i], f"{which}_{n}") for n, i in enumerate(self._plan[f"{which}s"]))

    def nodes(self) -> list[Node]:
        """Every op, those of the delegates first."""
        inside = [node for graph in self.graphs if graph is not None for node in graph.nodes]
        return [*inside, *(node for _, node in self.kernels)]

    def _instructions(self) -> list[dict[str, Any]]:
        return [instruction for chain in self._plan["chains"] for instruction in chain.get("instructions", ())]

    def _calls(self) -> Iterator[tuple[int, str, list[dict[str, Any]]]]:
        """(instruction, op, arguments) of each op that runs outside every delegate."""
        for index, instruction in enumerate(self._instructions()):
            if instruction["instr_args_type"] == "KernelCall":
                call = instruction["instr_args"]
                operator = self._plan["operators"][call["op_index"]]
                op = ".".join(part for part in (operator["name"], operator.get("overload")) if part)
                yield index, op, [self._plan["values"][i] for i in call["args"]]

    def _kernel_nodes(self) -> Iterator[tuple[int, Node]]:
        """The type of an op is that of its last tensor argument (the out tensor)."""
        for index, op, arguments in self._calls():
            tensors = [value["val"] for value in arguments if value["val_type"] == "Tensor"]
            is_boundary = "quantize_per" in op or "choose_qparams" in op
            dtype = BOUNDARY if is_boundary else _scalar(tensors[-1]) if tensors else "none"
            yield index, Node(op, dtype, f"{self._plan['name']} instruction {index}", is_delegated=False)

    def float_ops(self, trace: Trace, left: Mapping[str, str]) -> tuple[UnquantizedOp, ...]:
        """The ops that compute in float, each with where it comes from and why, as far as that is known."""
        found = []
        for graph in self.graphs:
            for node, handle in zip(graph.nodes, graph.handles, strict=True) if graph is not None else ():
                if node.dtype in _FLOATS:
                    found.append(_described(node, handle, trace, left, _IN_DELEGATE))
        for index, node in self.kernels:
            if node.dtype in _FLOATS:
                found.append(_described(node, trace.instructions.get(index), trace, left, _OUTSIDE))
        return tuple(found)

    def float_weights(self, trace: Trace, left: Mapping[str, str]) -> tuple[UnquantizedOp, ...]:
        """The ops with constant float weights."""
        found = []
        for graph in self.graphs:
            for index in graph.float_weights if graph is not None else ():
                assert graph is not None  # noqa: S101 - the loop is empty without one
                found.append(_described(graph.nodes[index], graph.handles[index], trace, left, _IN_DELEGATE))
        nodes = dict(self.kernels)
        for index, op, arguments in self._calls():
            constants = [v["val"] for v in arguments if v["val_type"] == "Tensor" and _is_constant(v["val"])]
            is_weighted = op.partition("::")[2].partition(".")[0] in _WEIGHTED
            if is_weighted and any(_scalar(tensor) in _FLOATS for tensor in constants):
                found.append(_described(nodes[index], trace.instructions.get(index), trace, left, _OUTSIDE))
        return tuple(found)

    def transposes(self) -> int:
        """Ops that only reorder the axes of activations."""
        count = sum(graph.transposes for graph in self.graphs if graph is not None)
        for _, op, arguments in self._calls():
            name = op.partition("::")[2].partition(".")[0]
            tensors = [value["val"] for value in arguments if value["val_type"] == "Tensor"]
            orders = {tuple(tensor.get("dim_order") or ()) for tensor in tensors}
            count += name in _REORDERING or (name in _COPYING and len(orders) > 1)
        return count

    def peak_bytes(self) -> int:
        """The most bytes of activations alive at once, with what delegates hold inside."""
        starts, position = [], 0
        instructions = self._instructions()
        lifetimes: list[Lifetime] = []
        for instruction in instructions:
            starts.append(position)
            graph = self._graph_of(instruction)
            if graph is not None:
                lifetimes += [
                    Lifetime(size, position + begin, position + last) for size, begin, last in graph.lifetimes
                ]
            position += max(1, len(graph.nodes)) if graph is not None else 1
        ends = [*(start - 1 for start in starts[1:]), position - 1]
        return peak_bytes([*lifetimes, *self._outer_lifetimes(instructions, starts, ends, position)])

    def _graph_of(self, instruction: dict[str, Any]) -> Delegated | None:
        if instruction["instr_args_type"] != "DelegateCall":
            return None
        return self.graphs[int(instruction["instr_args"].get("delegate_index", 0))]

    def _outer_lifetimes(
        self, instructions: list[dict[str, Any]], starts: list[int], ends: list[int], end: int
    ) -> Iterator[Lifetime]:
        """Tensors between instructions: inputs from the beginning on, outputs to the end."""
        used: dict[int, list[int]] = {}
        for index, instruction in enumerate(instructions):
            for value in self._tensors_of(instruction):
                used.setdefault(value, []).append(index)
        inputs, outputs = set(self._plan["inputs"]), set(self._plan["outputs"])
        for value in sorted({*used, *inputs, *outputs}):
            entry = self._plan["values"][value]
            if entry["val_type"] != "Tensor" or _is_constant(entry["val"]):
                continue
            places = used.get(value, [])
            first = 0 if value in inputs or not places else starts[min(places)]
            last = end if value in outputs or not places else ends[max(places)]
            yield Lifetime(_bytes_of(entry["val"]), first, last)

    def _tensors_of(self, instruction: dict[str, Any]) -> Iterator[int]:
        """Indices of the tensors an instruction reads or writes, those in lists too."""
        for index in instruction["instr_args"].get("args", ()) or ():
            entry = self._plan["values"][index]
            if entry["val_type"] == "TensorList":
                yield from entry["val"]["items"]
            else:
                yield index


def _described(node: Node, handle: int | None, trace: Trace, left: Mapping[str, str], default: str) -> UnquantizedOp:
    where = trace.places.get(handle, node.where) if handle is not None else node.where
    names = trace.names.get(handle, frozenset()) if handle is not None else frozenset()
    own = next((left[name] for name in sorted(names) if name in left), None)
    refused = trace.reasons.get(handle) if handle is not None else None
    reason = own or (f"XNNPACK does not take it: {refused}" if refused and not node.is_delegated else default)
    return UnquantizedOp(op=node.op, where=where, reason=reason if node.is_delegated else f"{reason}; not delegated")


def _spec(value: Mapping[str, Any], name: str) -> TensorSpec:
    if value["val_type"] != "Tensor":
        return TensorSpec(name=name, shape=(), dtype=str(value["val_type"]).lower())
    tensor = value["val"]
    return TensorSpec(name=name, shape=tuple(int(n) for n in tensor.get("sizes") or ()), dtype=_scalar(tensor))


def _scalar(tensor: Mapping[str, Any]) -> str:
    name = str(tensor["scalar_type"])
    return _SCALARS.get(name, (name.lower(), 0))[0]


def _bytes_of(tensor: Mapping[str, Any]) -> int:
    element = _SCALARS.get(str(tensor["scalar_type"]), ("", 4))[1]
    return element * math.prod(int(n) for n in tensor.get("sizes") or ())


def _is_constant(tensor: Mapping[str, Any]) -> bool:
    is_external = (tensor.get("extra_tensor_info") or {}).get("location") == "EXTERNAL"
    return int(tensor.get("data_buffer_idx", 0)) != 0 or is_external
