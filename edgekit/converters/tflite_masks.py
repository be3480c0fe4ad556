"""Attention masks under integer activations.

A mask holds -inf, or a number so low that its exponential is zero. Taken into the range of a tensor it leaves no step
for the values that matter: with -1e9 in it, 8 bits have steps of 4 million. Only what the softmax (or the maximum)
makes of it counts, and an exponential of 8 below the lowest real value is already nothing in 8 bits. So the tensors
a mask passes through get the range of their other values and a little below; the mask itself saturates there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.converters.ranges import FoldedObserver, Range
from edgekit.converters.tflite_flatbuffer import constant_of, op_name, schema, text

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MASK_LEVEL", "Masks", "masks_of"]

MASK_LEVEL = -1000.0
"""Values at or below this that reach a softmax or a maximum are a mask."""
MARGINS = {8: 8.0, 16: 20.0}
"""How far below the lowest real value a masked one lies, by bits: e^-8 is 3e-4, below half a step of an 8-bit softmax;
16 bits have the room for e^-20."""
_PASSING = frozenset(
    (
        *("ADD", "SUB", "MUL", "MINIMUM", "MAXIMUM", "SELECT", "SELECT_V2", "BROADCAST_TO", "CONCATENATION", "TILE"),
        *("RESHAPE", "TRANSPOSE", "EXPAND_DIMS", "SQUEEZE", "SLICE", "STRIDED_SLICE", "GATHER", "GATHER_ND"),
        *("PACK", "UNPACK", "SPLIT"),
    )
)


@dataclass(frozen=True, slots=True)
class Masks:
    """The tensors masks pass through on their way to a softmax, a group for each mask."""

    groups: tuple[frozenset[str], ...] = ()
    padded: frozenset[str] = frozenset()
    """Outputs of paddings with -inf, for a maximum: their range is that of the other values."""
    stand_ins: tuple[tuple[str, str], ...] = ()
    """A constant that is not finite and no mask, and the output of its op, whose range it gets."""

    @property
    def tensors(self) -> frozenset[str]:
        """Every tensor whose lowest values are not to be taken for its range."""
        return self.padded.union(*self.groups)

    def widened(
        self, ranges: Mapping[str, Range], observers: Mapping[str, FoldedObserver], bits: int
    ) -> dict[str, Range]:
        """The ranges, those of masked tensors reaching below every real value by the whole span of their group."""
        out, margin = dict(ranges), MARGINS[bits]
        for group in self.groups:
            seen = [observers[name].seen() for name in group if name in observers]
            span = max((observer.highest - observer.lowest for observer in seen), default=0.0)
            for name in group:
                low, high = out.get(name, (0.0, 0.0))
                out[name] = (min(low, ranges.get(name, (0.0, 0.0))[0] - margin, -span - margin), high)
        for constant, output in self.stand_ins:
            out[constant] = out.get(output, (0.0, 0.0))
        return out

    def notes(self) -> tuple[str, ...]:
        """A sentence for the passport."""
        if not self.groups:
            return ()
        masked = frozenset[str]().union(*self.groups)
        return (
            f"{len(masked)} tensors hold a mask (values below {MASK_LEVEL:g} on their way to a softmax): their "
            "ranges are of the other values and a little below, where the mask saturates",
        )


def masks_of(model: Any, graph: Any, samples: Sequence[Sequence[np.ndarray]]) -> Masks:
    """The masks of a subgraph: constants and inputs with values below `MASK_LEVEL` that lead to a softmax."""
    groups, padded, stand_ins = [], set(), []
    for source in _sources(model, graph, samples):
        group = _path_to_softmax(model, graph, source)
        name = text(graph.tensors[source].name)
        if group:
            groups.append(frozenset(text(graph.tensors[i].name) for i in group))
            continue
        for operator in graph.operators:
            if source not in operator.inputs:
                continue
            output = text(graph.tensors[operator.outputs[0]].name)
            if op_name(model, operator) == "PADV2":
                padded.add(output)
            elif not _is_finite(model, graph.tensors[source]):
                stand_ins.append((name, output))
    return Masks(tuple(groups), frozenset(padded), tuple(stand_ins))


def _is_finite(model: Any, tensor: Any) -> bool:
    import numpy as np

    values = constant_of(model, tensor)
    return values is None or bool(np.isfinite(values).all())


def _sources(model: Any, graph: Any, samples: Sequence[Sequence[np.ndarray]]) -> list[int]:
    import numpy as np

    found = []
    for index, tensor in enumerate(graph.tensors):
        if tensor.type != schema().TensorType.FLOAT32:
            continue
        values = constant_of(model, tensor)
        if values is not None and values.size and float(np.min(values)) <= MASK_LEVEL:
            found.append(index)
    for position, index in enumerate(graph.inputs):
        low = min((float(np.min(sample[position])) for sample in samples if sample[position].size), default=0.0)
        if low <= MASK_LEVEL and graph.tensors[index].type == schema().TensorType.FLOAT32:
            found.append(int(index))
    return found


def _path_to_softmax(model: Any, graph: Any, source: int) -> set[int]:
    """The tensors from `source` on, and what each is combined with, if one of them goes into a softmax; else none.

    An operand that is combined with the mask is not itself masked and keeps its own range.
    """
    reached, waiting = {source}, [source]
    ends = False
    while waiting:
        index = waiting.pop()
        for operator in graph.operators:
            if index not in operator.inputs:
                continue
            op = op_name(model, operator)
            ends = ends or op == "SOFTMAX"
            if op not in _PASSING:
                continue
            fresh = [int(i) for i in operator.outputs if int(i) not in reached]
            reached.update(fresh)
            waiting += fresh
    return reached if ends else set()
