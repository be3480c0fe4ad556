"""ExecuTorch: lowered to XNNPACK; int8 by PT2E with XNNPACK's own quantizer, one weight scale per channel.

Activation ranges are chosen by what they do to the model's outputs (see `ranges`). An op that XNNPACK cannot compute
in int8 as it is used here stays in float, and the passport says which and why; the file is run before it is called
done. The same program gives the same bytes on one version of the toolchain.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, CalibrationFacts, Format, Scheme, Signature, TensorSpec
from edgekit.converters.assembly import assemble
from edgekit.converters.base import Capability, ConversionRequest
from edgekit.converters.capabilities import capabilities_of
from edgekit.converters.executorch_attempts import Made, made_from
from edgekit.converters.executorch_graphs import free_extents, ready
from edgekit.converters.executorch_kernels import functional
from edgekit.converters.fidelity import measure_fidelity, probe_inputs
from edgekit.converters.host_runtimes import executorch_run, runtime_name
from edgekit.converters.lowerings import find_problems
from edgekit.converters.passports.executorch import read_executorch
from edgekit.converters.passports.facts import FileFacts
from edgekit.converters.provenance import source_line
from edgekit.errors import ConversionError, EdgekitError, Problem, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

__all__ = ["ExecuTorchConverter"]

_TOOLS = ("executorch", "torchao")


class ExecuTorchConverter:
    """Writes `.pte`."""

    format = Format.EXECUTORCH

    def capabilities(self) -> tuple[Capability, ...]:
        """Every scheme; needs no toolchain installed."""
        return capabilities_of("executorch")

    def check(self, request: ConversionRequest) -> tuple[Problem, ...]:
        """Every op of the program that neither XNNPACK nor executorch's kernels have, and state kept between calls."""
        return (*_state_problems(request.program), *find_problems(request.program, "executorch"))

    def convert(self, request: ConversionRequest) -> Artifact:
        """Write `model.pte` and its passport. Raises ConversionError, UnsupportedError, UserError."""
        path = request.output_dir / f"model{Format.EXECUTORCH.suffix}"
        try:
            programs = {"forward": request.program, **request.signatures}
            made = made_from(request, {name: ready(program) for name, program in programs.items()}, path)
        except EdgekitError:
            raise
        except Exception as e:  # torchao and torch raise what their passes meet
            raise ConversionError(
                f"{type(e).__name__}: {str(e)[:1000]}", backend="executorch", stage=f"quantize {request.scheme}"
            ) from e
        facts = _completed(read_executorch(path, made.trace, made.left), request)
        _refuse_unchanged(facts, request, made)
        return assemble(
            request,
            path,
            Format.EXECUTORCH,
            tools=_TOOLS,
            calibration=_calibration(request, made),
            facts=facts,
            signatures=_compared(request, path, facts),
        )


def _compared(request: ConversionRequest, path: Path, facts: FileFacts) -> tuple[Signature, ...]:
    """The entry points, where there are several: each further one run against its own program."""
    found = []
    for entry in facts.signatures:
        program = request.signatures.get(entry.name)
        if program is None:  # `forward`, which the passport compares as a whole
            found.append(entry)
            continue
        fidelity = measure_fidelity(
            program,
            probe_inputs(program),
            executorch_run(path, request.threads, entry.name),
            names=[spec.name for spec in entry.outputs],
            source="random",
            runtime=runtime_name(Format.EXECUTORCH),
        )
        found.append(entry.model_copy(update={"fidelity": fidelity}))
    return tuple(found)


def _state_problems(program: ExportedProgram) -> tuple[Problem, ...]:
    """One Problem for each buffer the model writes to: the state would go on from one inference into the next."""
    program = functional(ready(program))  # as exported, an in-place op hides what it writes to
    written = dict(program.graph_signature.buffers_to_mutate)
    nodes = {node.name: node for node in program.graph.nodes}
    return tuple(
        Problem(
            backend="executorch",
            message=f"the model changes its own buffer '{buffer}' in forward",
            module=buffer.rpartition(".")[0] or None,
            source=source_line(nodes[name]) if name in nodes else None,
            hint="take the state as an input and give the new one as an output, so that the caller keeps it",
        )
        for name, buffer in written.items()
    )


def _completed(facts: FileFacts, request: ConversionRequest) -> FileFacts:
    """The facts with what the file does not say: free axes, and a runtime that is known to load it."""
    changes: dict[str, object] = {}
    if not facts.minimum_runtime:
        changes["minimum_runtime"] = {"executorch": version("executorch")}
    inputs, outputs = free_extents(request.program)
    if any(inputs):
        changes["inputs"] = _with_free_axes(facts.inputs, inputs)
        changes["outputs"] = _with_free_axes(facts.outputs, outputs)
        changes["warnings"] = (
            *facts.warnings,
            f"memory is planned for the largest inputs: {facts.peak_activation_bytes} bytes of activations, "
            "whatever the size of an inference",
        )
    return facts.model_copy(update=changes)


def _with_free_axes(specs: tuple[TensorSpec, ...], free: list[dict[int, str]]) -> tuple[TensorSpec, ...]:
    return tuple(
        spec.model_copy(update={"shape": tuple(names.get(axis, extent) for axis, extent in enumerate(spec.shape))})
        for spec, names in zip(specs, free, strict=True)
    )


def _refuse_unchanged(facts: FileFacts, request: ConversionRequest, made: Made) -> None:
    """Refuse a quantized file in which nothing is quantized."""
    if request.scheme.is_float or any(op.dtype in ("int8", "uint8", "hybrid") for op in facts.ops):
        return
    why = "; ".join(dict.fromkeys(made.left.values())) or "it has no op that XNNPACK computes in integers"
    raise UnsupportedError(
        [Problem(backend="executorch", message=f"{request.scheme} would change nothing in this model: {why}")],
        hint="convert it to fp32",
    )


def _calibration(request: ConversionRequest, made: Made) -> CalibrationFacts | None:
    if request.is_trained:
        return CalibrationFacts(samples=0, rule="trained")
    return made.calibration if request.scheme is Scheme.STATIC_W8A8 else None
