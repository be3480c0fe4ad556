"""Which ops of a `.tflite` file a `NodeRule` means.

The tensors of edgekit's files are named after the program's nodes they come from (`tflite_rewrites.named_copy`), so a
rule finds its ops by name. The outputs of the file have names of their own and are traced through the program.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.artifact import NodeRule, RangeRule, RuleAction
from edgekit.converters.provenance import module_path, nodes_named
from edgekit.converters.tflite_flatbuffer import nodes_of, read_model, text
from edgekit.errors import Problem, UnsupportedError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["Applied", "applied", "output_nodes", "tensors_of_nodes"]


@dataclass(frozen=True, slots=True)
class Applied:
    """What the rules come to in the file."""

    exceptions: dict[str, RuleAction] = field(default_factory=dict)
    """First output of an op to FLOAT or INT16."""
    ranges: dict[str, RangeRule] = field(default_factory=dict)
    """Tensor to the rule its range is found by."""


def applied(content: bytes, program: ExportedProgram, rules: Sequence[NodeRule]) -> Applied:
    """Every rule on the ops it names; a later rule overrules an earlier one.

    Raises UnsupportedError with near names for rules that name no op of the file.
    """
    if not rules:
        return Applied()
    found = Applied()
    tensors = tensors_of_nodes(content, program)
    outputs = _first_outputs(content)
    problems = []
    for rule, nodes in nodes_named(program, rules).items():
        names = {name for node in nodes for name in tensors.get(node, ())}
        firsts = sorted({outputs[name] for name in names if name in outputs})
        if not firsts:
            problems.append(_unmatched(rule, nodes, program))
            continue
        for first in firsts:
            if rule.action in (RuleAction.FLOAT, RuleAction.INT16):
                found.exceptions[first] = rule.action
            else:
                found.exceptions.pop(first, None)
        if rule.action not in (RuleAction.FLOAT, RuleAction.INT16):
            found.ranges.update({name: RangeRule(rule.action.value) for name in names})
    if problems:
        raise UnsupportedError(problems)
    return found


def _unmatched(rule: NodeRule, nodes: Sequence[str], program: ExportedProgram) -> Problem:
    if nodes:
        return Problem(
            backend="tflite",
            message=f"rule '{rule.node}: {rule.action}' names {', '.join(nodes[:4])}, which leave no op in the file",
            hint="they were folded into constants or are only views; name the op that computes",
        )
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    known = sorted({node.name for node in calls} | {path for node in calls if (path := module_path(node))})
    near = difflib.get_close_matches(rule.node, known, n=4, cutoff=0.3) or known[:4]
    return Problem(
        backend="tflite",
        message=f"rule '{rule.node}: {rule.action}' names no op and no submodule of the model",
        hint=f"near names: {', '.join(near)}",
    )


def tensors_of_nodes(content: bytes, program: ExportedProgram) -> dict[str, tuple[str, ...]]:
    """Each node of the program to the tensors of the file's first entry point that come from it."""
    model = read_model(content)
    graph = model.subgraphs[0]
    produced = {int(i) for operator in graph.operators for i in operator.outputs}
    found: dict[str, list[str]] = {}
    for index in sorted(produced):
        name = text(graph.tensors[index].name)
        for node in nodes_of(name):
            found.setdefault(node, []).append(name)
    ends = output_nodes(program)
    named = set(found)
    for position, index in enumerate(graph.outputs):
        for node in _unnamed_before(ends[position], named) if position < len(ends) else ():
            found.setdefault(node, []).append(text(graph.tensors[index].name))
    return {node: tuple(dict.fromkeys(names)) for node, names in found.items()}


def output_nodes(program: ExportedProgram) -> list[Node | None]:
    """The node of each user output, in order; None for a constant."""
    from torch.export.graph_signature import OutputKind

    nodes = {node.name: node for node in program.graph.nodes}
    specs = [spec for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    return [nodes.get(getattr(spec.arg, "name", "")) for spec in specs]


def _unnamed_before(end: Node | None, named: set[str]) -> list[str]:
    """The output's node and those before it that no tensor is named after: fused into the op that gives the output."""
    waiting: list[Any] = [end] if end is not None else []
    out: list[str] = []
    while waiting:
        node = waiting.pop()
        if node.op != "call_function" or node.name in out or (node.name in named and node is not end):
            continue
        out.append(node.name)
        waiting += node.all_input_nodes
    return out


def _first_outputs(content: bytes) -> dict[str, str]:
    """Every output of an op to the first output of that op, by name."""
    graph = read_model(content).subgraphs[0]
    return {
        text(graph.tensors[i].name): text(graph.tensors[operator.outputs[0]].name)
        for operator in graph.operators
        for i in operator.outputs
    }
