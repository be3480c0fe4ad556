"""Which ops of a program a backend has no lowering for, found in the backend's own registry before converting.

Each backend decomposes a program in its own way, so each lookup decomposes likewise and then asks, for every op
that is left, the table the backend itself will ask. Runs in the converting child.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from edgekit.converters.provenance import module_path, source_line
from edgekit.errors import MissingDependencyError, Problem

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["MissingOp", "find_problems", "missing_ops"]


_FOUND: WeakKeyDictionary[ExportedProgram, dict[str, tuple[Problem, ...]]] = WeakKeyDictionary()


class MissingOp(NamedTuple):
    """An op without a lowering, the user's submodule it came from and the user's line."""

    op: str
    module: str | None
    source: str | None


def find_problems(program: ExportedProgram, backend: str) -> tuple[Problem, ...]:
    """One Problem for each op and place the backend cannot lower, with the installed backends that can.

    Remembered for each program: it is asked again for every scheme.
    """
    known = _FOUND.setdefault(program, {})
    if backend not in known:
        known[backend] = _found(program, backend)
    return known[backend]


def _found(program: ExportedProgram, backend: str) -> tuple[Problem, ...]:
    missing = missing_ops(program, backend)
    if not missing:
        return ()
    others = {name: _missing_elsewhere(program, name) for name in sorted(_LOOKUPS) if name != backend}
    return tuple(
        Problem(
            backend=backend,
            message=f"no lowering for {item.op}",
            op=item.op,
            module=item.module,
            source=item.source,
            available_in=tuple(
                name for name, places in others.items() if places is not None and item[1:] not in places
            ),
            hint="convert to a backend that has it, or write this part of the model with other operations",
        )
        for item in missing
    )


def _missing_elsewhere(program: ExportedProgram, backend: str) -> set[tuple[str | None, str | None]] | None:
    """(module, source) of each op another backend lacks; None when that backend is not installed."""
    try:
        return {(item.module, item.source) for item in missing_ops(program, backend)}
    except MissingDependencyError:
        return None


def missing_ops(program: ExportedProgram, backend: str) -> tuple[MissingOp, ...]:
    """The ops of the program a built-in backend has no lowering for, each place once, in program order."""
    nodes = _LOOKUPS[backend](program)
    found = (MissingOp(_op_name(node), module_path(node), source_line(node)) for node in nodes)
    return tuple(dict.fromkeys(found))


def _op_name(node: Node) -> str:
    return str(node.target)


def _calls(program: ExportedProgram) -> Iterable[Node]:
    """The calls of ATen and custom ops in the program and its sub-graphs (branches of torch.cond)."""
    for module in program.graph_module.modules():
        graph = getattr(module, "graph", None)
        for node in graph.nodes if graph is not None else ():
            if node.op == "call_function" and node.target is not operator.getitem and hasattr(node.target, "_schema"):
                yield node


def _missing_in_tflite(program: ExportedProgram) -> list[Node]:
    try:
        from litert_torch import fx_infra
        from litert_torch.backend import lowerings
    except ImportError as e:
        raise MissingDependencyError("converting to TFLite", extra="tflite", package="litert-torch") from e
    from edgekit.converters.tflite_lowering import decomposed

    # node names stand in for the module stack there: what is missing is looked up in the program itself
    lowered = fx_infra.safe_run_decompositions(decomposed(program), fx_infra.decomp.pre_lower_decomp(), can_skip=False)
    originals = {node.name: node for node in program.graph.nodes}
    missing = [node for node in _calls(lowered) if lowerings.lookup(node.target) is None]
    for node in missing:
        names = [name for _, name in (node.meta.get("nn_module_stack") or {}).values()]
        origin = originals.get(names[-1]) if names else None
        if origin is not None:
            node.meta["nn_module_stack"] = origin.meta.get("nn_module_stack")
    return missing


def _missing_in_onnx(program: ExportedProgram) -> list[Node]:
    try:
        import onnxscript  # noqa: F401 - the registry is built from its torch library
        from torch.onnx._internal.exporter import _decomp, _registration
    except ImportError as e:
        raise MissingDependencyError("converting to ONNX", extra="onnx", package="onnxscript") from e
    registry = _registration.ONNXRegistry.from_torchlib()
    implemented = set(_decomp.get_onnx_implemented_overloads(registry))
    decompositions: Any = _decomp.create_onnx_friendly_decomposition_table(implemented)
    lowered = program.run_decompositions(decompositions)
    # the exporter drops these checks, as its own `remove_assertion_nodes` lists them
    checks = ("sym_constrain_range_for_size", "_assert_async", "_assert_scalar", "_assert_tensor_metadata")
    calls = (node for node in _calls(lowered) if node.target._schema.name.removeprefix("aten::") not in checks)  # type: ignore[union-attr]
    return [node for node in calls if not registry.is_registered(node.target)]  # type: ignore[arg-type]


def _missing_in_executorch(program: ExportedProgram) -> list[Node]:
    from edgekit.converters.executorch_graphs import ready
    from edgekit.converters.executorch_kernels import nodes_without_kernel

    return list(nodes_without_kernel(ready(program)))


_LOOKUPS: dict[str, Callable[[ExportedProgram], list[Node]]] = {
    "executorch": _missing_in_executorch,
    "onnx": _missing_in_onnx,
    "tflite": _missing_in_tflite,
}
