"""What a graph from quantization-aware training learned, taken out of it: its float program, ranges and weight scales.

Quantize and dequantize ops are removed; each gives its range to the tensor it stood at, and the weights become the
floats their integers stand for. So a backend quantizes the program as any other, with what was trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.converters.ranges import Range
from edgekit.converters.tflite_rewrites import named_copy
from edgekit.errors import Problem, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram
    from torch.fx import Node

__all__ = ["Trained", "without_quantization"]

_SPACE = "quantized_decomposed."


@dataclass(frozen=True, slots=True)
class Trained:
    """A float program, and what was learned with it, by node name."""

    program: ExportedProgram
    ranges: dict[str, Range] = field(default_factory=dict)
    """Of the output of a node (or of an input of the program)."""
    scales: dict[str, np.ndarray] = field(default_factory=dict)
    """Of the weights of a node, one for each channel, or one."""


def without_quantization(program: ExportedProgram) -> Trained:
    """The program with every quantize and dequantize op taken out, and their ranges."""
    copied = named_copy(program)
    copied._state_dict = dict(program.state_dict)
    copied._constants = dict(program.constants)
    trained = Trained(program=copied)
    for node in list(copied.graph.nodes):
        if _kind(node).startswith("dequantize"):
            _take_out(node, trained)
    copied.graph.eliminate_dead_code()
    copied.graph_module.recompile()
    return trained


def _kind(node: Node) -> str:
    """`quantize_per_tensor`, `dequantize_per_channel`, …; empty for other nodes."""
    name = str(node.target)
    return name.removeprefix(_SPACE).partition(".")[0] if node.op == "call_function" and name.startswith(_SPACE) else ""


def _take_out(node: Node, trained: Trained) -> None:
    """Replace a dequantize op by what was quantized, and note its range or scales."""
    source: Any = node.args[0]
    origin: Any = source.args[0] if _kind(source).startswith("quantize") else source
    scale, zero, low, high = _parameters(node, trained.program)
    if _tensor_of(origin, trained.program) is not None:
        _bake(node, source, origin, trained)
        for user in node.users:
            trained.scales[user.name] = scale
        _replace(node, origin, trained.program)
        return
    if scale.size != 1 or high - low != 255:
        raise UnsupportedError(
            [
                Problem(
                    backend="trained graph",
                    message=f"activations of '{origin.name}' have {high - low + 1} levels or several scales",
                    hint="train with 8-bit activations, one scale a tensor",
                )
            ]
        )
    step, middle = float(scale.reshape(-1)[0]), float(zero.reshape(-1)[0])
    trained.ranges[origin.name] = ((low - middle) * step, (high - middle) * step)
    _replace(node, origin, trained.program)


def _replace(node: Node, origin: Node, program: ExportedProgram) -> None:
    """Use `origin` wherever `node` was used, as an output of the program too."""
    from torch.export.graph_signature import TensorArgument

    node.replace_all_uses_with(origin)
    for spec in program.graph_signature.output_specs:
        if getattr(spec.arg, "name", None) == node.name:
            spec.arg = TensorArgument(name=origin.name)


def _parameters(node: Node, program: ExportedProgram) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Scale, zero point, lowest and highest integer."""
    import numpy as np

    def value(argument: Any) -> np.ndarray:
        tensor = _tensor_of(argument, program) if hasattr(argument, "name") else None
        return np.asarray(argument if tensor is None else tensor.detach().numpy(), np.float64)

    rest: tuple[Any, ...] = node.args[3:]
    low, high = rest[1:3] if "channel" in _kind(node) else rest[:2]
    return value(node.args[1]), value(node.args[2]), int(low), int(high)


def _tensor_of(node: Any, program: ExportedProgram) -> Any:
    """The parameter, buffer or constant a placeholder stands for; None for anything else."""
    if getattr(node, "op", "") != "placeholder":
        return None
    for spec in program.graph_signature.input_specs:
        if getattr(spec.arg, "name", None) == node.name and spec.target is not None:
            return program.state_dict.get(spec.target, program.constants.get(spec.target))
    return None


def _bake(node: Node, source: Node, origin: Node, trained: Trained) -> None:
    """Give the placeholder of a weight the floats its integers stand for."""
    program = trained.program
    tensor = _tensor_of(origin, program)
    arguments = [_tensor_of(a, program) if hasattr(a, "name") else a for a in node.args[1:]]
    whole: Any = tensor
    if source is not origin:
        given = [_tensor_of(a, program) if hasattr(a, "name") else a for a in source.args[1:]]
        whole = source.target(tensor, *given)  # type: ignore[operator]
    values = node.target(whole, *arguments).detach()  # type: ignore[operator]
    for spec in program.graph_signature.input_specs:
        if getattr(spec.arg, "name", None) == origin.name:
            store: Any = program.state_dict if spec.target in program.state_dict else program.constants
            store[spec.target] = values
    fake = origin.meta["val"]
    with fake.fake_mode:
        origin.meta["val"] = fake.fake_mode.from_tensor(values, static_shapes=True)
