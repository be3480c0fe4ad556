"""Where a node of a program comes from in the user's code, and which nodes a rule names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgekit.artifact import NodeRule

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["is_named", "module_path", "nodes_named", "source_line"]


def module_path(node: Node) -> str | None:
    """`features.3.conv`: the innermost submodule the op came from; None for an op of the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        name = re.sub(r"^L\['self'\]\.?", "", str(path))
        if name:
            return name
    return None


def source_line(node: Node) -> str | None:
    """`file.py:line`: the deepest line of the stack trace that is not torch's own."""
    trace = node.meta.get("stack_trace") or ""
    frames = re.findall(r'File "([^"]+)", line (\d+)', trace)
    own = [f"{name}:{line}" for name, line in frames if "/torch/" not in name.replace("\\", "/")]
    return own[-1] if own else None


def is_named(node: Node, pattern: str) -> bool:
    """Whether `NodeRule.node` means this node: by its name, or by a submodule that holds it."""
    if fnmatch.fnmatchcase(node.name, pattern):
        return True
    path = module_path(node)
    if path is None:
        return False
    parts = path.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[: end + 1]), pattern) for end in range(len(parts)))


def nodes_named(program: ExportedProgram, rules: Iterable[NodeRule]) -> dict[NodeRule, tuple[str, ...]]:
    """For each rule, the computing nodes of the program it names, in graph order; empty where it names none."""
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    return {rule: tuple(node.name for node in nodes if is_named(node, rule.node)) for rule in rules}
