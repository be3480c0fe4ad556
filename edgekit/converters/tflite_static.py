"""The static integer file whose ranges, and whose ops in float, are those that answer best.

Ranges are tried by what the integer file answers on calibration samples. Two things are kept in float without being
asked, and said: an op whose integer kernel the runtime refuses, and normalisations where their integer form costs
more than `WORTH_DB` (the reciprocal square root of a variance that spans decades does not fit into 8 bits).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgekit.artifact import CalibrationFacts, RangeRule, RuleAction, Scheme
from edgekit.converters.fidelity import worst_sqnr_db
from edgekit.converters.ranges import Range, choose_ranges, judging_samples
from edgekit.converters.tflite_bias import with_shifted_biases
from edgekit.converters.tflite_flatbuffer import nodes_of, op_name, read_model, text
from edgekit.converters.tflite_quantizer import Recipe, quantized
from edgekit.converters.tflite_ranges import Observed, answers, qsvs_of
from edgekit.errors import ConversionError

if TYPE_CHECKING:
    import numpy as np

    from edgekit.converters.base import QuantizationOptions

__all__ = ["MAX_SCORED", "Static", "StaticSearch"]

MAX_SCORED = 64
"""Calibration samples each trial is scored on."""
MAX_REFUSED = 24
"""Ops a runtime may refuse before the conversion is given up."""
WORTH_DB = 3.0
"""Gain in SQNR for which normalisations are kept in float."""
HEADROOM = 2.0
"""Of 16-bit ranges found by AUTO over what calibration saw: a step twice as wide still has 90 dB, a clipped value
has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """A quantized file, how its ranges were found, and what is in float for a reason of its own."""

    content: bytes
    facts: CalibrationFacts
    notes: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    """First output of an op left in float to why."""


class StaticSearch:
    """One float file, its calibration and a recipe; `best` is the file to keep."""

    def __init__(
        self,
        content: bytes,
        recipe: Recipe,
        seen: Observed,
        samples: Sequence[Sequence[np.ndarray]],
        *,
        trained: Mapping[str, Range] | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
        threads: int = 1,
    ) -> None:
        """`trained` are ranges that are given, not chosen, and `weights` bounds of weights, both by tensor name."""
        self._content = content
        self._recipe = recipe
        self._seen = seen
        self._samples = samples
        self._trained = dict(trained or {})
        self._weights = weights
        self._threads = threads
        self._bits = 16 if recipe.scheme is Scheme.STATIC_W8A16 else 8
        self._judging = judging_samples(len(samples), MAX_SCORED)
        self._expected: dict[int, list[np.ndarray]] = {}
        """What the float file answers for each judging sample, by its position."""
        self._reasons = {
            name: "kept in float by a rule" for name, action in recipe.exceptions.items() if action is RuleAction.FLOAT
        }

    def best(self, options: QuantizationOptions, fixed: Mapping[str, RangeRule]) -> Static:
        """The file with ranges by `options.ranges`, `fixed` ones by rules of their own."""
        wide = options.ranges is RangeRule.AUTO and self._bits == 16
        rule = RangeRule.MINMAX if self._trained or wide else options.ranges
        free = {name: observer for name, observer in self._seen.observers.items() if name not in self._trained}
        choice = choose_ranges(
            free,
            self._score,
            rule=rule,
            bits=self._bits,
            symmetric=self._bits == 16,
            percentile=options.percentile,
            fixed=fixed,
        )
        ranges = {
            name: (low * HEADROOM, high * HEADROOM) if wide and name not in fixed else (low, high)
            for name, (low, high) in choice.ranges.items()
        }
        compared = dict(choice.compared)
        if options.ranges is RangeRule.AUTO:
            self._try_float_norms(ranges, compared)
        is_corrected = options.bias_correction and self._try_bias_correction(ranges, compared)
        content = self._built(ranges)
        rule_counts = {**choice.per_tensor, **({"trained": len(self._trained)} if self._trained else {})}
        facts = CalibrationFacts(
            samples=len(self._samples),
            rule="trained" if self._trained else options.ranges.value,
            bias_correction=is_corrected,
            rules=options.rules,
            compared=compared,
            per_tensor={name: count for name, count in rule_counts.items() if count},
        )
        notes = self._seen.masks.notes()
        if options.bias_correction and not is_corrected:
            notes += ("bias correction lowered the SQNR on calibration inputs and was not used",)
        if wide:
            notes += (f"int16 ranges are {HEADROOM:g} times what calibration saw",)
        return Static(content=content, facts=facts, notes=notes, reasons=dict(self._reasons))

    def _score(self, ranges: Mapping[str, Range], fold: int | None = None) -> float:
        judging = [i for one in self._judging for i in one] if fold is None else self._judging[fold]
        if not self._expected:
            everything = [i for one in self._judging for i in one]
            found = answers(self._content, [self._samples[index] for index in everything], self._threads)
            self._expected = dict(zip(everything, found, strict=True))
        scored = [self._samples[index] for index in judging]
        expected = [self._expected[index] for index in judging]
        return worst_sqnr_db(expected, answers(self._built(ranges), scored, self._threads))

    def _built(self, ranges: Mapping[str, Range]) -> bytes:
        """The file; ops the runtime refuses in integers are left in float, one after the other."""
        whole = self._seen.masks.widened({**ranges, **self._trained}, self._seen.observers, self._bits)
        qsvs = qsvs_of(self._content, whole, self._recipe.scheme, self._weights)
        for _ in range(MAX_REFUSED):
            made = quantized(self._content, self._recipe, qsvs)
            refused = _refused(made)
            if refused is None:
                return made
            name, said = refused
            if name in self._reasons:
                raise ConversionError(said, backend="tflite", stage="load")
            self._leave_float(name, f"the runtime has no integer kernel for it here: {said}")
        raise ConversionError(f"{MAX_REFUSED} ops were refused by the runtime", backend="tflite", stage="load")

    def _try_bias_correction(self, ranges: Mapping[str, Range], compared: dict[str, float]) -> bool:
        """Shift the biases where that does not cost SQNR."""
        before = self._score(ranges)
        plain = self._content
        used = list(self._samples[:MAX_SCORED])
        self._content, count = with_shifted_biases(plain, self._built(ranges), used, self._threads)
        after = self._score(ranges)  # against the answers of the plain float file, which are kept
        compared.update({"without bias correction": before, "bias correction": after})
        if after < before or not count:
            self._content = plain
            return False
        return True

    def _leave_float(self, name: str, reason: str) -> None:
        self._reasons[name] = reason
        self._recipe = replace(self._recipe, exceptions={**self._recipe.exceptions, name: RuleAction.FLOAT})

    def _try_float_norms(self, ranges: Mapping[str, Range], compared: dict[str, float]) -> None:
        """Leave normalisations in float where that gains enough."""
        names = [name for name in _norm_ops(self._content) if name not in self._recipe.exceptions]
        if not names:
            return
        integer = compared["integer normalisation"] = self._score(ranges)
        before = self._recipe, dict(self._reasons)
        for name in names:
            self._leave_float(name, "a normalisation whose integer form cost more than its place in float")
        compared["float normalisation"] = self._score(ranges)
        if compared["float normalisation"] < integer + WORTH_DB:
            self._recipe, self._reasons = before


def _refused(content: bytes) -> tuple[str, str] | None:
    """(first output, what the runtime said) of the op the runtime cannot prepare; None where it takes the file."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        Interpreter(model_content=content, num_threads=1).allocate_tensors()
    except (RuntimeError, ValueError) as e:
        said = " ".join(str(e).split())[:300]
        place = re.search(r"Node number (\d+) \((\w+)\) failed to prepare", said)
        if place is None:
            raise ConversionError(said, backend="tflite", stage="load") from e
        model = read_model(content)
        graph = model.subgraphs[0]
        number = int(place.group(1))
        if number >= len(graph.operators) or op_name(model, graph.operators[number]) in ("QUANTIZE", "DEQUANTIZE"):
            raise ConversionError(said, backend="tflite", stage="load", op=place.group(2)) from e
        return text(graph.tensors[graph.operators[number].outputs[0]].name), said
    return None


def _norm_ops(content: bytes) -> list[str]:
    """First outputs of the ops of each normalisation: those named after the node an RSQRT comes from, and the
    variance before it."""
    model = read_model(content)
    graph = model.subgraphs[0]
    maker = {int(i): operator for operator in graph.operators for i in operator.outputs}

    def named(operator: Any) -> str:
        return text(graph.tensors[operator.outputs[0]].name)

    roots = [operator for operator in graph.operators if op_name(model, operator) == "RSQRT"]
    nodes = {node for root in roots for node in nodes_of(named(root))}
    found = {named(o) for o in graph.operators if nodes & set(nodes_of(named(o)))}
    waiting = list(roots)
    while waiting:
        operator = waiting.pop()
        found.add(named(operator))
        waiting += [
            maker[int(i)]
            for i in operator.inputs
            if int(i) in maker
            and op_name(model, operator) in ("RSQRT", "ADD", "MEAN")
            and op_name(model, maker[int(i)]) in ("ADD", "MEAN", "SQUARED_DIFFERENCE", "MUL")
        ]
    return sorted(found)
