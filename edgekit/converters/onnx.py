"""ONNX: torch.onnx (dynamo) writes the float file; quantization is edgekit's own, to what onnxruntime has kernels for.

`static_w8a8` is written as QDQ: int8 weights with one scale per channel, uint8 activations (the pair onnxruntime's
x86 and ARM kernels are fastest with), ranges chosen by running candidates in onnxruntime. What it does with the file
is in the passport, read from the graph it makes of it.

The same program gives the same bytes. Everything is in one file: a model near protobuf's 2 GB limit is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Artifact, CalibrationFacts, Format, Scheme
from edgekit.converters.assembly import assemble
from edgekit.converters.base import Capability, ConversionRequest
from edgekit.converters.capabilities import capabilities_of
from edgekit.converters.lowerings import find_problems
from edgekit.converters.onnx_program import FloatModel, Origin, translated
from edgekit.errors import ConversionError, EdgekitError, Problem, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.converters.onnx_graph import OnnxGraph
    from edgekit.converters.onnx_trained import TrainedProgram
    from edgekit.converters.passports.facts import FileFacts

__all__ = ["OnnxConverter"]

_TOOLS = ("onnx", "onnxscript", "onnxruntime")
MAX_WEIGHT_BYTES = 1_500_000_000
"""protobuf ends at 2 GB; above this a file would need external data, which runners would have to push too."""
_NOTES = {
    Scheme.FP16: "weights in float16, widened to float32 once, when onnxruntime loads the file: arithmetic and speed "
    "are those of fp32. onnxruntime has hardly any float16 kernels on the CPU: ops written in float16 ran in float32 "
    "between casts (measured)",
    Scheme.DYNAMIC_W8: "products of matrices, convolutions of one group and LSTMs quantize what they read at every "
    "inference",
    Scheme.WEIGHT_W8: "int8 weights, one scale per channel, dequantized at every inference (within the kernel for "
    "products of matrices): smaller, not faster",
    Scheme.WEIGHT_W4: "int4 weights, one scale for each 32, dequantized at every inference (within the kernel for "
    "products of matrices): smaller, not faster. Recurrent ops have 8 bits",
    Scheme.STATIC_W8A16: "int16 activations, as neural processors take them. onnxruntime's CPU kernels compute them in "
    "float32 between conversions: slower than fp32 there",
}
_SATURATION = (
    "x86 processors without VNNI (before 2019) add pairs of uint8 x int8 products in 16 bits, which can saturate: "
    "results may differ there; the session option session.x64quantprecision=1 avoids it"
)


class OnnxConverter:
    """Writes `.onnx`. One instance serves one program: the float file is made once and shared by its schemes."""

    format = Format.ONNX

    def __init__(self) -> None:
        self._float: FloatModel | None = None

    def capabilities(self) -> tuple[Capability, ...]:
        """Every scheme; needs no toolchain installed."""
        return capabilities_of("onnx")

    def check(self, request: ConversionRequest) -> tuple[Problem, ...]:
        """Every op of the program that onnxscript's torch library has no translation for, too large a model, and
        several entry points."""
        if request.is_trained:
            from edgekit.converters.onnx_trained import without_training

            try:
                request = replace(request, program=without_training(request).program)
            except UnsupportedError as e:
                return e.problems
        size = sum(value.numel() * value.element_size() for value in request.program.state_dict.values())
        problems = find_problems(request.program, "onnx") if request.looks_for_ops else ()
        if size > MAX_WEIGHT_BYTES:
            message = f"its weights are {size} bytes; more than {MAX_WEIGHT_BYTES} do not fit into one .onnx file"
            problems += (Problem(backend="onnx", message=message, hint="make it smaller first, or use executorch"),)
        if request.signatures:
            message = f"an .onnx file has one entry point, not {1 + len(request.signatures)}"
            hint = "give its inputs free axes (dynamic shapes), convert each size to a file of its own, or use tflite"
            problems += (Problem(backend="onnx", message=message, hint=hint),)
        return problems

    def convert(self, request: ConversionRequest) -> Artifact:
        """Write `model.onnx` and its passport. Raises ConversionError, UnsupportedError."""
        trained = None
        if request.is_trained:
            from edgekit.converters.onnx_trained import without_training

            trained = without_training(request)
        if self._float is None:
            self._float = translated(trained.program if trained is not None else request.program)
        path = request.output_dir / f"model{Format.ONNX.suffix}"
        try:
            model, notes, calibration, reasons = _written(self._float, request, trained)
            _save(model, path)
        except EdgekitError:
            raise
        except OSError:
            raise  # a full disk is told by the worker
        except Exception as e:  # onnx and onnxruntime raise ValueError, RuntimeError, Fail, … by step
            raise ConversionError(
                f"{type(e).__name__}: {str(e)[:1000]}", backend="onnx", stage=f"quantize {request.scheme}"
            ) from e
        facts = _told(path, reasons, self._float.origins)
        return assemble(
            request,
            path,
            Format.ONNX,
            tools=_TOOLS,
            notes=(*self._float.notes, *notes),
            calibration=calibration,
            facts=facts,
        )


Written = tuple[Any, tuple[str, ...], CalibrationFacts | None, dict[str, str]]


def _written(source: FloatModel, request: ConversionRequest, trained: TrainedProgram | None) -> Written:
    """(model, notes, how ranges were found, why nodes are in float)."""
    if request.scheme is Scheme.FP32:
        return source.model, (), None, {}
    if not request.scheme.is_static:
        model, notes = _narrowed(source, request)
        return model, notes, None, {}
    from edgekit.converters.onnx_static import quantized_statically

    learned = None
    if trained is not None:
        from edgekit.converters.onnx_trained import as_file

        learned = as_file(trained, source)
    made = quantized_statically(source, request, learned)
    notes = (_SATURATION,) if request.scheme is Scheme.STATIC_W8A8 else (_NOTES[request.scheme],)
    return made.model, (*notes, *made.notes), made.facts, made.reasons


def _narrowed(source: FloatModel, request: ConversionRequest) -> tuple[Any, tuple[str, ...]]:
    """The model with weights in fewer bits, and what is to be told of it. Raises UnsupportedError where none are."""
    import onnx

    from edgekit.converters.onnx_graph import OnnxGraph
    from edgekit.converters.onnx_rewrites import gemm_as_dense

    copy = onnx.ModelProto()
    copy.CopyFrom(source.model)
    graph = OnnxGraph(copy)
    kept: list[str] = []
    if request.scheme is Scheme.FP16:
        from edgekit.converters.onnx_weights import halve_weights

        count, kept = halve_weights(graph)
    else:
        excluded = _float_nodes(source, request)
        gemm_as_dense(graph)
        count = _quantized_weights(graph, request.scheme, excluded)
    if not count:
        problem = Problem(
            backend="onnx",
            message=f"{request.scheme} would change nothing of this model: it has no weights that this scheme takes",
            hint="convert it to fp32" + ("" if request.scheme is Scheme.FP16 else ", weight_w8 or fp16"),
        )
        raise UnsupportedError((problem,))
    notes = [_NOTES[request.scheme]]
    if kept:
        notes.append(f"kept in float32, beyond what float16 holds: {', '.join(sorted(kept)[:10])}")
    if request.quantization.bias_correction and request.scheme is not Scheme.FP16:
        notes.append("biases are corrected by static schemes only")
    return graph.model, tuple(notes)


def _float_nodes(source: FloatModel, request: ConversionRequest) -> set[str]:
    """Nodes that rules keep in float; a rule about activations cannot be followed here."""
    from edgekit.artifact import RuleAction
    from edgekit.converters.onnx_rules import file_rules, unfollowed

    for rule in request.quantization.rules:
        if rule.action is not RuleAction.FLOAT:
            raise unfollowed(rule, f"activations have no fixed ranges in {request.scheme}")
    return file_rules(request.program, request.quantization.rules, source.origins).float_nodes


def _quantized_weights(graph: OnnxGraph, scheme: Scheme, excluded: set[str]) -> int:
    from edgekit.converters.onnx_dynamic import quantize_on_the_fly
    from edgekit.converters.onnx_weights import WEIGHTED, dequantize_weights, pack_weights

    if scheme is Scheme.DYNAMIC_W8:
        return quantize_on_the_fly(graph, excluded=excluded)
    if scheme is Scheme.WEIGHT_W8:
        return dequantize_weights(graph, WEIGHTED, excluded=excluded)
    graph.raise_opset(21)
    return pack_weights(graph, excluded=excluded)


def _save(model: Any, path: Path) -> None:
    """Write the file, types of its values left out: every reader infers them, and new ones would lack them."""
    import onnx

    data = onnx.ModelProto()
    data.CopyFrom(model)
    del data.graph.value_info[:]
    path.write_bytes(data.SerializeToString(deterministic=True))


def _told(path: Path, reasons: Mapping[str, str], origins: Mapping[str, Origin]) -> FileFacts:
    """What the file says, with what is known here of its nodes: why they are in float and where they come from."""
    from edgekit.converters.passports.reader import read_facts

    facts = read_facts(path, Format.ONNX)

    def known(ops: Any) -> Any:
        return tuple(
            op.model_copy(update={"where": _place(op.where, origins), "reason": reasons.get(op.where) or op.reason})
            for op in ops
        )

    return facts.model_copy(update={"float_ops": known(facts.float_ops), "float_weights": known(facts.float_weights)})


def _place(name: str, origins: Mapping[str, Origin]) -> str:
    """`features.3 (node_relu)`: the user's module and the node's name."""
    origin = origins.get(name)
    return f"{origin.module} ({name})" if origin is not None and origin.module else name
