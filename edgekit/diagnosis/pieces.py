"""What a file computes in one piece, what the piece reads, and what it costs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.converters.provenance import module_path, source_line
from edgekit.diagnosis.values import Layer

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["Piece", "Pieces", "op_name"]

_WEIGHTED = ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "linear", "addmm")
_PRODUCTS = ("matmul", "bmm", "mm", "addmm", "baddbmm", "scaled_dot_product_attention")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def op_name(node: Node) -> str:
    """`conv2d` for aten.conv2d.default; `input` for what the user gives."""
    if node.op != "call_function":
        return "input"
    return str(node.target).removeprefix("aten.").partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Nodes that a file computes in one, the last of which it shows."""

    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    """The shown nodes it takes its input from."""
    macs: int
    weight_values: int
    main: str
    """The node with weights or a product, else the last."""


class Pieces:
    """The pieces of a program in a file that shows these nodes."""

    def __init__(self, program: ExportedProgram, shown: Iterable[str]) -> None:
        self._nodes: dict[str, Node] = {node.name: node for node in program.graph.nodes}
        self._place = {name: index for index, name in enumerate(self._nodes)}
        self._given = set(program.graph_signature.user_inputs)
        names = set(shown)
        self._pieces = {name: self._piece(name, names) for name in self._nodes if name in names}

    def __getitem__(self, name: str) -> Piece:
        return self._pieces[name]

    def readers(self, name: str) -> tuple[str, ...]:
        """The shown nodes that read this one, in order."""
        return tuple(other for other, piece in self._pieces.items() if name in piece.reads)

    def ops(self, name: str) -> tuple[str, ...]:
        """The ops of a piece, in order: `conv2d`, `batch_norm`, `relu`."""
        return tuple(op_name(self._nodes[one]) for one in self._pieces[name].nodes)

    def layer(self, name: str) -> Layer:
        """How the layer is told to people; module and line are those of its main node."""
        node = self._nodes[name]
        main = self._nodes[self._pieces[name].main]
        return Layer(node=name, op=op_name(node), module=module_path(main), source=source_line(main))

    def _piece(self, name: str, shown: Collection[str]) -> Piece:
        inside, reads, waiting = {name}, set(), list(self._inputs(self._nodes[name]))
        while waiting:
            node = waiting.pop()
            if node.name in shown or node.op != "call_function":
                reads.add(node.name)
            elif node.name not in inside:
                inside.add(node.name)
                waiting.extend(self._inputs(node))
        nodes = tuple(sorted(inside, key=self._place.__getitem__))
        heavy = [one for one in nodes if op_name(self._nodes[one]) in (*_WEIGHTED, *_PRODUCTS)]
        return Piece(
            nodes=nodes,
            reads=tuple(sorted(reads, key=self._place.__getitem__)),
            macs=sum(_macs(self._nodes[one]) for one in nodes),
            weight_values=sum(self._weights(self._nodes[one]) for one in nodes),
            main=heavy[0] if heavy else name,
        )

    def _inputs(self, node: Node) -> list[Node]:
        """What it reads that is computed or given, not a parameter, buffer or constant."""
        return [n for n in node.all_input_nodes if n.op == "call_function" or n.name in self._given]

    def _weights(self, node: Node) -> int:
        held = [n for n in node.all_input_nodes if n.op == "placeholder" and n.name not in self._given]
        return sum(int(n.meta["val"].numel()) for n in held if hasattr(n.meta.get("val"), "numel"))


def _macs(node: Node) -> int:
    """Multiply-accumulates of a convolution, linear layer or product; 0 for anything else."""
    op, out = op_name(node), getattr(node.meta.get("val"), "numel", lambda: 0)
    values: list[Any] = [n.meta.get("val") for n in node.all_input_nodes]
    shapes = [tuple(value.shape) for value in values if hasattr(value, "shape")]
    if len(shapes) < 2:
        return 0
    if op in _TRANSPOSED:
        return int(_product(shapes[0]) * _product(shapes[1][1:]))
    if op in _WEIGHTED and op != "addmm":
        return int(out() * _product(shapes[1][1:]))
    return int(out() * shapes[-2][-1]) if op in _PRODUCTS and shapes[-2] else 0


def _product(extents: Iterable[int]) -> int:
    total = 1
    for extent in extents:
        total *= int(extent)
    return total
