"""What a `.tflite` file cannot hold of a program, told before converting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.converters.provenance import module_path, source_line
from edgekit.errors import Problem

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

    from edgekit.converters.base import ConversionRequest

__all__ = ["find_obstacles"]


def find_obstacles(request: ConversionRequest) -> tuple[Problem, ...]:
    """State that outlives a call, free shapes, and combinations of options without a meaning here."""
    programs = (request.program, *request.signatures.values())
    problems = [problem for program in programs for problem in (*_state(program), *_free_shapes(program))]
    if request.signatures and request.scheme.is_static:
        problems.append(
            Problem(
                backend="tflite",
                message=f"several entry points cannot be {request.scheme}: calibration is of the first one's sizes",
                hint="convert each size to a file of its own, or use dynamic_w8",
            )
        )
    return tuple(problems)


def _state(program: ExportedProgram) -> list[Problem]:
    """Buffers the model writes: the file would start from the same values at every call."""
    buffers = dict(program.graph_signature.inputs_to_buffers)
    written: dict[str, Node] = {}
    for node in program.graph.nodes:
        for origin in _written_by(node):
            if origin in buffers:
                written.setdefault(buffers[origin], node)
    for name in program.graph_signature.buffers_to_mutate.values():
        written.setdefault(name, program.graph.output_node())
    return [
        Problem(
            backend="tflite",
            message=f"forward() writes the buffer '{name}', which a .tflite file cannot keep from call to call",
            module=module_path(node),
            source=source_line(node),
            hint="take the state as an input and return it as an output",
        )
        for name, node in written.items()
    ]


def _written_by(node: Node) -> list[str]:
    """Placeholders whose values an op changes in place, through any views of them."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    changed: list[Any] = [
        value
        for value, argument in zip(node.args, schema.arguments, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    names = []
    for value in changed:
        origin = value
        while _is_alias(origin):
            origin = origin.args[0]
        if getattr(origin, "op", "") == "placeholder":
            names.append(str(origin.name))
    return names


def _is_alias(node: Any) -> bool:
    """Whether it is a view of its first argument, or that argument changed in place."""
    schema = getattr(getattr(node, "target", None), "_schema", None)
    if getattr(node, "op", "") != "call_function" or schema is None or not schema.returns or not node.args:
        return False
    return schema.returns[0].alias_info is not None and hasattr(node.args[0], "op")


def _free_shapes(program: ExportedProgram) -> list[Problem]:
    if not program.range_constraints:
        return []
    axes = ", ".join(str(symbol) for symbol in program.range_constraints)
    return [
        Problem(
            backend="tflite",
            message=f"litert-torch 0.10 fails at the first linear layer or reshape behind a free axis ({axes})",
            hint="fix the shapes, give each size as a signature, or convert to onnx or executorch",
        )
    ]
