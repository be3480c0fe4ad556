"""An ONNX graph that can be asked who makes and who reads a value, and be changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OnnxGraph"]


class OnnxGraph:
    """The main graph of a model, indexed. Values read by the body of an `If`, `Loop` or `Scan` count as read by it.

    Nodes are added and removed through its methods, and `sort` puts them in order; `reindex` after any other change.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.proto = model.graph
        self.reindex()

    def reindex(self) -> None:
        """Read the graph anew."""
        self.constants: dict[str, Any] = {tensor.name: tensor for tensor in self.proto.initializer}
        self.makers: dict[str, Any] = {}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in self.proto.node:
            for name in node.output:
                if name:
                    self.makers[name] = node
            for name in _read_by(node):
                self.readers[name].append(node)
        self.inputs = [value.name for value in self.proto.input if value.name not in self.constants]
        self.outputs = [value.name for value in self.proto.output]
        self._types = {v.name: v.type.tensor_type for v in self.values()}
        self._taken = {*self._types, *self.constants, *self.makers}

    def values(self) -> Iterator[Any]:
        """Every ValueInfoProto."""
        yield from (*self.proto.value_info, *self.proto.input, *self.proto.output)

    def dtype(self, name: str) -> str | None:
        """numpy name of a value's element type; None where it is not known."""
        import onnx

        if name in self.constants:
            number = self.constants[name].data_type
        else:
            number = self._types[name].elem_type if name in self._types else 0
        return str(onnx.helper.tensor_dtype_to_np_dtype(number).name) if number else None

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Extents of a value, None for a free one; None where not even the rank is known."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        if name not in self._types or not self._types[name].HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else None for d in self._types[name].shape.dim)

    def is_activation(self, name: str) -> bool:
        """Whether a value changes with the input (or is made by an op, at least)."""
        return bool(name) and name not in self.constants

    def array(self, name: str) -> np.ndarray:
        """The values of a constant."""
        import onnx

        values: np.ndarray = onnx.numpy_helper.to_array(self.constants[name])
        return values

    def is_output(self, name: str) -> bool:
        return name in self.outputs

    def readers_of(self, name: str) -> list[Any]:
        """The nodes that read a value, each once."""
        return list({id(node): node for node in self.readers.get(name, ())}.values())

    def fresh(self, name: str) -> str:
        """`name`, or with a number behind it where there is such a value."""
        chosen, count = name, 1
        while chosen in self._taken:
            chosen, count = f"{name}_{count}", count + 1
        self._taken.add(chosen)
        return chosen

    def add_constant(self, name: str, values: np.ndarray) -> str:
        """Add a constant; returns the name it got."""
        import onnx

        chosen = self.fresh(name)
        tensor = onnx.numpy_helper.from_array(values, chosen)
        self.proto.initializer.append(tensor)
        self.constants[chosen] = self.proto.initializer[-1]
        return chosen

    def replace_input(self, nodes: Iterable[Any], old: str, new: str) -> None:
        """Let these nodes read `new` for `old`."""
        for node in nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new

    def remove(self, nodes: Sequence[Any]) -> None:
        """Take nodes out of the graph."""
        gone = {id(node) for node in nodes}
        kept = [node for node in self.proto.node if id(node) not in gone]
        copies = [type(node).FromString(node.SerializeToString()) for node in kept]
        del self.proto.node[:]
        self.proto.node.extend(copies)
        self.reindex()

    def raise_opset(self, opset: int) -> None:
        """Let the file use ops of a later opset; its own mean the same in both (20 and 21 differ in types taken)."""
        for entry in self.model.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = max(entry.version, opset)

    def drop_unused_constants(self) -> None:
        """Remove constants that nothing reads and that are not outputs."""
        used = {name for node in self.proto.node for name in _read_by(node)} | set(self.outputs)
        for index in reversed(range(len(self.proto.initializer))):
            if self.proto.initializer[index].name not in used:
                del self.proto.initializer[index]
        self.constants = {tensor.name: tensor for tensor in self.proto.initializer}

    def sort(self) -> None:
        """Put the nodes into an order in which every value is made before it is read."""
        makers = {name: index for index, node in enumerate(self.proto.node) for name in node.output if name}
        nodes = list(self.proto.node)
        needs = [{makers[name] for name in _read_by(node) if name in makers} for node in nodes]
        order: list[int] = []
        done = [False] * len(nodes)
        for start in range(len(nodes)):
            stack = [start]
            while stack:
                index = stack[-1]
                waiting = [need for need in sorted(needs[index], reverse=True) if not done[need]]
                if done[index] or not waiting:
                    stack.pop()
                    if not done[index]:
                        done[index] = True
                        order.append(index)
                else:
                    stack.extend(waiting)
        copies = [type(node).FromString(node.SerializeToString()) for node in (nodes[index] for index in order)]
        del self.proto.node[:]
        self.proto.node.extend(copies)
        self.reindex()


def _read_by(node: Any) -> Iterator[str]:
    """The values a node reads, those its sub-graphs take from outside included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            inside = {value.name for value in (*graph.input, *graph.initializer)}
            inside |= {name for inner in graph.node for name in inner.output}
            for inner in graph.node:
                yield from (name for name in _read_by(inner) if name not in inside)
            yield from (value.name for value in graph.output if value.name not in inside)
