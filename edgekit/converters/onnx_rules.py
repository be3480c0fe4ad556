"""Node rules, told of nodes of the exported program, as nodes of the ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekit.artifact import NodeRule, RangeRule, RuleAction
from edgekit.converters.node_rules import resolved_rules
from edgekit.converters.onnx_program import Origin
from edgekit.converters.provenance import nodes_named
from edgekit.errors import Problem, UnsupportedError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["FileRules", "file_rules", "unfollowed"]


@dataclass(slots=True, kw_only=True)
class FileRules:
    """What is asked of single nodes, by their names in the file."""

    float_nodes: set[str] = field(default_factory=set)
    wide_nodes: set[str] = field(default_factory=set)
    ranges: dict[str, RangeRule] = field(default_factory=dict)
    nodes_of: dict[NodeRule, set[str]] = field(default_factory=dict)
    """Each rule and the nodes it means."""


def file_rules(program: ExportedProgram, rules: Sequence[NodeRule], origins: Mapping[str, Origin]) -> FileRules:
    """The rules by node of the file. Raises UserError for a rule that names no node of the program, UnsupportedError
    for one whose nodes have nothing of their own in the file."""
    found = FileRules()
    actions = resolved_rules(program, rules, backend="onnx")
    for rule, names in nodes_named(program, rules).items():
        own = {name for name in names if actions[name] is rule.action}  # a later rule may have taken the others
        meant = {node for node, origin in origins.items() if own & set(origin.nodes)}
        if own and not meant:
            raise unfollowed(rule, "its ops were folded into others or into constants when the file was written")
        found.nodes_of[rule] = meant
        if rule.action is RuleAction.FLOAT:
            found.float_nodes |= meant
        elif rule.action is RuleAction.INT16:
            found.wide_nodes |= meant
        else:
            found.ranges.update(dict.fromkeys(meant, RangeRule(rule.action.value)))
    return found


def unfollowed(rule: NodeRule, reason: str) -> UnsupportedError:
    """The error for a rule that cannot be followed."""
    message = f"the rule '{rule.node}: {rule.action}' cannot be followed: {reason}"
    return UnsupportedError(
        (Problem(backend="onnx", message=message, hint="name another node, or leave the rule out"),)
    )
