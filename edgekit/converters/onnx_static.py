"""Static quantization of a float ONNX model: what to quantize, with which ranges, measured in onnxruntime itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.artifact import CalibrationFacts, RangeRule, RuleAction, Scheme
from edgekit.converters.fidelity import worst_sqnr_db
from edgekit.converters.onnx_graph import OnnxGraph
from edgekit.converters.onnx_plan import PRODUCTS, QuantizationPlan, plan_quantization, plan_wide
from edgekit.converters.onnx_qdq import QdqWriter, output_axis, quantized_weight, weight_scale
from edgekit.converters.onnx_ranges import Observed, mean_errors, observe, open_session, run_samples
from edgekit.converters.onnx_rewrites import dense_as_gemm, multiply_depthwise
from edgekit.converters.onnx_rules import file_rules, unfollowed
from edgekit.converters.onnx_weights import dequantize_weights
from edgekit.converters.ranges import Range, RangeChoice, choose_ranges, judging_samples
from edgekit.errors import ConversionError, Problem, UnsupportedError

if TYPE_CHECKING:
    from edgekit.converters.base import ConversionRequest
    from edgekit.converters.onnx_program import FloatModel
    from edgekit.converters.onnx_trained import FileTraining

__all__ = ["StaticModel", "quantized_statically"]

SCORED = 64
"""Calibration samples every set of ranges is judged by."""


@dataclass(slots=True, kw_only=True)
class StaticModel:
    """A quantized model and how it was made."""

    model: Any
    facts: CalibrationFacts
    reasons: dict[str, str] = field(default_factory=dict)
    """By node: why it was left in float, where there is more to say than that there is no kernel."""
    notes: tuple[str, ...] = ()


def quantized_statically(
    source: FloatModel, request: ConversionRequest, learned: FileTraining | None = None
) -> StaticModel:
    """The model in `static_w8a8` or `static_w8a16`, with what was learned in training where there is anything.

    Raises UnsupportedError where nothing can be quantized or a rule cannot be followed.
    """
    return _Quantization(source, request, learned).run()


class _Quantization:
    def __init__(self, source: FloatModel, request: ConversionRequest, learned: FileTraining | None) -> None:
        import onnx

        self.learned = learned
        self.request = request
        self.options = request.quantization
        self.is_wide = request.scheme is Scheme.STATIC_W8A16
        copy = onnx.ModelProto()
        copy.CopyFrom(source.model)
        self.graph = OnnxGraph(copy)
        dense_as_gemm(self.graph)
        if not self.is_wide:
            multiply_depthwise(self.graph)
        self.rules = file_rules(request.program, self.options.rules, source.origins)
        self.reasons = dict.fromkeys(self.rules.float_nodes, "a rule keeps it in float")

    def run(self) -> StaticModel:
        plan, wide, seen = self._planned()
        known = self._learned_ranges(plan)
        self._correct_biases(plan, wide)
        fixed = self._fixed_ranges(plan, wide)
        writer = QdqWriter(self.graph, plan, wide=wide, wide_inputs=self.is_wide, weight_scales=self._weight_scales())
        dequantize_weights(self.graph, ("ConvTranspose", "Gather"), excluded=self.rules.float_nodes)
        choice = self._chosen(writer, seen, fixed, known)
        writer.set_ranges({**choice.ranges, **known})
        facts = CalibrationFacts(
            samples=len(self.request.calibration),
            rule=self.options.ranges.value if self.learned is None else "trained",
            bias_correction=self.options.bias_correction,
            rules=self.options.rules,
            compared=choice.compared,
            per_tensor={**choice.per_tensor, **({"trained": len(known)} if known else {})},
        )
        return StaticModel(model=self.graph.model, facts=facts, reasons=self.reasons)

    def _plan(self, unfit: Mapping[str, str]) -> tuple[QuantizationPlan, set[str]]:
        """The plan with nodes around unfit values left out, and the nodes that make 16-bit values."""
        out = {*self.rules.float_nodes, *self.rules.wide_nodes}
        for node in self.graph.proto.node:
            bad = next((name for name in (*node.input, *node.output) if name in unfit), None)
            if bad is not None:
                out.add(node.name)
                self.reasons.setdefault(node.name, f"'{bad}' cannot be quantized: {unfit[bad]}")
        eligible = plan_wide(self.graph, out - self.rules.wide_nodes)
        if self.is_wide:
            return QuantizationPlan(), eligible
        return plan_quantization(self.graph, out), eligible & self.rules.wide_nodes

    def _planned(self) -> tuple[QuantizationPlan, set[str], Observed]:
        """A plan all of whose values can be quantized, and what they hold."""
        seen = Observed()
        while True:
            plan, wide = self._plan(seen.unfit)
            if not self._has_products(plan.kernels | wide):
                raise self._nothing(seen)
            names = {*plan.observed, *self._wide_values(wide)} - set(self._learned_ranges(plan))
            if names and not self.request.calibration:
                message = f"no calibration samples, and training left no range for {', '.join(sorted(names)[:5])}"
                raise ConversionError(message, backend="onnx", stage="observe", hint="give calibration samples")
            if names <= set(seen.observers) and not names & set(seen.unfit):
                return plan, wide, seen
            found = observe(
                self.graph.model,
                {*names, *seen.observers},
                self.request.calibration,
                threads=self.request.threads,
                extremes_only=self._needs_extremes_only(),
                judges=SCORED if self.options.ranges is RangeRule.AUTO else 0,
            )
            found.unfit.update(seen.unfit)
            seen = found

    def _learned_ranges(self, plan: QuantizationPlan) -> dict[str, Range]:
        """Ranges from training, by the values the plan knows them by."""
        if self.learned is None:
            return {}
        found: dict[str, Range] = {}
        for name, value_range in self.learned.ranges.items():
            root = plan.integer.get(name, name)
            # of a value and the clamp behind it, the clamped one is what is written
            if root in plan.observed and (root not in found or name == root):
                found[root] = value_range
        return found

    def _weight_scales(self) -> dict[str, np.ndarray]:
        """Scales from training that fit the weights they are for."""
        found = {}
        for node in self.graph.proto.node:
            scale = None if self.learned is None else self.learned.scales.get(node.name)
            if scale is None or node.op_type not in PRODUCTS or node.input[1] not in self.graph.constants:
                continue
            axis, flat = output_axis(self.graph, node), scale.reshape(-1)
            if axis is not None and flat.size in (1, self.graph.array(node.input[1]).shape[axis]):
                found[node.name] = np.broadcast_to(flat, self.graph.array(node.input[1]).shape[axis]).copy()
        return found

    def _has_products(self, names: set[str]) -> bool:
        return any(node.name in names and node.op_type in PRODUCTS for node in self.graph.proto.node)

    def _needs_extremes_only(self) -> bool:
        return self.options.ranges is RangeRule.MINMAX and set(self.rules.ranges.values()) <= {RangeRule.MINMAX}

    def _wide_values(self, wide: set[str]) -> set[str]:
        names: set[str] = set()
        for node in self.graph.proto.node:
            if node.name in wide:
                names.update(name for name in node.output if self.graph.dtype(name) == "float32")
                inputs = [name for name in node.input if self.graph.is_activation(name)]
                names.update(name for name in inputs if self.is_wide and self.graph.dtype(name) == "float32")
        return names

    def _nothing(self, seen: Observed) -> UnsupportedError:
        why = (
            "; ".join(dict.fromkeys(seen.unfit.values()))
            or "it has no convolution or matrix product in float32 that onnxruntime has integer kernels for"
        )
        problem = Problem(
            backend="onnx",
            message=f"{self.request.scheme} would change nothing of this model: {why}",
            hint="convert it to fp32, or to a scheme for its weights",
        )
        return UnsupportedError((problem,))

    def _correct_biases(self, plan: QuantizationPlan, wide: set[str]) -> None:
        """Take the mean error quantized weights cause from each bias; one is added where there is none."""
        if not self.options.bias_correction:
            return
        weights, graph = {}, self.graph
        for node in graph.proto.node:
            if node.op_type in ("Conv", "Gemm") and node.name in plan.kernels | wide:
                weight, axis = graph.array(node.input[1]), output_axis(graph, node)
                scale = weight_scale(weight, axis)
                shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
                weights[node.name] = quantized_weight(weight, scale, axis) * scale.reshape(shape)
        errors = mean_errors(graph.model, weights, self.request.calibration, threads=self.request.threads)
        for node in graph.proto.node:
            if node.name in errors:
                has_bias = len(node.input) > 2 and node.input[2]
                bias = graph.array(node.input[2]).reshape(-1) if has_bias else np.zeros(errors[node.name].shape)
                name = graph.add_constant(f"{node.name}_corrected", (bias - errors[node.name]).astype(np.float32))
                if len(node.input) > 2:
                    node.input[2] = name
                else:
                    node.input.append(name)
        graph.reindex()

    def _fixed_ranges(self, plan: QuantizationPlan, wide: set[str]) -> dict[str, RangeRule]:
        """Range rules by value; raises where a rule means no quantized value."""
        quantized = {*plan.observed, *self._wide_values(wide)}
        made = {node.name: [name for name in node.output if name] for node in self.graph.proto.node}
        fixed: dict[str, RangeRule] = {}
        for rule, nodes in self.rules.nodes_of.items():
            if rule.action is RuleAction.FLOAT:
                continue
            if rule.action is RuleAction.INT16:
                if nodes and not nodes & wide:
                    raise unfollowed(rule, "none of its ops can have a quantized result in onnxruntime")
                continue
            values = {plan.integer.get(name, name) for node in nodes for name in made.get(node, [])} & quantized
            if nodes and not values:
                raise unfollowed(rule, "the results of its ops are not quantized in this file")
            fixed.update(dict.fromkeys(values, RangeRule(rule.action.value)))
        return fixed

    def _chosen(
        self,
        writer: QdqWriter,
        seen: Observed,
        fixed: Mapping[str, RangeRule],
        known: Mapping[str, Range],
    ) -> RangeChoice:
        folds = judging_samples(len(self.request.calibration), SCORED)

        def score(ranges: Mapping[str, Range], fold: int | None) -> float:
            writer.set_ranges(ranges)
            session = open_session(self.graph.model, self.request.threads)
            judging = [i for one in folds for i in one] if fold is None else folds[fold]
            found = run_samples(session, [self.request.calibration[index] for index in judging])
            return worst_sqnr_db([seen.outputs[index] for index in judging], found)

        rule = self.options.ranges
        if self.learned is not None and rule is RangeRule.AUTO:
            rule = RangeRule.MINMAX
        names = [name for name in writer.quantized if name not in known]
        return choose_ranges(
            {name: seen.observers[name] for name in names},
            score,
            rule=rule,
            bits=16 if self.is_wide else 8,
            symmetric=self.is_wide,
            percentile=self.options.percentile,
            fixed=fixed,
        )
