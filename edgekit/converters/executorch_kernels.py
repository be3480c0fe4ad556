"""Which ops executorch's pip runtime can execute: in XNNPACK, or with a kernel of its own registry."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edgekit.errors import MissingDependencyError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["functional", "kernel_names", "nodes_without_kernel"]

_FOLDED = (
    "sym_size",
    "sym_numel",
    "_assert_tensor_metadata",
    "_assert_scalar",
    "lift_fresh_copy",
    "alias",
    "detach",
)
"""Asserts and symbolic sizes are folded away or run in executorch's prim ops."""


@lru_cache(maxsize=1)
def kernel_names() -> frozenset[str]:
    """`aten::add.out` and all other kernels of the runtime installed here, which is the one on devices."""
    try:
        from executorch.runtime import Runtime
    except ImportError as e:
        raise MissingDependencyError("converting to ExecuTorch", extra="executorch", package="executorch") from e
    return frozenset(Runtime.get().operator_registry.operator_names)


@lru_cache(maxsize=4)
def functional(program: ExportedProgram) -> ExportedProgram:
    """The program in core ATen ops, none of which writes to what it is given: what it writes to a buffer is told."""
    lowered: ExportedProgram = program.run_decompositions()
    return lowered


@lru_cache(maxsize=4)
def nodes_without_kernel(program: ExportedProgram) -> tuple[Node, ...]:
    """The calls of the program, decomposed as executorch does it, that nothing can execute."""
    try:
        from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    except ImportError as e:
        raise MissingDependencyError("converting to ExecuTorch", extra="executorch", package="executorch") from e
    kernels = {name.partition(".")[0] for name in kernel_names()}
    delegated = {str(config.target_name).partition(".")[0] for config in ALL_PARTITIONER_CONFIGS}
    return tuple(node for node in _calls(functional(program)) if not _has_kernel(node, kernels, delegated))


def _calls(program: ExportedProgram) -> Iterator[Node]:
    """The calls of ATen and custom ops in the program and its sub-graphs (branches of torch.cond)."""
    for module in program.graph_module.modules():
        graph: Any = getattr(module, "graph", None)
        for node in graph.nodes if graph is not None else ():
            if node.op == "call_function" and node.target is not operator.getitem and hasattr(node.target, "_schema"):
                yield node


def _has_kernel(node: Node, kernels: set[str], delegated: set[str]) -> bool:
    """Whether XNNPACK takes the op, or the runtime has its out variant (a view's `_copy`, which replaces it)."""
    name: str = node.target._schema.name  # type: ignore[union-attr]
    namespace, _, op = name.partition("::")
    if op == "convolution" and _rank_of_weight(node) == 5:
        return False  # the kernel is there and takes one or two spatial axes
    if namespace == "aten" and op in delegated:
        return True
    if namespace == "quantized_decomposed":
        return True  # XNNPACK takes these in; what is left of them is found in the file
    return op in _FOLDED or name in kernels or f"{name}_copy" in kernels


def _rank_of_weight(node: Node) -> int:
    value: Any = node.args[1]
    return int(value.meta["val"].dim())
