"""A graph from quantization-aware training, as an integer `.tflite` with the very weights and ranges it was trained to.

litert-torch can lower quantize and dequantize ops by itself, and leaves a transpose at every convolution weight
(google-ai-edge/litert-torch#179). So they are taken out here: each gives its range to the tensor it stood at, the
weights become the floats their integers stand for, the float program is lowered as any other, and the quantizer is
told the ranges. Its integers are then those of training, whichever quantizer trained them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Scheme
from edgekit.converters.ranges import Range
from edgekit.converters.tflite_flatbuffer import constant_of, nodes_of, op_name, read_model, text, tidied
from edgekit.converters.tflite_lowering import DEFAULT_SIGNATURE, lowered
from edgekit.converters.tflite_quantizer import Recipe
from edgekit.converters.tflite_ranges import CHANNEL_AXIS, observed
from edgekit.converters.tflite_rewrites import named_copy
from edgekit.converters.tflite_rules import applied, tensors_of_nodes
from edgekit.converters.tflite_static import Static, StaticSearch
from edgekit.errors import ConversionError, MissingDependencyError, Problem, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram
    from torch.fx import Node

    from edgekit.converters.base import ConversionRequest

__all__ = ["Trained", "qat_quantizer", "quantized_as_trained", "without_quantization"]

_SPACE = "quantized_decomposed."


@dataclass(frozen=True, slots=True)
class Trained:
    """A float program, and what was learned with it, by node name."""

    program: ExportedProgram
    ranges: dict[str, Range] = field(default_factory=dict)
    """Of the output of a node (or of an input of the program)."""
    scales: dict[str, np.ndarray] = field(default_factory=dict)
    """Of the weights of a node, one for each channel, or one."""


def qat_quantizer() -> Any:
    """The PT2E quantizer to train with for TFLite: int8 activations, one int8 weight scale a channel.

    litert-torch 0.10's own fails in quantization-aware training under torch 2.13 (it exports a plain function);
    the graphs of this one become the same integers, as those of any other.
    """
    try:
        from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
    except ImportError as e:
        raise MissingDependencyError("training for TFLite", extra="tflite", package="torchao") from e
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_qat=True))


def quantized_as_trained(request: ConversionRequest) -> Static:
    """The static int8 file. Raises UnsupportedError for another scheme: the ranges are of 8 bits."""
    if request.scheme is not Scheme.STATIC_W8A8 or request.signatures:
        message = f"a graph trained with 8-bit ranges becomes a static_w8a8 file with one entry, not {request.scheme}"
        raise UnsupportedError([Problem(backend="tflite", message=message, hint="convert the float model for others")])
    trained = without_quantization(request.program)
    if not trained.ranges or not trained.scales:
        raise UnsupportedError(
            [
                Problem(
                    backend="tflite",
                    message="the graph holds no quantized_decomposed quantize and dequantize ops with 8-bit ranges",
                    hint="give what torchao's convert_pt2e returned",
                )
            ]
        )
    samples = request.calibration or request.verification
    if not samples:
        raise ConversionError(
            "no samples: the tensors training gave no range need one", backend="tflite", stage="observe"
        )
    content = tidied(lowered({DEFAULT_SIGNATURE: trained.program}))
    options = request.quantization
    rules = applied(content, trained.program, options.rules)
    recipe = Recipe(scheme=request.scheme, io_dtype=options.io_dtype, exceptions=rules.exceptions)
    search = StaticSearch(
        content,
        recipe,
        observed(content, samples, request.threads),
        samples,
        trained=_tensor_ranges(content, trained),
        weights=_weight_bounds(content, trained),
        threads=request.threads,
    )
    return search.best(options, rules.ranges)


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
                    backend="tflite",
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


def _tensor_ranges(content: bytes, trained: Trained) -> dict[str, Range]:
    """The trained range of each tensor of the file that has one: of several nodes fused into it, the last one's."""
    program = trained.program
    order = {node.name: position for position, node in enumerate(program.graph.nodes)}
    graph = read_model(content).subgraphs[0]
    found: dict[str, Range] = {}
    held: dict[str, list[str]] = {}
    for node, names in tensors_of_nodes(content, program).items():
        held.setdefault(names[-1], []).append(node)
    for tensor, nodes in held.items():
        fused = [n for n in (*nodes, *nodes_of(tensor)) if n in order]
        latest = max(fused, key=lambda n: order[n])
        if latest in trained.ranges:
            found[tensor] = trained.ranges[latest]
    inputs = [spec.arg.name for spec in program.graph_signature.input_specs if spec.target is None]
    for position, name in enumerate(inputs):
        if name in trained.ranges:
            found[text(graph.tensors[graph.inputs[position]].name)] = trained.ranges[name]
    return found


def _weight_bounds(content: bytes, trained: Trained) -> dict[str, np.ndarray]:
    """Largest weight each trained scale can hold, by weight tensor, in the quantizer's shape."""
    import numpy as np

    model = read_model(content)
    graph = model.subgraphs[0]
    tensors = tensors_of_nodes(content, trained.program)
    node_of = {name: node for node, names in tensors.items() if node in trained.scales for name in names}
    bounds = {}
    for operator in graph.operators:
        node = node_of.get(text(graph.tensors[operator.outputs[0]].name))
        axis = CHANNEL_AXIS.get(op_name(model, operator))
        if node is None or axis is None:
            continue
        tensor = graph.tensors[operator.inputs[1]]
        weight = constant_of(model, tensor)
        bound = trained.scales[node].reshape(-1) * 127
        if weight is None or bound.size not in (1, weight.shape[axis]):
            continue
        shape = [weight.shape[axis] if i == axis else 1 for i in range(weight.ndim)]
        whole = np.broadcast_to(bound, weight.shape[axis : axis + 1]).reshape(shape).astype(np.float32)
        if (np.abs(weight) <= whole * 1.02).all():  # -128 is one step beyond
            bounds[text(tensor.name)] = whole
    return bounds
