"""XNNPACK's own PT2E quantizer, told which ops to leave in float; and the observers that find and try ranges.

Imported only where torch, executorch and torchao are: inside converting functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.backends.xnnpack.utils.utils import get_groups_from_conv, is_depthwise_conv
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgekit.converters.ranges import FoldedObserver, Range

__all__ = [
    "ActivationObserver",
    "OwnQuantizer",
    "PerChannelWeightObserver",
    "dynamic_quantizer",
    "qat_quantizer",
    "static_quantizer",
]

aten = torch.ops.aten

LEAST_SCALE = 2.0**-24
"""executorch's own least scale, 2^-12, leaves a channel whose largest weight is 0.01 with 41 of 127 steps; batch
normalization makes such channels. What XNNPACK asks of scales is seen to in `executorch_scales`."""

TRAINED_LEAST_SCALE = 6.1e-5
"""Of torch.fused_moving_avg_obs_fake_quant."""

_MASK = 1000.0
"""Attention masks are -10000, -1e9 or the least float; activations of a sound network stay below this."""

_WITH_WEIGHTS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv1d.padding,
    aten.convolution.default,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.linear.default,
)
_CONVOLUTIONS_2D = (aten.conv2d.default, aten.conv2d.padding)
_MOVING = (
    aten.unsqueeze.default,
    aten.select.int,
    aten.unflatten.int,
    aten.expand.default,
    aten.clone.default,
    aten.contiguous.default,
)
"""Ops that only move values, which executorch's quantizer does not know to share the range of their input."""


class ActivationObserver(MinMaxObserver):  # type: ignore[misc]
    """Sees the range of one tensor while calibrating; afterwards quantizes it as the file will, to try ranges."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "eps": LEAST_SCALE})
        self.seen: FoldedObserver | None = None
        self.position = 0
        """Of the sample at hand, which says what fold it belongs to."""
        self.is_finite = True
        self.masks = False
        """Whether a few values were so far from all others that 8 bits over that range leave nothing of the rest."""
        self.is_trying = False
        self._trial: tuple[float, int] = (1.0, 0)

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        if self.is_trying:
            scale, zero_point = self._trial
            return torch.fake_quantize_per_tensor_affine(x_orig, scale, zero_point, self.quant_min, self.quant_max)
        super().forward(x_orig)
        if x_orig.numel():
            self._take(x_orig.detach())
        return x_orig

    def _take(self, values: torch.Tensor) -> None:
        reach = max(abs(float(self.min_val)), abs(float(self.max_val)))
        self.is_finite = self.is_finite and math.isfinite(reach)
        if reach >= _MASK and self.is_finite and not self.masks:
            sizes = values.abs()
            inner, most = sizes[sizes < sizes.max() / 2], float(sizes.max())
            self.masks = most >= _MASK and inner.numel() > 0 and float(inner.max()) < most / 50
        if self.seen is not None and self.is_finite:
            self.seen.update(values.numpy(), self.position)

    def set_range(self, value_range: Range) -> None:
        """Quantize with this range from now on.

        One of zeros alone (a recurrent layer's first state) becomes one like others: with the least scale there is the
        bias behind it would overflow, and the weight it shares with later steps would be rounded away to hold it.
        """
        low, high = value_range if value_range[0] < value_range[1] else (-1.0, 1.0)
        self.min_val.fill_(low)
        self.max_val.fill_(high)
        scale, zero_point = self.calculate_qparams()
        self._trial = (float(scale), int(zero_point))

    @property
    def scale(self) -> float:
        return float(self.calculate_qparams()[0])


class PerChannelWeightObserver(PerChannelMinMaxObserver):  # type: ignore[misc]
    """Sees a weight once; afterwards gives it quantized, computed once.

    torchao tells an observer its channel axis only where `PerChannel` is in the name of its class.
    """

    max_val: torch.Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "eps": LEAST_SCALE})
        self.is_trying = False
        self._rounded: torch.Tensor | None = None
        self._is_seen = False

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        if not self.is_trying:
            if not self._is_seen:
                super().forward(x_orig)
                self._is_seen = True
            return x_orig
        if self._rounded is None:
            self._rounded = self.rounded(x_orig)
        return self._rounded

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as its int8 values give it."""
        scale, zero_point = self.calculate_qparams()
        return torch.fake_quantize_per_channel_affine(
            weight.detach(), scale.float(), zero_point.to(torch.int32), self.ch_axis, self.quant_min, self.quant_max
        )

    def raise_scales(self, least: torch.Tensor) -> None:
        """Make no channel's scale smaller than `least`."""
        self.max_val.copy_(torch.maximum(self.max_val, least * (self.quant_max - self.quant_min) / 2))
        self._rounded = None


class OwnQuantizer(XNNPACKQuantizer):  # type: ignore[misc]
    """XNNPACK's quantizer, but for ops that `float_reason` gives a reason to leave alone.

    It differs from its parent in three more ways, each of which ended in a wrong or no file: whole numbers added to
    integer tensors stay integers; ops on integers are not quantized; a weight that is computed is no weight.
    """

    def __init__(self, float_reason: Callable[[Node], str | None] | None = None, *, is_static: bool = True) -> None:
        super().__init__()
        self.left: dict[str, str] = {}
        """Node to reason, of every op that could be quantized and was left in float."""
        self._float_reason = float_reason or (lambda _: None)
        self._is_static = is_static

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Scalars that float tensors are added to or multiplied by become tensors, which can be quantized."""
        if not self._is_static:
            return model
        for node in list(model.graph.nodes):
            if node.op == "call_function" and node.target in (aten.add.Tensor, aten.mul.Tensor) and _is_float(node):
                _scalars_to_buffers(model, node)
        model.recompile()
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark what is to be quantized; what is to stay in float is marked first, so that nothing else marks it."""
        for node in model.graph.nodes:
            if node.op != "call_function":
                continue
            reason = self._float_reason(node) or _unfit(node)
            if reason is not None:
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)
                self.left[node.name] = reason
        annotated: GraphModule = super().annotate(model)
        if self._is_static:
            _share_ranges_of_moves(annotated)
        else:
            self._annotate_convolutions_before_relu(annotated)
        return annotated

    def _annotate_convolutions_before_relu(self, model: GraphModule) -> None:
        """The parent leaves a convolution with a ReLU behind it to a pattern it has for static ranges only."""
        for node in model.graph.nodes:
            is_plain = node.op == "call_function" and node.target in _CONVOLUTIONS_2D
            if not is_plain or Q_ANNOTATION_KEY in node.meta:
                continue
            weight = node.args[1].meta["val"]
            if weight.dim() != 4 or is_depthwise_conv(weight.shape, get_groups_from_conv(node), False):
                continue
            specs = {
                node.args[0]: self.global_config.input_activation,
                node.args[1]: self.global_config.weight,
            }
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=specs, _annotated=True)


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype is torch.float32


def _scalars_to_buffers(model: GraphModule, node: Node) -> None:
    values = list(node.args)
    for index, value in enumerate(values):
        if not isinstance(value, int | float):
            continue
        name = f"_scalar_of_{node.name}_{index}"
        constant = torch.tensor(float(value))
        model.register_buffer(name, constant)
        with model.graph.inserting_before(node):
            getter = model.graph.create_node("get_attr", name, (), {})
        getter.meta["val"] = node.meta["val"].fake_mode.from_tensor(constant, static_shapes=True)
        values[index] = getter
    node.args = tuple(values)


def _unfit(node: Node) -> str | None:
    """Why an op of a kind that is quantized is not fit for it; None where it is fit."""
    if node.target in _WITH_WEIGHTS:
        weight = node.args[1]
        if not (isinstance(weight, Node) and weight.op == "get_attr"):
            return "its weight is computed, and XNNPACK quantizes constant weights only"
    tensors = [value for value in node.all_input_nodes if isinstance(value.meta.get("val"), torch.Tensor)]
    if node.target in (aten.add.Tensor, aten.mul.Tensor, aten.cat.default) and not all(
        map(_is_float, [node, *tensors])
    ):
        return "it computes with integers" if not _is_float(node) else "an input of it is not float32"
    return None


def _share_ranges_of_moves(model: GraphModule) -> None:
    for node in model.graph.nodes:
        if node.op != "call_function" or node.target not in _MOVING or Q_ANNOTATION_KEY in node.meta:
            continue
        source = node.args[0]
        given = source.meta.get(Q_ANNOTATION_KEY) if isinstance(source, Node) else None
        if given is None or given.output_qspec is None:
            continue
        shared = SharedQuantizationSpec(source)
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
            input_qspec_map={source: shared}, output_qspec=shared, _annotated=True
        )


def static_quantizer(float_reason: Callable[[Node], str | None] | None = None) -> OwnQuantizer:
    """For int8 activations with ranges from calibration: the observers above at every point."""
    config = get_symmetric_quantization_config(is_per_channel=True)
    config = replace(
        config,
        input_activation=replace(config.input_activation, observer_or_fake_quant_ctr=ActivationObserver),
        output_activation=replace(config.output_activation, observer_or_fake_quant_ctr=ActivationObserver),
        weight=replace(config.weight, observer_or_fake_quant_ctr=PerChannelWeightObserver),
    )
    return OwnQuantizer(float_reason).set_global(config)  # type: ignore[no-any-return]


def dynamic_quantizer(float_reason: Callable[[Node], str | None] | None = None) -> OwnQuantizer:
    """For int8 weights and activations whose ranges are found at run time."""
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    config = replace(config, weight=replace(config.weight, observer_or_fake_quant_ctr=PerChannelWeightObserver))
    return OwnQuantizer(float_reason, is_static=False).set_global(config)  # type: ignore[no-any-return]


class _TrainedActivation(FusedMovingAvgObsFakeQuantize):  # type: ignore[misc]
    def __init__(self, **options: Any) -> None:
        super().__init__(observer=MovingAverageMinMaxObserver, **{**options, "eps": TRAINED_LEAST_SCALE})


class _TrainedPerChannelWeight(FakeQuantize):  # type: ignore[misc]
    """Not fused: the fused kernel takes -128 for the lowest weight, and the file has -127, a scale 1/255 larger."""

    def __init__(self, **options: Any) -> None:
        # averaging lags behind a weight that training moves: its range is what it is now
        now = {"eps": TRAINED_LEAST_SCALE, "averaging_constant": 1.0}
        super().__init__(observer=MovingAveragePerChannelMinMaxObserver, **{**options, **now})


def qat_quantizer() -> OwnQuantizer:
    """For training with the rounding of this backend: one weight scale per channel, int8 activations.

    The least scale is that of torch's fused kernel, so that training and conversion round alike.
    """
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    config = replace(
        config,
        input_activation=replace(config.input_activation, observer_or_fake_quant_ctr=_TrainedActivation),
        output_activation=replace(config.output_activation, observer_or_fake_quant_ctr=_TrainedActivation),
        weight=replace(config.weight, observer_or_fake_quant_ctr=_TrainedPerChannelWeight),
    )
    return OwnQuantizer().set_global(config)  # type: ignore[no-any-return]
