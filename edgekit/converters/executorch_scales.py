"""What XNNPACK asks of the scales in a quantized graph, and the biases that depend on them.

All functions work on a module that `prepare_pt2e` prepared and calibration has run through: around each quantized op
stand the observers of its activations and of its weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch.fx import GraphModule, Interpreter, Node

from edgekit.converters.executorch_quantizer import ActivationObserver, PerChannelWeightObserver

__all__ = ["corrected_biases", "fit_weight_scales", "unfit_scales"]

aten = torch.ops.aten

_SUMS = (aten.add.Tensor, aten.sub.Tensor, aten.add_.Tensor)
_PRODUCTS = (aten.mul.Tensor, aten.mul_.Tensor)
_SUM_RATIOS = (2.0**-10, 2.0**8)
"""Of input scale to output scale: XNNPACK's xnn_create_add_nd_qs8."""
_PRODUCT_RATIOS = (2.0**-16, 2.0**8)
"""Of the product of input scales to the output scale: xnn_create_multiply_nd_qs8."""
_MOST_GEMM_RATIO = 256.0
"""Of input scale times weight scale to output scale: xnn_create_convolution2d_nhwc_qs8_qc8w."""
_LEAST_GEMM_RATIO = 2.0**-31
"""Likewise; its fixed-point requantization ends at 2^-32."""
_MOST_BIAS = 2.0**30
"""Biases are int32 in steps of input scale times weight scale; half of the range is left to the sum."""


class _Layer(NamedTuple):
    """A convolution or linear op with the observers around it."""

    node: Node
    source: ActivationObserver
    weight: PerChannelWeightObserver
    bias: torch.Tensor | None


def _observer(module: GraphModule, node: Any) -> Any:
    """The observer a node stands for; None for any other node."""
    if isinstance(node, Node) and node.op == "call_module":
        found = module.get_submodule(str(node.target))
        return found if isinstance(found, ActivationObserver | PerChannelWeightObserver) else None
    return None


def _constant(module: GraphModule, node: Any) -> torch.Tensor | None:
    if not (isinstance(node, Node) and node.op == "get_attr"):
        return None
    value = attrgetter(str(node.target))(module)
    return value.detach() if isinstance(value, torch.Tensor) else None


def _layers(module: GraphModule) -> Iterator[_Layer]:
    for node in module.graph.nodes:
        if node.op != "call_function" or len(node.args) < 2:
            continue
        source, weight = _observer(module, node.args[0]), _observer(module, node.args[1])
        if isinstance(source, ActivationObserver) and isinstance(weight, PerChannelWeightObserver):
            bias = _constant(module, node.args[2]) if len(node.args) > 2 else None
            yield _Layer(node, source, weight, bias)


def _output_observer(module: GraphModule, node: Node) -> ActivationObserver | None:
    """The observer of a node's output, behind a fused activation too."""
    for _ in range(3):
        found = [o for user in node.users if isinstance(o := _observer(module, user), ActivationObserver)]
        if found:
            return found[0]
        if len(node.users) != 1:
            return None
        node = next(iter(node.users))
    return None


def unfit_scales(module: GraphModule) -> dict[str, str]:
    """Node to reason, for each op XNNPACK refuses to create because its scales are too far apart."""
    found: dict[str, str] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in (*_SUMS, *_PRODUCTS):
            why = _why_unfit(module, node)
            if why is not None:
                found[node.name] = why
    for layer in _layers(module):
        output = _output_observer(module, layer.node)
        if output is None:
            continue
        most = float(layer.weight.calculate_qparams()[0].max()) * layer.source.scale / output.scale
        if most >= _MOST_GEMM_RATIO:
            found[layer.node.name] = f"its output range is {most:.0f} times too small for XNNPACK's int8 kernel"
    return found


def _why_unfit(module: GraphModule, node: Node) -> str | None:
    inputs = [_observer(module, value) for value in node.args]
    output = _output_observer(module, node)
    if output is None or not inputs or any(not isinstance(one, ActivationObserver) for one in inputs):
        return None
    scales = [one.scale for one in inputs]
    if node.target in _SUMS:
        ratios, (low, high) = [scale / output.scale for scale in scales], _SUM_RATIOS
    else:
        product = 1.0
        for scale in scales:
            product *= scale
        ratios, (low, high) = [product / output.scale], _PRODUCT_RATIOS
    unfit = [ratio for ratio in ratios if not low <= ratio < high]
    return (
        f"its inputs and its output have scales {unfit[0]:.2g} apart, more than XNNPACK's kernel takes"
        if unfit
        else None
    )


def fit_weight_scales(module: GraphModule) -> None:
    """Raise the weight scales of channels that XNNPACK could not compute with: whose bias would not fit into int32, or
    whose products would be too small a part of an output step."""
    for layer in _layers(module):
        output = _output_observer(module, layer.node)
        step = output.scale if output is not None else 0.0
        least = torch.tensor(step * _LEAST_GEMM_RATIO / layer.source.scale)
        if layer.bias is not None:
            least = torch.maximum(least, layer.bias.abs() / (layer.source.scale * _MOST_BIAS))
        layer.weight.raise_scales(least)


def corrected_biases(module: GraphModule, samples: Sequence[Sequence[torch.Tensor]]) -> None:
    """Take from each layer's bias the mean error that rounding its weight makes per channel on these samples.

    Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", eq. 16, with the
    expectation over real inputs in place of the batch normalization's.
    """
    layers = {layer.node: layer for layer in _layers(module)}
    sums: dict[Node, torch.Tensor] = {}
    counts: dict[Node, int] = {}

    class Watcher(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            layer = layers.get(n)
            if layer is not None:
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                rounded = n.target(args[0], layer.weight.rounded(args[1]), *args[2:], **kwargs)  # type: ignore[operator]
                error = rounded - value
                axis = error.dim() - 1 if n.target is aten.linear.default else 1
                others = [a for a in range(error.dim()) if a != axis]
                sums[n] = sums.get(n, 0) + error.sum(others)
                counts[n] = counts.get(n, 0) + error.numel() // error.shape[axis]
            return value

    with torch.no_grad():
        for sample in samples:
            Watcher(module).run(*sample)
    for index, (node, total) in enumerate(sums.items()):
        _shift_bias(module, layers[node], total / counts[node], f"_corrected_bias_{index}")
    module.recompile()


def _shift_bias(module: GraphModule, layer: _Layer, error: torch.Tensor, name: str) -> None:
    shifted = (layer.bias if layer.bias is not None else torch.zeros_like(error)) - error
    module.register_buffer(name, shifted)
    with module.graph.inserting_before(layer.node):
        getter = module.graph.create_node("get_attr", name, (), {})
    old = layer.node.args[2] if len(layer.node.args) > 2 else None
    getter.meta = dict(old.meta) if isinstance(old, Node) else {}
    layer.node.args = (*layer.node.args[:2], getter, *layer.node.args[3:])
