"""Which tensor of a model file holds which node of the PyTorch program, found by their values.

Names say nothing: toolchains rename, fuse, fold and reorder. Run on the same inputs, the float file and the program
give the same numbers, so that a tensor is a node's output when the two agree to a relative error of 1e-3 (60 dB, what
a float file must reach) in some order of the axes. Nodes that were fused away have no tensor of their own;
`covering_tensors` says in which tensor their result ends up.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["AlignedTensor", "align", "covering_tensors", "graph_arguments", "node_values"]

TOLERANCE = 1e-3
"""Relative L2 error up to which a float tensor is taken for a node's output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedTensor:
    """A tensor of the file that holds the output of a node."""

    node: str
    """In the names of `program.graph.nodes`."""
    tensor: str
    others: tuple[str, ...] = ()
    """More tensors of the file with these very values: copies, transposed or reshaped ones."""
    permutation: tuple[int, ...]
    """`node = tensor.reshape(node.shape in the file's order).transpose(permutation)`; (0, 3, 1, 2) for NHWC."""
    shape: tuple[int, ...]
    """Of the node's output, on the first sample."""
    error: float
    """Relative L2 error between the two."""

    def restored(self, values: np.ndarray, shape: Sequence[int] | None = None) -> np.ndarray:
        """Values of the tensor in PyTorch's layout; `shape` where it is not that of the first sample."""
        wanted = self.shape if shape is None else tuple(shape)
        stored: list[int] = [0] * len(wanted)
        for axis, source in enumerate(self.permutation):
            stored[source] = wanted[axis]
        return values.reshape(stored).transpose(self.permutation)


class _Print(NamedTuple):
    """What two equal arrays have in common, whatever the order of their values."""

    size: int
    lowest: float
    highest: float
    absolute: float
    square: float

    @classmethod
    def of(cls, array: np.ndarray) -> _Print:
        flat = array.reshape(-1).astype(np.float64)
        return cls(
            flat.size, float(flat.min()), float(flat.max()), float(np.abs(flat).sum()), float(np.square(flat).sum())
        )

    def resembles(self, other: _Print, tolerance: float) -> bool:
        # |min a - min b| <= |a - b|_2 <= tolerance · |a|_2; and by Cauchy-Schwarz for the two sums
        slack = tolerance * math.sqrt(max(self.square, other.square)) + 1e-12
        return (
            self.size == other.size
            and abs(self.lowest - other.lowest) <= slack
            and abs(self.highest - other.highest) <= slack
            and abs(self.absolute - other.absolute) <= slack * math.sqrt(self.size)
            and abs(math.sqrt(self.square) - math.sqrt(other.square)) <= slack
        )


def node_values(program: ExportedProgram, sample: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor the program computes on one sample, by node name, in graph order; its inputs come first.

    A copy each, taken before an in-place op can change it. Parameters, buffers and constants are not in it.
    """
    import torch
    from torch import fx

    kept: dict[str, np.ndarray] = {}
    given = set(program.graph_signature.user_inputs)

    class Recorder(fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            is_computed = n.op == "call_function" or (n.op == "placeholder" and n.name in given)
            if is_computed and isinstance(value, torch.Tensor) and not value.is_complex():
                held = value.detach().to("cpu", copy=True)
                kept[n.name] = held.float().numpy() if held.dtype is torch.bfloat16 else held.numpy()
            return value

    with torch.no_grad():
        Recorder(program.graph_module).run(*graph_arguments(program, sample))
    return kept


def graph_arguments(program: ExportedProgram, sample: Sequence[np.ndarray]) -> list[Any]:
    """What the program's graph takes: lifted parameters, buffers and constants, then the sample, in its order."""
    import torch
    from torch.export.graph_signature import InputKind

    inputs = iter([torch.from_numpy(np.array(array, order="C")) for array in sample])
    arguments: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            constant = getattr(spec.arg, "value", None)
            arguments.append(constant if constant is not None else next(inputs))
        elif spec.target in program.state_dict:
            arguments.append(program.state_dict[spec.target].clone())  # the graph may write to a buffer
        else:
            value = program.constants[spec.target or ""]
            arguments.append(value.clone() if isinstance(value, torch.Tensor) else value)
    return arguments


def align(
    program: ExportedProgram,
    samples: Sequence[Sequence[np.ndarray]],
    tensors: Sequence[Mapping[str, np.ndarray]],
    *,
    tolerance: float = TOLERANCE,
    values: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> dict[str, AlignedTensor]:
    """The tensor of the file for each node that has one, in graph order.

    `tensors` holds, for each sample, the values of the file's activations in the order the file computes them (no
    constants; integer and boolean ones are passed over). One or two samples do. Several nodes may share a tensor:
    those that leave the values as they are (dropout, a view). A tensor whose values are all the same is no evidence
    and is never matched. `values` are `node_values` of the samples, where the caller has them.
    """
    values = [node_values(program, sample) for sample in samples] if values is None else values
    nodes = _telling(values)
    found = _telling(tensors)
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, mark in found.items():
        by_size[mark.size].append(name)
    matches: dict[str, list[_Match]] = {}
    for name, mark in nodes.items():
        alike = [other for other in by_size[mark.size] if mark.resembles(found[other], tolerance)]
        tried = [_match(name, other, values, tensors, tolerance) for other in alike]
        if hits := [match for match in tried if match is not None]:
            matches[name] = hits
    return {name: _aligned(name, hits, matches, values[0][name].shape) for name, hits in matches.items()}


def _telling(samples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, _Print]:
    """The fingerprint, on the first sample, of every float array that is finite and not the same all over."""
    marks = {}
    for name, array in samples[0].items():
        if array.size and np.issubdtype(array.dtype, np.floating):
            mark = _Print.of(array)
            is_finite = math.isfinite(mark.square)
            if is_finite and (mark.lowest != mark.highest or (array.size == 1 and mark.square > 0)):
                marks[name] = mark
    return marks


class _Match(NamedTuple):
    tensor: str
    permutation: tuple[int, ...]
    same_shape: bool
    error: float


def _match(
    node: str,
    tensor: str,
    values: Sequence[Mapping[str, np.ndarray]],
    tensors: Sequence[Mapping[str, np.ndarray]],
    tolerance: float,
) -> _Match | None:
    """How the tensor holds the node's values on every sample, or None."""
    reference, stored = values[0][node], tensors[0][tensor]
    wanted = _extents(stored.shape)
    for order in _orders(reference.shape):
        same_shape = _extents([reference.shape[axis] for axis in order]) == wanted
        error = max(
            _relative_error(sample[node].transpose(order), other[tensor])
            for sample, other in zip(values, tensors, strict=True)
        )
        if error <= tolerance:
            inverse = tuple(int(axis) for axis in np.argsort(order))
            return _Match(tensor, inverse, same_shape, error)
    return None


def _extents(shape: Sequence[int]) -> list[int]:
    return [int(extent) for extent in shape if extent != 1]


def _orders(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Orders of the axes to try, likely ones first; axes of one element stay where they are in the first of them.

    As it is, channels last, channels first; then, of up to five axes with more than one element, every other.
    """
    rank = len(shape)
    likely = [tuple(range(rank))]
    if rank >= 3:
        likely += [(0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))]
    real = [axis for axis in range(rank) if shape[axis] != 1]
    if len(real) <= 5:
        for order in itertools.permutations(real):
            places = iter(order)
            likely.append(tuple(next(places) if shape[axis] != 1 else axis for axis in range(rank)))
    seen: set[tuple[int, ...]] = set()
    orders = []
    for order in likely:
        moved = tuple(axis for axis in order if shape[axis] != 1)
        if moved not in seen:
            seen.add(moved)
            orders.append(order)
    return orders


def _relative_error(reference: np.ndarray, values: np.ndarray) -> float:
    if reference.size != values.size:
        return math.inf
    expected = reference.reshape(-1).astype(np.float64)
    norm = float(np.linalg.norm(expected))
    difference = float(np.linalg.norm(expected - values.reshape(-1).astype(np.float64)))
    return difference / norm if norm > 0 else (0.0 if difference == 0 else math.inf)


def _aligned(
    name: str, hits: list[_Match], matches: Mapping[str, list[_Match]], shape: tuple[int, ...]
) -> AlignedTensor:
    """The one of several tensors with the node's values: of its shape if any, then as it stands among its likes."""
    ranked = [hit for hit in hits if hit.same_shape] or hits
    best = min(hit.error for hit in ranked)
    close = [hit for hit in ranked if hit.error <= max(10 * best, 1e-5)]
    mine = {hit.tensor for hit in close}
    earlier = [
        other
        for other in itertools.takewhile(lambda other: other != name, matches)
        if mine <= {hit.tensor for hit in matches[other] if hit.same_shape == close[0].same_shape}
    ]
    chosen = close[min(len(earlier), len(close) - 1)]
    return AlignedTensor(
        node=name,
        tensor=chosen.tensor,
        others=tuple(hit.tensor for hit in hits if hit is not chosen),
        permutation=chosen.permutation,
        shape=shape,
        error=chosen.error,
    )


def covering_tensors(program: ExportedProgram, aligned: Mapping[str, AlignedTensor]) -> dict[str, AlignedTensor]:
    """`aligned`, and for each node fused away the tensor its result ends up in.

    That is the tensor of the only node that uses it, where that takes nothing else that is computed, and so on:
    convolution, then batch norm, then activation. Any other node without a tensor is absent.
    """
    covered: dict[str, AlignedTensor] = {}
    for node in reversed(list(program.graph.nodes)):
        if node.op != "call_function":
            continue
        if node.name in aligned:
            covered[node.name] = aligned[node.name]
        elif len(node.users) == 1:
            user = next(iter(node.users))
            if user.name in covered and _computed_inputs(user, program) == [node]:
                covered[node.name] = covered[user.name]
    return {node.name: covered[node.name] for node in program.graph.nodes if node.name in covered}


def _computed_inputs(node: Node, program: ExportedProgram) -> list[Node]:
    """What a node takes that is not a parameter, buffer or constant."""
    given = set(program.graph_signature.user_inputs)
    return [
        other
        for other in node.all_input_nodes
        if other.op == "call_function" or (other.op == "placeholder" and other.name in given)
    ]
