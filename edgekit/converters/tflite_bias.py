"""Empirical bias correction of an integer `.tflite` (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", eq. 16 and section 4.2).

Rounding the weights of a layer shifts the mean of each channel of its output. The shift is measured on calibration
inputs and taken off the layer's bias in the float file, from which the integer one is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.converters.host_runtimes import tflite_run
from edgekit.converters.tflite_flatbuffer import constant_of, op_name, read_model, schema, text, write_model
from edgekit.converters.tflite_ranges import CHANNEL_AXIS

__all__ = ["with_shifted_biases"]

Samples = Sequence[Sequence[np.ndarray]]


def with_shifted_biases(content: bytes, made: bytes, samples: Samples, threads: int) -> tuple[bytes, int]:
    """The float file with the mean error of each layer's output in `made` taken off its bias, and how many layers."""
    model = read_model(content)
    graph = model.subgraphs[0]
    layers = {}
    for operator in graph.operators:
        place = 3 if op_name(model, operator) == "TRANSPOSE_CONV" else 2
        if op_name(model, operator) in CHANNEL_AXIS and len(operator.inputs) > place and operator.inputs[place] >= 0:
            layers[text(graph.tensors[operator.outputs[0]].name)] = int(operator.inputs[place])
    wanted = _channel_means(content, set(layers), samples, threads)
    found = _channel_means(made, set(layers), samples, threads)
    shifted = 0
    for name, position in layers.items():
        tensor = graph.tensors[position]
        bias = constant_of(model, tensor)
        if name not in wanted or name not in found or bias is None or bias.shape != wanted[name].shape:
            continue
        buffer = schema().BufferT()
        corrected = (bias + wanted[name] - found[name]).astype(np.float32)
        buffer.data = corrected.reshape(-1).view(np.uint8)
        model.buffers.append(buffer)  # its own: another layer may share the old one
        tensor.buffer = len(model.buffers) - 1
        shifted += 1
    return write_model(model), shifted


def _channel_means(content: bytes, names: set[str], samples: Samples, threads: int) -> dict[str, np.ndarray]:
    """Mean over samples and places of each channel (the last axis) of the named tensors, as real numbers."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter: Any = Interpreter(
        model_content=content,
        num_threads=threads,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    run = tflite_run(interpreter)
    details = [d for d in interpreter.get_tensor_details() if d["name"] in names]
    sums: dict[str, Any] = {}
    for sample in samples:
        run(sample)
        for detail in details:
            values = interpreter.get_tensor(detail["index"]).astype(np.float64)
            scale, zero = detail["quantization"]
            real = (values - zero) * scale if scale else values
            mean = real.reshape(-1, real.shape[-1]).mean(axis=0)
            sums[detail["name"]] = sums.get(detail["name"], 0.0) + mean
    return {name: total / len(samples) for name, total in sums.items()}
