"""`NodeRule`s made sure of: each names nodes of the program, and asks for what the backend can do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgekit.artifact import NodeRule, RuleAction
from edgekit.converters.provenance import module_path, nodes_named
from edgekit.errors import Problem, UnsupportedError, UserError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["resolved_rules"]


def resolved_rules(
    program: ExportedProgram,
    rules: Sequence[NodeRule],
    *,
    backend: str,
    refused: Mapping[RuleAction, str] | None = None,
) -> dict[str, RuleAction]:
    """Node name to what is asked of it; where rules overlap, the last one counts.

    `refused` maps an action the backend cannot follow to the reason. Raises UnsupportedError for such a rule, and
    UserError for one that names nothing.
    """
    refused = refused or {}
    problems = [
        Problem(backend=backend, message=f"rule '{rule.node}: {rule.action}': {refused[rule.action]}")
        for rule in rules
        if rule.action in refused
    ]
    if problems:
        raise UnsupportedError(problems)
    actions: dict[str, RuleAction] = {}
    for rule, names in nodes_named(program, rules).items():
        if not names:
            raise UserError(f"rule '{rule.node}: {rule.action}' names no node of the model", hint=_near(program, rule))
        actions.update(dict.fromkeys(names, rule.action))
    return actions


def _near(program: ExportedProgram, rule: NodeRule) -> str:
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    paths = {path for node in nodes if (path := module_path(node))}
    known = sorted({node.name for node in nodes} | paths)
    close = difflib.get_close_matches(rule.node, known, n=5, cutoff=0.4)
    return f"did you mean {', '.join(close)}?" if close else f"its nodes are {', '.join(known[:12])}, …"
