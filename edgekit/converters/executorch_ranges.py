"""PT2E quantization with ranges chosen by measurement.

The model is calibrated once: every observer keeps the extremes and a histogram of its tensor. Sets of ranges are then
tried in the same prepared module, whose observers quantize and dequantize in place as the file will do, without
converting it for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgekit.artifact import CalibrationFacts, RangeRule, RuleAction
from edgekit.converters.executorch_graphs import as_arguments, exported_again, node_origins
from edgekit.converters.executorch_quantizer import (
    ActivationObserver,
    PerChannelWeightObserver,
    dynamic_quantizer,
    static_quantizer,
)
from edgekit.converters.executorch_scales import corrected_biases, fit_weight_scales, unfit_scales
from edgekit.converters.fidelity import worst_sqnr_db
from edgekit.converters.ranges import FoldedObserver, Range, choose_ranges, fold_count, judging_samples
from edgekit.converters.shared_constants import keep_unfoldable_norms, own_constants
from edgekit.errors import ConversionError, Problem, UnsupportedError, UserError

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from edgekit.converters.base import ConversionRequest

__all__ = ["Quantized", "quantized_dynamically", "quantized_statically"]

SCORED = 64
"""Calibration samples every set of ranges is scored on."""
_ROUNDS = 4
"""Ops found unfit when their values are seen go back to float; each round may find more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """Programs with quantize and dequantize ops, how their ranges were found, and what was left in float and why."""

    programs: dict[str, ExportedProgram]
    calibration: CalibrationFacts | None
    left: dict[str, str] = field(default_factory=dict)
    """Node to reason."""


def quantized_statically(
    request: ConversionRequest,
    programs: Mapping[str, ExportedProgram],
    actions: Mapping[str, RuleAction],
    kept: Mapping[str, str],
) -> Quantized:
    """The programs with int8 weights and activations; ranges are those of the first, the samples' own.

    `actions` are the user's rules by node, `kept` the nodes to leave in float, each with the reason.
    """
    first, *others = programs
    left = dict(kept)
    for _ in range(_ROUNDS):
        session = _Session(request, programs[first], actions, left)
        found = session.calibrate() or session.choose()
        if not found:
            finished = {first: session.finish()}
            finished |= {name: session.finish_alike(programs[name], name) for name in others}
            return Quantized(programs=finished, calibration=session.facts, left=session.left)
        left.update(found)
    raise ConversionError(
        f"more and more ops turned out unfit for int8: {', '.join(sorted(left))}"[:1000],
        backend="executorch",
        stage=f"quantize {request.scheme}",
        hint="keep the part of the model they are in in float with a rule",
    )


def quantized_dynamically(
    request: ConversionRequest,
    programs: Mapping[str, ExportedProgram],
    actions: Mapping[str, RuleAction],
    kept: Mapping[str, str],
) -> Quantized:
    """The programs with int8 weights, and activations quantized where they are used, by what they then are."""
    del request, actions  # float rules are in `kept`; there is no other to follow
    finished, left = {}, dict(kept)
    for name, program in programs.items():
        quantizer = dynamic_quantizer(_reason_in(kept))
        prepared = prepare_pt2e(_graph_of(program), quantizer)
        if program.example_inputs is not None:
            with torch.no_grad():
                prepared(*program.example_inputs[0])  # weights are seen when they are used
        finished[name] = exported_again(convert_pt2e(prepared), program)
        left.update(quantizer.left)
    return Quantized(programs=finished, calibration=None, left=left)


def _reason_in(left: Mapping[str, str]) -> Callable[[Node], str | None]:
    """What `OwnQuantizer` takes: the reason of a node, or of the node of the user's program it was made from."""

    def reason(node: Node) -> str | None:
        return next((left[name] for name in sorted(node_origins(node)) if name in left), None)

    return reason


class _Session:
    """One prepared module on its way to a quantized program."""

    def __init__(
        self,
        request: ConversionRequest,
        program: ExportedProgram,
        actions: Mapping[str, RuleAction],
        left: Mapping[str, str],
    ) -> None:
        self._request = request
        self._program = program
        self._left = left
        self._options = request.quantization
        self._actions = actions
        self._quantizer = static_quantizer(_reason_in(left))
        self._module: GraphModule = prepare_pt2e(_graph_of(program), self._quantizer)
        modules = dict(self._module.named_modules())
        self._observers = {n: m for n, m in modules.items() if isinstance(m, ActivationObserver)}
        self._weights = {n: m for n, m in modules.items() if isinstance(m, PerChannelWeightObserver)}
        self._fixed = self._fixed_rules()
        self._expected: dict[int, list[np.ndarray]] = {}
        self.facts: CalibrationFacts | None = None

    def _fixed_rules(self) -> dict[str, RangeRule]:
        """The rule of each observer whose tensor the user has a rule for."""
        if not any(action is not RuleAction.FLOAT for action in self._actions.values()):
            return {}
        fixed: dict[str, RangeRule] = {}
        reached = set()
        for node in self._module.graph.nodes:
            observer = self._observers.get(str(node.target)) if node.op == "call_module" else None
            if observer is None:
                continue
            for name in _names_until_observer(node.args[0], self._observers):
                action = self._actions.get(name)
                if action is not None and action is not RuleAction.FLOAT:
                    fixed[self._name_of(observer)] = RangeRule(action.value)
                    reached.add(name)
        missed = [
            name for name, action in self._actions.items() if action is not RuleAction.FLOAT and name not in reached
        ]
        if not fixed and missed:
            raise UserError(
                f"no activation of {', '.join(missed[:5])} is quantized, so that its range cannot be chosen",
                hint="range rules are for ops whose output is int8",
            )
        return fixed

    def _name_of(self, observer: ActivationObserver) -> str:
        return str(next(name for name, known in self._observers.items() if known is observer))

    def calibrate(self) -> dict[str, str]:
        """See every sample; returns the nodes whose values no 8 bits can hold, with the reason."""
        if self._options.ranges is not RangeRule.MINMAX or self._fixed:
            for name, observer in self._observers.items():
                if self._options.ranges is not RangeRule.MINMAX or name in self._fixed:
                    observer.seen = FoldedObserver(fold_count(len(self._request.calibration)))
        judging = set(self._judging(None))
        for index, sample in enumerate(self._request.calibration):
            for observer in self._observers.values():
                observer.position = index
            flat = self._run(sample)
            if index in judging:
                self._expected[index] = flat
        return {name: why for name, why in self._unfit_values().items() if name not in self.left}

    def _run(self, sample: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        with torch.no_grad():
            given = pytree.tree_leaves(self._module(*as_arguments(sample)))
        return [value.detach().clone().numpy() for value in given if isinstance(value, torch.Tensor)]

    def _unfit_values(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for node in self._module.graph.nodes:
            observer = self._observers.get(str(node.target)) if node.op == "call_module" else None
            why = _why_unfit(observer) if observer is not None else None
            if why is not None:
                around = [node.args[0], *node.users]
                found.update({one.name: why for one in around if one.op == "call_function"})
        return found

    def choose(self) -> dict[str, str]:
        """Set every observer's range; returns the nodes XNNPACK cannot compute with these ranges, with the reason."""
        options = self._options
        if options.ranges is RangeRule.MINMAX and not self._fixed:
            ranges = {name: _seen_range(observer) for name, observer in self._observers.items()}
            compared, per_tensor = {}, {RangeRule.MINMAX.value: len(ranges)}
        else:
            observers = {name: observer.seen or _bare(observer) for name, observer in self._observers.items()}
            choice = choose_ranges(
                observers,
                self._score,
                rule=options.ranges,
                bits=8,
                percentile=options.percentile,
                fixed=self._fixed,
            )
            ranges, compared, per_tensor = choice.ranges, choice.compared, choice.per_tensor
        self._set(ranges)
        self.facts = CalibrationFacts(
            samples=len(self._request.calibration),
            rule=options.ranges.value,
            bias_correction=options.bias_correction,
            rules=options.rules,
            compared={rule: round(score, 2) for rule, score in compared.items()},
            per_tensor=per_tensor,
        )
        found = unfit_scales(self._module)
        return {name: why for name, why in found.items() if name not in self.left}

    def _set(self, ranges: Mapping[str, Range]) -> None:
        for name, observer in self._observers.items():
            observer.set_range(ranges[name])

    def _judging(self, fold: int | None) -> list[int]:
        folds = judging_samples(len(self._request.calibration), SCORED)
        return [i for one in folds for i in one] if fold is None else list(folds[fold])

    def _try(self, is_trying: bool) -> None:
        for observer in self._observers.values():
            observer.is_trying = is_trying
        for weight in self._weights.values():
            weight.is_trying = is_trying

    def _score(self, ranges: Mapping[str, Range], fold: int | None) -> float:
        judging = self._judging(fold)
        self._set(ranges)
        self._try(True)
        try:
            found = [self._run(self._request.calibration[index]) for index in judging]
        finally:
            self._try(False)
        return worst_sqnr_db([self._expected[index] for index in judging], found)

    @property
    def left(self) -> dict[str, str]:
        """Node to reason, of every op left in float."""
        return {**self._left, **self._quantizer.left}

    def finish(self) -> ExportedProgram:
        """The quantized program."""
        if self._options.bias_correction:
            samples = [as_arguments(sample) for sample in self._request.calibration[:SCORED]]
            corrected_biases(self._module, samples)
        fit_weight_scales(self._module)
        return exported_again(convert_pt2e(self._module), self._program)

    def finish_alike(self, program: ExportedProgram, name: str) -> ExportedProgram:
        """Another entry point of the same model, quantized with the ranges found for the first."""
        other = _Session(self._request, program, self._actions, self._left)
        if set(other._observers) != set(self._observers) or self._options.bias_correction:
            why = "bias correction" if self._options.bias_correction else "its graph is another than the first one's"
            message = f"entry point '{name}' cannot take over the calibrated ranges: {why}"
            raise UnsupportedError([Problem(backend="executorch", message=message)], hint="convert it on its own")
        with torch.no_grad():
            other._module(*(program.example_inputs or ((), {}))[0])  # weights are seen when they are used
        other._set({key: _seen_range(observer) for key, observer in self._observers.items()})
        return other.finish()


def _graph_of(program: ExportedProgram) -> GraphModule:
    """The program's module, for preparing."""
    graph = program.module()
    own_constants(graph)
    keep_unfoldable_norms(graph)
    return graph


def _seen_range(observer: ActivationObserver) -> Range:
    low, high = float(observer.min_val), float(observer.max_val)
    return (low, high) if low <= high else (0.0, 0.0)


def _bare(observer: ActivationObserver) -> FoldedObserver:
    """The exact extremes without a histogram."""
    return FoldedObserver.of_extremes(*_seen_range(observer))


def _names_until_observer(node: Any, observers: Mapping[str, Any]) -> list[str]:
    """The names of what an observer observes: the node, and what is computed with it up to the observers before."""
    names: list[str] = []
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one.op == "call_function":
            names.extend(node_origins(one))
            waiting.extend(source for source in one.all_input_nodes if str(source.target) not in observers)
    return names


def _why_unfit(observer: ActivationObserver) -> str | None:
    low, high = float(observer.min_val), float(observer.max_val)
    if low > high:  # never reached
        return None
    if not observer.is_finite:
        return "it meets infinite values, which 8 bits do not hold"
    if observer.masks or max(-low, high) > 1e30:
        reach = max(-low, high)
        return f"it meets values of {reach:.2g} that mask others, and 8 bits over that range leave nothing of the rest"
    return None
