"""A graph from quantization-aware training, as an integer `.tflite` with the very weights and ranges it was trained to.

litert-torch can lower quantize and dequantize ops by itself, and leaves a transpose at every convolution weight
(google-ai-edge/litert-torch#179). So they are taken out here: each gives its range to the tensor it stood at, the
weights become the floats their integers stand for, the float program is lowered as any other, and the quantizer is
told the ranges. Its integers are then those of training, whichever quantizer trained them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.artifact import Scheme
from edgekit.converters.ranges import Range
from edgekit.converters.tflite_flatbuffer import constant_of, nodes_of, op_name, read_model, text, tidied
from edgekit.converters.tflite_lowering import DEFAULT_SIGNATURE, lowered
from edgekit.converters.tflite_quantizer import Recipe
from edgekit.converters.tflite_ranges import CHANNEL_AXIS, observed
from edgekit.converters.tflite_rules import applied, tensors_of_nodes
from edgekit.converters.tflite_static import Static, StaticSearch
from edgekit.converters.trained_graph import Trained, without_quantization
from edgekit.errors import ConversionError, MissingDependencyError, Problem, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    from edgekit.converters.base import ConversionRequest

__all__ = ["qat_quantizer", "quantized_as_trained"]


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
