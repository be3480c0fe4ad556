"""A `.pte` that runs: quantized, lowered and executed once; what XNNPACK refuses to run in int8 goes back to float.

XNNPACK checks a quantized op only when the file is loaded, and executorch's error then names no op. So the ops its
partitioner had refused are suspected first, then those of one kind and one set of arguments after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import CalibrationFacts, Format, RuleAction, Scheme
from edgekit.converters.calibration import input_specs
from edgekit.converters.executorch_graphs import node_origins
from edgekit.converters.executorch_lowering import lower
from edgekit.converters.fidelity import probe_inputs
from edgekit.converters.host_runtimes import load_runtime
from edgekit.converters.node_rules import resolved_rules
from edgekit.converters.passports.executorch import Trace
from edgekit.converters.shapes import DynamicAxis, at_other_sizes
from edgekit.errors import ConversionError, MissingDependencyError, Problem, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram
    from torch.fx import Node

    from edgekit.converters.base import ConversionRequest

__all__ = ["Made", "made_from"]

_ATTEMPTS = 6
"""Each lowers the model again."""
_UNBOUNDED = 1 << 20
"""A free axis longer than this has no bound worth trying."""
_INT16 = "XNNPACK has no 16-bit activations; the tflite backend has"
_AT_RUN_TIME = "under this scheme the ranges of activations are found at run time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What is known of the file that was written."""

    trace: Trace
    program: ExportedProgram
    """`forward` as it was lowered, which `edgekit why` lowers again with more outputs."""
    left: dict[str, str] = field(default_factory=dict)
    """Node to the reason why it was left in float."""
    calibration: CalibrationFacts | None = None


def made_from(request: ConversionRequest, programs: Mapping[str, ExportedProgram], path: Path) -> Made:
    """Write the file at `path`. `programs` are the entry points made ready, `forward` first."""
    if request.is_trained:
        _refuse_trained(request)
        return _as_it_is(programs, path, request)
    if request.scheme is Scheme.FP32:
        return _as_it_is(programs, path, request)
    if request.scheme is Scheme.FP16:
        from edgekit.converters.executorch_half import halved

        return _as_it_is({name: halved(program) for name, program in programs.items()}, path, request)
    return _quantized(request, programs, path)


def _refuse_trained(request: ConversionRequest) -> None:
    if request.scheme is not Scheme.STATIC_W8A8:
        message = f"cannot write {request.scheme}: the program was trained for int8 weights and activations"
        raise UnsupportedError([Problem(backend="executorch", message=message)], hint="ask for static_w8a8")
    if request.quantization.rules:
        message = "rules do not apply to a trained program: its ranges and float ops were fixed by training"
        raise UnsupportedError([Problem(backend="executorch", message=message)])


def _as_it_is(programs: Mapping[str, ExportedProgram], path: Path, request: ConversionRequest) -> Made:
    """The file without further quantization; ops XNNPACK fails on when it is loaded or run are left to executorch."""
    first = lower(programs)
    path.write_bytes(first.content)
    failure = _failure(path, request)
    if failure is None:
        return Made(trace=first.trace, program=programs["forward"])
    if not request.is_trained:  # executorch has no kernels for int8
        counts = Counter(first.trace.ops)
        for name in sorted(counts, key=lambda op: counts[op])[:_ATTEMPTS]:
            lowered = lower(programs, avoided=frozenset({name}))
            path.write_bytes(lowered.content)
            if _failure(path, request) is None:
                return Made(trace=lowered.trace, program=programs["forward"])
    raise _runtime_error(failure, first.trace)


def _failure(path: Path, request: ConversionRequest) -> str | None:
    """Why the file does not run on the first sample, at the least and the most of its free axes; None where it does."""
    samples = request.verification or request.calibration or probe_inputs(request.program, count=1)
    try:
        run = load_runtime(path, Format.EXECUTORCH, threads=request.threads)
        for sample in (samples[0], *_at_the_ends(samples[0], request.program)):
            run(sample)
    except Exception as e:  # noqa: BLE001 - executorch raises RuntimeError, ValueError, …; the caller raises it on
        return f"{type(e).__name__}: {str(e)[:300]}"
    return None


def _at_the_ends(sample: Sequence[np.ndarray], program: ExportedProgram) -> tuple[tuple[np.ndarray, ...], ...]:
    specs = enumerate(input_specs(program))
    axes = [
        DynamicAxis(input=index, axis=axis, minimum=low, maximum=high, name=f"{index}.{axis}")
        for index, spec in specs
        for axis, (low, high) in spec.bounds.items()
        if 1 <= low < high < _UNBOUNDED
    ]
    return at_other_sizes(sample, axes)


def _runtime_error(failure: str, trace: Trace) -> ConversionError:
    outside = [trace.places[handle] for handle in trace.instructions.values() if handle in trace.places]
    suspects = f"; ops outside XNNPACK: {', '.join(outside[:8])}" if outside else ""
    return ConversionError(
        f"executorch cannot run the file it wrote: {failure}{suspects}",
        backend="executorch",
        stage="run",
        hint="convert to a backend that has these ops, or write this part of the model with other operations",
    )


def _quantized(request: ConversionRequest, programs: Mapping[str, ExportedProgram], path: Path) -> Made:
    try:
        import torchao  # noqa: F401
    except ImportError as e:
        raise MissingDependencyError("quantizing for ExecuTorch", extra="executorch", package="torchao") from e
    actions = _actions(request)
    kept = {name: "a rule keeps it" for name, action in actions.items() if action is RuleAction.FLOAT}
    trace = Trace()
    made, error, quantized = _attempt(request, programs, path, actions, kept, trace)
    if made is not None:
        return made
    for what, names in list(_suspects(quantized, trace))[:_ATTEMPTS]:
        more = {**kept, **dict.fromkeys(names, f"executorch cannot run {what} in int8 as it is used here")}
        made, _, _ = _attempt(request, programs, path, actions, more, Trace())
        if made is not None:
            return made
    raise error


def _actions(request: ConversionRequest) -> dict[str, RuleAction]:
    refused = {RuleAction.INT16: _INT16}
    if not request.scheme.is_static:
        refused |= dict.fromkeys((RuleAction.MINMAX, RuleAction.PERCENTILE, RuleAction.MSE), _AT_RUN_TIME)
    return resolved_rules(request.program, request.quantization.rules, backend="executorch", refused=refused)


def _attempt(
    request: ConversionRequest,
    programs: Mapping[str, ExportedProgram],
    path: Path,
    actions: Mapping[str, RuleAction],
    kept: Mapping[str, str],
    trace: Trace,
) -> tuple[Made | None, ConversionError, dict[str, ExportedProgram]]:
    """The file, if it lowers and runs with these ops in float; else why not. The quantized programs in any case."""
    from edgekit.converters.executorch_ranges import quantized_dynamically, quantized_statically

    make = quantized_statically if request.scheme.is_static else quantized_dynamically
    quantized = make(request, programs, actions, kept)
    try:
        lowered = lower(quantized.programs, trace, floats=quantized.left)
    except ConversionError as e:
        return None, e, quantized.programs
    path.write_bytes(lowered.content)
    failure = _failure(path, request)
    made = Made(
        trace=trace, program=quantized.programs["forward"], left=quantized.left, calibration=quantized.calibration
    )
    return (made if failure is None else None), _runtime_error(failure or "", trace), quantized.programs


def _suspects(programs: Mapping[str, ExportedProgram], trace: Trace) -> Iterator[tuple[str, frozenset[str]]]:
    """(kind, names) of quantized ops that may be what cannot run, the likeliest first."""
    refused = frozenset(name for handle in trace.reasons for name in trace.names.get(handle, ()))
    groups: dict[str, set[str]] = {}
    likely: set[str] = set()
    for program in programs.values():
        for node in program.graph.nodes:
            if not _is_quantized(node):
                continue
            names = node_origins(node)
            groups.setdefault(_kind(node), set()).update(names)
            if names & refused:
                likely.update(names)
    if likely:
        yield "ops that XNNPACK's partitioner refuses", frozenset(likely)
    for kind, found in sorted(groups.items(), key=lambda item: len(item[1])):
        yield kind.partition(" ")[0], frozenset(found)


def _is_quantized(node: Node) -> bool:
    if node.op != "call_function" or "quantize" in str(node.target):
        return False
    return any("dequantize" in str(source.target) for source in node.all_input_nodes)


def _kind(node: Node) -> str:
    """`aten.conv2d.padding [3, 8, 3, 3] same 2`: ops alike in all that XNNPACK may object to."""

    def shown(value: Any) -> str:
        held = getattr(value, "meta", {}).get("val")
        return str(tuple(held.shape)[2:]) if held is not None and hasattr(held, "shape") else str(value)

    return f"{node.target} {' '.join(shown(value) for value in node.args)}"
