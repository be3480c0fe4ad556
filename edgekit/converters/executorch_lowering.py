"""From a program to the bytes of a `.pte`, with what is known only on the way: which op came from where, and why an op
is not XNNPACK's."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.converters.executorch_graphs import node_origins, with_plain_outputs
from edgekit.converters.passports.executorch import Trace
from edgekit.converters.provenance import module_path, source_line
from edgekit.errors import ConversionError, MissingDependencyError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["Lowered", "lower"]

_LOGGER = "executorch.backends.xnnpack"
_WITH_WEIGHTS = ("convolution", "linear", "addmm", "aten.mm.")
_XNNPACK_AXES = 6
"""XNN_MAX_TENSOR_DIMS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """A `.pte` and what its making told."""

    content: bytes
    trace: Trace


def lower(
    programs: Mapping[str, ExportedProgram],
    trace: Trace | None = None,
    *,
    avoided: frozenset[str] = frozenset(),
    floats: Collection[str] = (),
) -> Lowered:
    """All entry points in one file, `forward` first. Raises ConversionError, which names the op where it can be told.

    `trace` is filled, also when it raises. Ops in `avoided` (`cat.default`) are left to executorch's own kernels, and
    the nodes in `floats` compute in float also where int8 comes in and goes out.
    """
    try:
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    except ImportError as e:
        raise MissingDependencyError("converting to ExecuTorch", extra="executorch", package="executorch") from e
    trace = trace or Trace()
    ready = {name: with_plain_outputs(program) for name, program in programs.items()}
    try:
        with _refusals(trace.reasons):
            edge = to_edge_transform_and_lower(
                ready if len(ready) > 1 else ready["forward"],
                partitioner=[_partitioner(trace, avoided, frozenset(floats))],
                # ops outside the core ATen set may still have a kernel; find_problems has told which have none
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
            made = edge.to_executorch()
        _note_instructions(trace, made)
        return Lowered(content=bytes(made.buffer), trace=trace)
    except Exception as e:  # executorch raises RuntimeError, ExportError, AssertionError, … by pass
        raise _error_of(e, ready) from e


def _partitioner(trace: Trace, avoided: frozenset[str], floats: frozenset[str]) -> Any:
    """XNNPACK's partitioner, which notes each op of the first program it is given."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    class NotingPartitioner(XnnpackPartitioner):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name, config in self.target_partitioner_configs.items():
                config.check_constraints = _checked_too(config.check_constraints, name in avoided, trace)
                config.get_node_and_deps = _alone_if(config.get_node_and_deps, floats)

        def partition(self, exported_program: ExportedProgram) -> Any:
            if not trace.places:
                for node in exported_program.graph.nodes:
                    _note(trace, node)
            return super().partition(exported_program)

    return NotingPartitioner()


def _checked_too(check: Callable[[Node, Any], bool], is_avoided: bool, trace: Trace) -> Callable[[Node, Any], bool]:
    """The partitioner's check of an op, and what it does not know XNNPACK to refuse when the file is loaded."""

    def checked(node: Node, program: Any) -> bool:
        if is_avoided:
            reason = "it fails there when it is run"
        elif _most_axes(node) > _XNNPACK_AXES:
            reason = f"a tensor has more than {_XNNPACK_AXES} axes"
        else:
            return check(node, program)
        handle = node.meta.get("debug_handle")
        if isinstance(handle, int):
            trace.reasons.setdefault(handle, reason)
        return False

    return checked


def _alone_if(deps: Callable[[Node, Any], list[Node]], floats: frozenset[str]) -> Callable[[Node, Any], list[Node]]:
    """The partitioner's choice of what belongs to an op; a float op takes no quantize or dequantize into itself."""

    def chosen(node: Node, program: Any) -> list[Node]:
        op = str(node.target)
        if any(kind in op for kind in (*_WITH_WEIGHTS, "quantize")) or not node_origins(node) & floats:
            return deps(node, program)  # float weights belong to their op; it takes in no quantize op with them
        return [node]

    return chosen


def _most_axes(node: Node) -> int:
    values = (one.meta.get("val") for one in (node, *node.all_input_nodes))
    return max((value.dim() for value in values if value is not None and hasattr(value, "dim")), default=0)


def _note(trace: Trace, node: Node) -> None:
    handle = node.meta.get("debug_handle")
    if node.op != "call_function" or not isinstance(handle, int):
        return
    names = node_origins(node)
    trace.names[handle] = trace.names.get(handle, frozenset()) | names
    trace.ops.append(str(node.target.__name__).removeprefix("aten."))  # type: ignore[union-attr]
    first = _first_name(node)
    path = module_path(node)
    trace.places.setdefault(handle, f"{path} ({first})" if path else first)


def _first_name(node: Node) -> str:
    """The node's name in the program it came from in the end."""
    name, sources = node.name, node.meta.get("from_node")
    while sources:
        name, sources = sources[-1].name, sources[-1].from_node
    return str(name)


def _note_instructions(trace: Trace, made: Any) -> None:
    for instruction, handle in made.debug_handle_map.get("forward", {}).items():
        if isinstance(handle, int):
            trace.instructions[instruction] = handle


@contextlib.contextmanager
def _refusals(reasons: dict[int, str]) -> Iterator[None]:
    """Takes down why the partitioner refuses a node, which it tells its debug log only."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            node, reason = getattr(record.msg, "node", None), getattr(record.msg, "reason", None)
            handle = node.meta.get("debug_handle") if node is not None else None
            if isinstance(handle, int) and reason:
                reasons.setdefault(handle, str(reason))

    logger = logging.getLogger(_LOGGER)
    before = logger.level, logger.propagate
    listener = Listener()
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.level, logger.propagate = before


def _error_of(error: Exception, programs: Mapping[str, ExportedProgram]) -> ConversionError:
    """What executorch said, and the first op of the program that it names."""
    said = f"{type(error).__name__}: {str(error)[:1000]}"
    for program in programs.values():
        for node in program.graph.nodes:
            if node.op == "call_function" and hasattr(node.target, "_schema") and _is_named_in(said, node):
                place = source_line(node) or module_path(node)
                where = f" (`{node.name}`{f' at {place}' if place else ''})"
                return ConversionError(
                    said + where, backend="executorch", stage="lower", op=str(node.target), hint=_HINT
                )
    return ConversionError(said, backend="executorch", stage="lower", hint=_HINT)


_HINT = "ONNX may take this model; `edgekit check` tells which backends have every op"


def _is_named_in(said: str, node: Node) -> bool:
    name = node.target._schema.name.partition("::")[2]  # type: ignore[union-attr]
    return f"aten.{name}." in said or f"aten::{name}" in said or f"aten_{name}_" in said
