"""What a `.tflite` file cannot hold of a program, told before converting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import Problem

if TYPE_CHECKING:
    from torch.export import ExportedProgram

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
    return [
        Problem(
            backend="tflite",
            message=f"forward() writes the buffer '{name}', which a .tflite file cannot keep from call to call",
            hint="take the state as an input and return it as an output",
        )
        for name in program.graph_signature.buffers_to_mutate.values()
    ]


def _free_shapes(program: ExportedProgram) -> list[Problem]:
    if not program.range_constraints:
        return []
    axes = ", ".join(str(symbol) for symbol in program.range_constraints)
    return [
        Problem(
            backend="tflite",
            message=f"litert-torch cannot keep free shapes ({axes}) right",
            hint="fix the shapes, give each size as a signature, or convert to onnx or executorch",
        )
    ]
