"""Tapped `.pte` files: the program lowered once more with nodes from its inside among its outputs.

A `.pte` cannot be edited, so that what is tapped is made again, as the converter made the artifact: the same program,
calibration and options. Whether it is the same model is told by its final outputs, which are compared afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import QuantizationParams, Scheme
from edgekit.diagnosis.taps.values import TapOutput
from edgekit.diagnosis.wire import ProbeRequest

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["source_program", "taps_of", "write_tapped"]

Samples = Sequence[tuple["np.ndarray", ...]]

_FUSED_AFTER = ("batch_norm", "relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_", "clamp")
"""What XNNPACK computes in one kernel with the op before it: tapped in between, it could not."""
_IDLE = ("dropout", "dropout_", "feature_dropout", "alias", "detach", "detach_")
"""What does nothing outside of training."""
_MOVES = frozenset(
    [
        *(*_IDLE, "clone", "contiguous", "to", "_to_copy", "lift_fresh_copy"),
        *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "expand"),
        *("slice", "select", "split", "chunk", "unbind", "narrow", "_assert_tensor_metadata"),
    ]
)
"""What only moves values: it adds no error of its own."""
_DTYPES = {"torch.int8": "int8", "torch.uint8": "uint8", "torch.int16": "int16"}


def source_program(
    request: ProbeRequest, program: ExportedProgram, calibration: Samples, folder: Path
) -> ExportedProgram:
    """The program the artifact was lowered from: `program` converted again, up to there."""
    from edgekit.converters.base import ConversionRequest
    from edgekit.converters.executorch_attempts import made_from
    from edgekit.converters.executorch_graphs import ready

    request_again = ConversionRequest(
        name="again",
        program=program,
        scheme=request.scheme or Scheme.FP32,
        backend=request.backend,
        calibration=tuple(calibration),
        output_dir=folder,
        quantization=request.quantization,
        is_trained=request.is_trained,
    )
    return made_from(request_again, {"forward": ready(program)}, folder / "again.pte").program


def taps_of(program: ExportedProgram, source: ExportedProgram) -> tuple[dict[str, str], list[TapOutput]]:
    """(tap name to node of `source`, the tap of each), named by the nodes of `program` they came from, in its order.

    Of a value that is quantized, the integers. Inputs of the program are among them.
    """
    given = set(program.graph_signature.user_inputs)
    known = {n.name: n for n in program.graph.nodes if n.op == "call_function" or n.name in given}
    wanted: dict[str, str] = {}
    taps: list[TapOutput] = []
    origins = {node: origin for node in source.graph.nodes if (origin := _origin(node, known)) is not None}
    for node, found in origins.items():
        origin = _folded_into(known[found], set(origins.values()))
        if origin in wanted or _op(node) in _MOVES:
            continue
        behind = next(
            (user for user in node.users if _op(user) == "quantize_per_tensor" and user.args[0] is node), None
        )
        dtype, params = _parameters(behind) if behind is not None else ("float32", None)
        if behind is not None and params is not None:
            wanted[origin] = behind.name
            taps.append(TapOutput(position=-1, name=origin, dtype=dtype, quantization=params))
        elif node.op == "call_function" and not _is_fused(node):
            wanted[origin] = node.name
            taps.append(TapOutput(position=-1, name=origin, dtype="float32"))
    return wanted, taps


def write_tapped(source: ExportedProgram, names: Sequence[str], path: Path) -> int:
    """Write `source` lowered with these of its nodes behind its own outputs; returns how many it has of its own."""
    from edgekit.converters.executorch_lowering import lower

    path.write_bytes(lower({"forward": _with_outputs(source, names)}).content)
    return len([spec for spec in source.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"])


def _is_fused(node: Node) -> bool:
    return len(node.users) == 1 and _op(next(iter(node.users))) in _FUSED_AFTER


def _op(node: Node) -> str:
    return str(node.target).partition(".")[2].partition(".")[0] if node.op == "call_function" else ""


def _origin(node: Node, known: Mapping[str, Node]) -> str | None:
    """The node of the float program this one came from, by the names torch has kept; None where it is another op."""
    name, sources = node.name, node.meta.get("from_node")
    while sources:
        name, sources = sources[-1].name, sources[-1].from_node
    origin = known.get(name)
    if origin is None or node.op != origin.op or _op(node).rstrip("_") != _op(origin).rstrip("_"):
        return None
    is_float = getattr(node.meta.get("val"), "is_floating_point", lambda: False)
    return str(name) if is_float() and node.meta["val"].shape == origin.meta["val"].shape else None


def _folded_into(origin: Node, present: Collection[str]) -> str:
    """The node itself, or the batch normalization behind it that is no longer there: its weights hold it."""
    while len(origin.users) == 1:
        user = next(iter(origin.users))
        if not _op(user).endswith("batch_norm") or user.name in present:
            break
        origin = user
    return str(origin.name)


def _parameters(node: Node) -> tuple[str, QuantizationParams | None]:
    scale, point, dtype = node.args[1], node.args[2], node.args[5]
    if not isinstance(scale, float) or not isinstance(point, int):
        return _DTYPES.get(str(dtype), "int8"), None
    return _DTYPES.get(str(dtype), "int8"), QuantizationParams(scale=(scale,), zero_point=(point,))


def _with_outputs(program: ExportedProgram, names: Sequence[str]) -> ExportedProgram:
    """The program, exported again, with the values of these of its nodes behind its own outputs."""
    import torch
    from torch import fx
    from torch.utils import _pytree as pytree

    wanted = set(names)

    class Tapping(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
            kept: dict[str, torch.Tensor] = {}

            class Recorder(fx.Interpreter):
                def run_node(self, n: Node) -> Any:
                    is_idle = _op(n) in _IDLE  # XNNPACK refuses an output that is one of its inputs
                    value = self.env[n.all_input_nodes[0]] if is_idle else super().run_node(n)
                    if n.name in wanted:
                        kept[n.name] = value
                    return value

            own = pytree.tree_leaves(Recorder(self.inner).run(*args))
            return (*[value for value in own if isinstance(value, torch.Tensor)], *[kept[name] for name in names])

    args, _ = program.example_inputs or ((), {})
    return torch.export.export(Tapping(program.module(check_guards=False)), args, strict=False)
