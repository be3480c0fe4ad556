"""The integer file made from a float one by ai-edge-quantizer, by a recipe of edgekit's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.artifact import RuleAction, Scheme
from edgekit.converters.tflite_flatbuffer import op_name, read_model, schema, text
from edgekit.errors import ConversionError, MissingDependencyError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Recipe", "is_quantized", "quantized"]

Qsvs = Mapping[str, Mapping[str, "np.ndarray"]]
"""Tensor name to its `min` and `max`, as ai-edge-quantizer takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to quantize and how."""

    scheme: Scheme
    io_dtype: str = "int8"
    weights: str = "min_max_uniform_quantize"
    """The quantizer's algorithm for weights of weight-only schemes; one of its `AlgorithmName`s."""
    exceptions: Mapping[str, RuleAction] = field(default_factory=dict)
    """Name of an op's first output to FLOAT or INT16."""


def quantized(content: bytes, recipe: Recipe, qsvs: Qsvs | None = None) -> bytes:
    """The quantized file. Raises ConversionError with what the quantizer said."""
    try:
        from ai_edge_quantizer import quantizer
    except ImportError as e:
        raise MissingDependencyError("quantizing TFLite files", extra="tflite", package="ai-edge-quantizer") from e
    try:
        worker = quantizer.Quantizer(content)
        worker.load_quantization_recipe(_entries(content, recipe))
        # the quantizer writes into what it is given
        given = {name: dict(qsv) for name, qsv in qsvs.items()} if qsvs is not None else None
        result = worker.quantize(given, enable_progress_bar=False, enable_progress_report=False)
    except Exception as e:  # the quantizer raises ValueError, RuntimeError, KeyError, … by case
        raise ConversionError(
            f"{type(e).__name__}: {str(e)[:1000]}", backend="tflite", stage=f"quantize {recipe.scheme}"
        ) from e
    return bytes(result.quantized_model)


def _entries(content: bytes, recipe: Recipe) -> Any:
    """The recipe in the quantizer's words; a later entry overrules an earlier one."""
    from ai_edge_quantizer import qtyping, recipe_manager

    names = qtyping.TFLOperationName
    manager = recipe_manager.RecipeManager()
    everything = names.ALL_SUPPORTED
    scheme = recipe.scheme
    if scheme is Scheme.DYNAMIC_W8:
        manager.add_dynamic_config(".*", everything, 8)
    elif scheme is Scheme.WEIGHT_W8:
        manager.add_weight_only_config(".*", everything, 8)
    elif scheme is Scheme.WEIGHT_W4:
        _add_four_bits(manager, recipe.weights)
    else:
        bits = 16 if scheme is Scheme.STATIC_W8A16 else 8
        manager.add_static_config(".*", everything, activation_num_bits=bits, weight_num_bits=8)
        # a table that is only looked up in: no integer form with activations, but its bytes count
        manager.add_dynamic_config(".*", names.EMBEDDING_LOOKUP, 8)
        if recipe.io_dtype == "float32":
            for boundary in (names.INPUT, names.OUTPUT):
                manager.add_quantization_config(".*", boundary, algorithm_key="no_quantize")
    for output, action in recipe.exceptions.items():
        exactly = f"^{re.escape(output)};"
        if action is RuleAction.INT16:
            manager.add_static_config(exactly, everything, activation_num_bits=16, weight_num_bits=8)
        else:
            manager.add_quantization_config(exactly, everything, algorithm_key="no_quantize")
    for output in _inner_outputs(content):
        manager.add_quantization_config(f"^{re.escape(output)};", everything, algorithm_key="no_quantize")
    return manager.get_quantization_recipe()


def _add_four_bits(manager: Any, algorithm: str) -> None:
    """4-bit weights where the runtime widens them, 8-bit ones in depthwise and transposed convolutions."""
    from ai_edge_quantizer import qtyping

    names = qtyping.TFLOperationName
    manager.add_weight_only_config(".*", names.ALL_SUPPORTED, 8)
    for op in (names.FULLY_CONNECTED, names.CONV_2D, names.EMBEDDING_LOOKUP):
        manager.add_weight_only_config(".*", op, 4, algorithm_key=algorithm)
    manager.add_weight_only_config(".*", names.BATCH_MATMUL, 4)


def _inner_outputs(content: bytes) -> list[str]:
    """First tensors of the ops inside the bodies of other ops (a reduction's, a scatter's), and of the bodies' own
    inputs and outputs: these stay as they are."""
    model = read_model(content)
    entries = {int(s.subgraphIndex) for s in model.signatureDefs or ()} or {0}
    inner = [graph for number, graph in enumerate(model.subgraphs) if number not in entries]
    firsts = [
        (graph, tensors[0])
        for graph in inner
        for tensors in (graph.inputs, graph.outputs, *(operator.outputs for operator in graph.operators))
        if len(tensors)
    ]
    return list(dict.fromkeys(text(graph.tensors[index].name) for graph, index in firsts))


def is_quantized(content: bytes, scheme: Scheme) -> bool:
    """Whether the file has what the scheme promises: an op on integers, or integer weights."""
    model = read_model(content)
    kinds = schema().TensorType
    small = (kinds.INT8, kinds.INT4, kinds.INT2)
    integers = (kinds.INT8, kinds.INT16) if scheme.is_static else small
    for graph in model.subgraphs:
        for operator in graph.operators:
            if op_name(model, operator) in ("QUANTIZE", "DEQUANTIZE") and scheme.is_static:
                continue
            used = [graph.tensors[i] for i in (*operator.inputs, *operator.outputs) if i >= 0]
            if any(t.type in integers and _has_scale(t) for t in used):
                return True
    return False


def _has_scale(tensor: Any) -> bool:
    """Whether it is quantized; block-wise parameters are in `details`."""
    q = tensor.quantization
    return q is not None and ((q.scale is not None and len(q.scale) > 0) or q.details is not None)
