"""TFLite: litert-torch's lowering writes the float file, ai-edge-quantizer the integer ones from it.

The same program gives the same bytes: nothing in the toolchain draws random numbers or writes a date.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, CalibrationFacts, Format, RangeRule, RuleAction, Scheme, Signature
from edgekit.converters.assembly import assemble
from edgekit.converters.base import Capability, ConversionRequest
from edgekit.converters.capabilities import capabilities_of
from edgekit.converters.lowerings import find_problems
from edgekit.converters.passports.reader import read_facts
from edgekit.converters.tflite_checks import find_obstacles
from edgekit.converters.tflite_flatbuffer import has_half_weights, tidied, with_half_weights
from edgekit.converters.tflite_lowering import DEFAULT_SIGNATURE, lowered
from edgekit.converters.tflite_quantizer import is_quantized
from edgekit.errors import Problem, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

__all__ = ["TFLiteConverter"]

_TOOLS = ("litert-torch", "ai-edge-quantizer", "ai-edge-litert")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A file's bytes and what is to be said of how they were made."""

    content: bytes
    calibration: CalibrationFacts | None = None
    notes: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    """First output of an op that was left in float on purpose to why."""


class TFLiteConverter:
    """Writes `.tflite`. One instance serves one program: the float file is made once and shared by its schemes."""

    format = Format.TFLITE

    def __init__(self) -> None:
        self._float_model: bytes | None = None

    def capabilities(self) -> tuple[Capability, ...]:
        """Every scheme; needs no toolchain installed."""
        return capabilities_of("tflite")

    def check(self, request: ConversionRequest) -> tuple[Problem, ...]:
        """Every op of the program that litert-torch has no lowering for, and what the format cannot hold."""
        missing = find_problems(request.program, "tflite") if request.looks_for_ops else ()
        return (*find_obstacles(request), *missing)

    def convert(self, request: ConversionRequest) -> Artifact:
        """Write `model.tflite` and its passport. Raises ConversionError, UnsupportedError."""
        made = self._made(request)
        path = request.output_dir / f"model{Format.TFLITE.suffix}"
        path.write_bytes(made.content)
        facts = read_facts(path, Format.TFLITE)
        told = tuple(op.model_copy(update={"reason": made.reasons.get(op.where, op.reason)}) for op in facts.float_ops)
        return assemble(
            request,
            path,
            Format.TFLITE,
            tools=_TOOLS,
            notes=made.notes,
            calibration=made.calibration,
            facts=facts.model_copy(update={"float_ops": told}),
            signatures=[_verified_entry(path, entry, request) for entry in facts.signatures],
        )

    def _made(self, request: ConversionRequest) -> _Made:
        if request.is_trained:
            return _from_trained(request)
        if self._float_model is None:
            self._float_model = tidied(lowered(_entries(request)))
        content = self._float_model
        if request.scheme is Scheme.FP32:
            return _Made(content=content)
        if request.scheme is Scheme.FP16:
            return _half(content)
        if request.scheme.is_static:
            return _static(content, request)
        return _weights_only(content, request)


def _entries(request: ConversionRequest) -> Mapping[str, ExportedProgram]:
    """The programs by the names of their entry points in the file."""
    if not request.signatures:
        return {DEFAULT_SIGNATURE: request.program}
    return {"forward": request.program, **request.signatures}


def _verified_entry(path: Path, entry: Signature, request: ConversionRequest) -> Signature:
    """The entry point with how close it comes to its own program, on inputs of its own sizes."""
    from edgekit.converters.fidelity import measure_fidelity, probe_inputs
    from edgekit.converters.host_runtimes import runtime_name, tflite_entry

    program = _entries(request)[entry.name]
    fidelity = measure_fidelity(
        program,
        probe_inputs(program),
        tflite_entry(path, entry.name, request.threads),
        names=[spec.name for spec in entry.outputs],
        source="random",
        runtime=runtime_name(Format.TFLITE),
    )
    return entry.model_copy(update={"fidelity": fidelity})


def _half(content: bytes) -> _Made:
    """float16 weights. The runtime widens them when it loads the file (or computes in half where it has kernels)."""
    halved, kept = with_half_weights(content)
    if not has_half_weights(halved):
        raise _nothing_to_do(Scheme.FP16)
    notes = ["weights are stored in float16 and widened on loading; every op computes in float32"]
    if kept:
        notes.append(f"kept in float32, beyond the range of float16: {', '.join(kept[:8])}")
    return _Made(content=halved, notes=tuple(notes))


def _static(content: bytes, request: ConversionRequest) -> _Made:
    from edgekit.converters.tflite_quantizer import Recipe
    from edgekit.converters.tflite_ranges import observed
    from edgekit.converters.tflite_rules import applied
    from edgekit.converters.tflite_static import StaticSearch

    obstacles = find_obstacles(request)
    if obstacles:  # `check` may have been asked about another scheme
        raise UnsupportedError(obstacles)
    options = request.quantization
    rules = applied(content, request.program, options.rules)
    recipe = Recipe(scheme=request.scheme, io_dtype=options.io_dtype, exceptions=rules.exceptions)
    by_extremes = {options.ranges, *rules.ranges.values()} <= {RangeRule.MINMAX}
    seen = observed(content, request.calibration, request.threads, extremes_only=by_extremes)
    search = StaticSearch(content, recipe, seen, request.calibration, threads=request.threads)
    found = search.best(options, rules.ranges)
    if not is_quantized(found.content, request.scheme):
        raise _nothing_to_do(request.scheme)
    return _Made(content=found.content, calibration=found.facts, notes=found.notes, reasons=found.reasons)


def _weights_only(content: bytes, request: ConversionRequest) -> _Made:
    """Integer weights under float inputs and outputs."""
    from edgekit.converters.tflite_quantizer import Recipe, quantized
    from edgekit.converters.tflite_rules import applied
    from edgekit.converters.tflite_weights import best_four_bits

    unfit = [rule for rule in request.quantization.rules if rule.action is not RuleAction.FLOAT]
    if unfit:
        raise UnsupportedError(
            [
                Problem(
                    backend="tflite",
                    message=f"rule '{rule.node}: {rule.action}' is of activations: {request.scheme} leaves them float",
                    hint="use 'float', or static_w8a8",
                )
                for rule in unfit
            ]
        )
    rules = applied(content, request.program, request.quantization.rules)
    recipe = Recipe(scheme=request.scheme, exceptions=rules.exceptions)
    if request.scheme is Scheme.WEIGHT_W4:
        made, notes = best_four_bits(content, recipe, request)
    else:
        made, notes = quantized(content, recipe), ()
    if not is_quantized(made, request.scheme):
        raise _nothing_to_do(request.scheme)
    return _Made(content=made, notes=notes)


def _from_trained(request: ConversionRequest) -> _Made:
    from edgekit.converters.tflite_trained import quantized_as_trained

    found = quantized_as_trained(request)
    return _Made(content=found.content, calibration=found.facts, notes=found.notes, reasons=found.reasons)


def _nothing_to_do(scheme: Scheme) -> UnsupportedError:
    return UnsupportedError(
        [
            Problem(
                backend="tflite",
                message=f"{scheme} changes nothing: the quantizer takes no op and no weights of this model",
                hint="convert to fp32",
            )
        ]
    )
