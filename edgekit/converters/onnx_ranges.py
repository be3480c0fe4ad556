"""What the values of a float ONNX graph hold on calibration inputs, and how well a quantized graph answers there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.converters.ranges import FoldedObserver, fold_count, judging_samples

__all__ = ["Observed", "mean_errors", "observe", "open_session", "run_samples"]

Samples = Sequence[Sequence[np.ndarray]]

_MASK = 1e4
"""Attention masks are written as -1e4, -1e9 or the least float; activations of a sound model are smaller."""


@dataclass(slots=True, kw_only=True)
class Observed:
    """What calibration saw."""

    observers: dict[str, FoldedObserver] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)
    """Values no 8 bits can hold, and why: they are not finite, or hold a mask's constant beside ordinary numbers."""
    outputs: dict[int, list[np.ndarray]] = field(default_factory=dict)
    """Position of each sample that ranges are judged by, to the model's outputs for it."""


def open_session(model: Any, threads: int, *, optimized: Path | None = None, level: str = "ORT_ENABLE_ALL") -> Any:
    """An inference session of a ModelProto, its bytes or its file, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source = model.SerializeToString() if hasattr(model, "SerializeToString") else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_samples(session: Any, samples: Samples, names: Sequence[str] | None = None) -> list[list[np.ndarray]]:
    """The outputs (all, or those of these names) for each sample."""
    inputs = [value.name for value in session.get_inputs()]
    return [session.run(names, dict(zip(inputs, sample, strict=True))) for sample in samples]


def observe(
    model: Any, names: Collection[str], samples: Samples, *, threads: int, extremes_only: bool, judges: int
) -> Observed:
    """Run the float model with these values as outputs and take in what they hold, sample by sample.

    `extremes_only` leaves the histograms out, which only rules other than min/max need. The outputs of at most
    `judges` samples are kept to judge ranges by.
    """
    outputs = [value.name for value in model.graph.output]
    wanted = sorted(set(names) - {value.name for value in model.graph.input} - set(outputs))
    session = open_session(_with_outputs(model, wanted), threads)
    inputs = [value.name for value in session.get_inputs()]
    folds = 1 if extremes_only else fold_count(len(samples))
    found = Observed(observers={name: FoldedObserver(folds) for name in names})
    judging = {i for fold in judging_samples(len(samples), judges) for i in fold} if judges else set()
    masks = {name: _MaskFinder() for name in names}
    for index, sample in enumerate(samples):
        feeds = dict(zip(inputs, sample, strict=True))
        values = dict(zip([*outputs, *wanted], session.run([*outputs, *wanted], feeds), strict=True))
        if index in judging:
            found.outputs[index] = [values[name] for name in outputs]
        for name in names:
            array = np.asarray(values.get(name, feeds.get(name)))
            _take_in(found, masks[name], name, array, None if extremes_only else index)
    found.unfit.update({name: mask.reason for name, mask in masks.items() if mask.reason and name not in found.unfit})
    return found


def _take_in(found: Observed, mask: _MaskFinder, name: str, array: np.ndarray, index: int | None) -> None:
    """See one value of the sample at `index`; only its extremes where that is None."""
    if name in found.unfit or array.size == 0:
        return
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        found.unfit[name] = "it holds infinite values or NaN on calibration inputs"
        return
    if max(-low, high) >= _MASK:
        mask.update(array)
    if index is None:
        found.observers[name].widen(np.array([low, high]))
    else:
        found.observers[name].update(array, index)


class _MaskFinder:
    """Tells a mask's constant among ordinary numbers: huge values, far smaller ones, and none in between."""

    def __init__(self) -> None:
        self._counts = np.zeros(400, np.int64)

    def update(self, array: np.ndarray) -> None:
        nonzero = np.abs(array[array != 0]).astype(np.float64)
        exponents = np.clip(np.floor(np.log2(nonzero)).astype(np.int64) + 200, 0, 399)
        self._counts += np.bincount(exponents, minlength=400)

    @property
    def reason(self) -> str:
        """Why 8 bits over this range would hold nothing else; empty where they would."""
        if not self._counts.any():
            return ""
        top = int(np.flatnonzero(self._counts)[-1])
        # from 1/4 of the largest down to 1/1024 of it
        between, below = self._counts[max(top - 10, 0) : top - 1].sum(), self._counts[: max(top - 10, 0)].sum()
        if below == 0 or between > 0:
            return ""
        return f"it holds a mask's constant (about {2.0 ** (top - 200):.0e}) beside ordinary values"


def _with_outputs(model: Any, names: Sequence[str]) -> bytes:
    """The bytes of the model with these values as further outputs."""
    import onnx

    count = len(model.graph.output)
    given = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    try:
        data: bytes = model.SerializeToString()
    finally:
        del model.graph.output[count:]
    return data


def mean_errors(model: Any, weights: dict[str, np.ndarray], samples: Samples, *, threads: int) -> dict[str, np.ndarray]:
    """For each product node, the mean error of each output channel that these (quantized) weights cause.

    E[(W' - W) x] over calibration inputs x of the float model (Nagel et al. 2019, "Data-Free Quantization Through
    Weight Equalization and Bias Correction", section 4.2, with E[x] measured).
    """
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    kept = {tensor.name: tensor for tensor in probe.graph.initializer}
    results = {}
    for node in list(probe.graph.node):
        if node.name in weights:
            original = onnx.numpy_helper.to_array(kept[node.input[1]])
            results[node.name] = _add_probe(probe.graph, node, weights[node.name] - original, onnx)
    sums = dict.fromkeys(results, None)
    session = open_session(_with_outputs(probe, [name for name, _ in results.values()]), threads)
    names = [name for name, _ in results.values()]
    for values in run_samples(session, samples, names):
        for node_name, value in zip(results, values, strict=True):
            axis = results[node_name][1] % value.ndim
            mean = value.astype(np.float64).mean(axis=tuple(i for i in range(value.ndim) if i != axis))
            sums[node_name] = mean if sums[node_name] is None else sums[node_name] + mean
    return {name: total / len(samples) for name, total in sums.items() if total is not None}


def _add_probe(graph: Any, node: Any, difference: np.ndarray, onnx: Any) -> tuple[str, int]:
    """(name of the value, its channel axis) of the same product with other weights and no bias."""
    weight = f"{node.name}_difference"
    graph.initializer.append(onnx.numpy_helper.from_array(difference.astype(np.float32), weight))
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.name, twin.output[0] = f"{node.name}_probe", f"{node.output[0]}_probe"
    twin.input[1] = weight
    del twin.input[2:]
    graph.node.append(twin)
    return twin.output[0], 1 if node.op_type == "Conv" else -1
