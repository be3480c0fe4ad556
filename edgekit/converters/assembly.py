"""The last steps every backend shares: read the file just written, run it against PyTorch, write its passport."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgekit.artifact import (
    Artifact,
    CalibrationFacts,
    Fidelity,
    Format,
    Passport,
    Scheme,
    Signature,
    TensorSpec,
    UnquantizedOp,
)
from edgekit.converters.base import ConversionRequest
from edgekit.converters.calibration import input_specs
from edgekit.converters.fidelity import Samples, measure_fidelity, probe_inputs
from edgekit.converters.host_runtimes import load_runtime, runtime_name
from edgekit.converters.passports.facts import FileFacts
from edgekit.converters.passports.reader import read_facts
from edgekit.exporting import count_macs, count_parameters
from edgekit.schema import sha256_of

__all__ = ["assemble", "left_float", "tool_versions", "verified"]

MAX_CALIBRATION = 32
"""Calibration samples that are run again to compare with held-out ones."""


def tool_versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed version of each package (`edgekit` first); one that is not installed is left out."""
    versions = {}
    for package in ("edgekit", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def assemble(
    request: ConversionRequest,
    path: Path,
    kind: Format,
    *,
    tools: Sequence[str],
    notes: Sequence[str] = (),
    calibration: CalibrationFacts | None = None,
    facts: FileFacts | None = None,
    signatures: Sequence[Signature] = (),
) -> Artifact:
    """The artifact of a model file just written at `path`, its passport saved beside it.

    `facts` is what the file says, where the backend has read (and added to) it already; `signatures` are its entry
    points, where there are several, each with what it answered.
    """
    facts = facts or read_facts(path, kind)
    passport = Passport(
        name=f"{request.name}.{request.scheme}.{request.backend or kind}",
        format=kind,
        scheme=request.scheme,
        file=path.name,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        inputs=_with_layouts(facts.inputs, request),
        outputs=facts.outputs,
        ops=facts.ops,
        unquantized_ops=left_float(facts, request.scheme),
        delegates=facts.delegates,
        parameters=count_parameters(request.program),
        macs=count_macs(request.program, _one_inference(request)),
        **verified(request, path, kind, facts),
        minimum_runtime=facts.minimum_runtime,
        tool_versions=tool_versions(("torch", *tools)),
        lineage=request.lineage,
        notes=tuple(notes),
        warnings=(*facts.warnings, *_dtype_changes(facts, request)),
        backend=request.backend or kind.value,
        calibration=calibration,
        transposes=facts.transposes,
        boundaries=facts.boundaries,
        peak_activation_bytes=facts.peak_activation_bytes,
        signatures=tuple(signatures) or facts.signatures,
    )
    artifact = Artifact(path=path, passport=passport)
    artifact.save_passport()
    return artifact


def left_float(facts: FileFacts, scheme: Scheme | None) -> tuple[UnquantizedOp, ...]:
    """What counts as left in float: under a static scheme every float op, else every op with float weights."""
    if scheme is None or scheme.is_float:
        return ()
    return facts.float_ops if scheme.is_static else facts.float_weights


def verified(request: ConversionRequest, path: Path, kind: Format, facts: FileFacts) -> dict[str, Any]:
    """The fidelity fields of a passport: the file run on held-out and calibration inputs, or on made ones."""
    run = load_runtime(path, kind, threads=request.threads)

    def measured(samples: Samples, source: str) -> Fidelity:
        return measure_fidelity(
            request.program,
            samples,
            run,
            names=[spec.name for spec in facts.outputs],
            source=source,
            runtime=runtime_name(kind),
        )

    on_calibration = measured(request.calibration[:MAX_CALIBRATION], "calibration") if request.calibration else None
    if request.verification:
        return {"fidelity": measured(request.verification, "held-out"), "calibration_fidelity": on_calibration}
    return {"fidelity": on_calibration or measured(probe_inputs(request.program), "random")}


def _one_inference(request: ConversionRequest) -> Any:
    """The inputs one inference is counted on: a real sample, since a free axis has no size of its own."""
    import torch

    samples = request.verification or request.calibration
    return tuple(torch.from_numpy(array) for array in samples[0]) if samples else None


def _with_layouts(specs: Sequence[TensorSpec], request: ConversionRequest) -> tuple[TensorSpec, ...]:
    layouts = (*request.input_layouts, *([None] * len(specs)))
    return tuple(spec.model_copy(update={"layout": layout}) for spec, layout in zip(specs, layouts, strict=False))


def _dtype_changes(facts: FileFacts, request: ConversionRequest) -> list[str]:
    """A sentence for each input whose type in the file is another than in the model (int8 I/O is meant, not told)."""
    changes = []
    for spec, original in zip(facts.inputs, input_specs(request.program), strict=False):
        if spec.dtype != original.dtype and spec.quantization is None:
            changes.append(f"input '{spec.name}' is {spec.dtype} in the file, {original.dtype} in the model")
    return changes
