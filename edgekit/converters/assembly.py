"""The last steps every backend shares: read the file just written, run it against PyTorch, write its passport."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, Format, Passport, Scheme, TensorSpec
from edgekit.converters.base import Capability, ConversionRequest
from edgekit.converters.calibration import input_specs
from edgekit.converters.fidelity import measure_fidelity
from edgekit.converters.host_runtimes import load_runtime, runtime_name
from edgekit.converters.passports.facts import FileFacts
from edgekit.converters.passports.reader import read_facts
from edgekit.exporting import count_macs, count_parameters
from edgekit.schema import sha256_of

if TYPE_CHECKING:
    import numpy as np

__all__ = ["assemble", "table", "tool_versions"]


def table(supported: dict[Scheme, str], unsupported: dict[Scheme, str]) -> tuple[Capability, ...]:
    """Every scheme in order, supported or not, with its note."""
    return tuple(
        Capability(scheme=s, supported=s in supported, note=supported.get(s) or unsupported.get(s) or "not written yet")
        for s in Scheme
    )


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
    request: ConversionRequest, path: Path, kind: Format, *, tools: Sequence[str], notes: Sequence[str] = ()
) -> Artifact:
    """The artifact of a model file just written at `path`, its passport saved beside it."""
    facts = read_facts(path, kind)
    held_out = bool(request.verification)
    samples = request.verification or request.calibration or _example(request)
    fidelity = None
    if samples:
        source = "held-out" if held_out else "calibration" if request.calibration else "example"
        fidelity = measure_fidelity(
            request.program,
            samples,
            load_runtime(path, kind, threads=request.threads),
            names=[spec.name for spec in facts.outputs],
            source=source,
            runtime=runtime_name(kind),
        )
    passport = Passport(
        name=f"{request.name}.{request.scheme}.{kind}",
        format=kind,
        scheme=request.scheme,
        file=path.name,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        inputs=_with_layouts(facts, request),
        outputs=facts.outputs,
        ops=facts.ops,
        unquantized_ops=facts.float_ops if request.scheme.value.startswith("static") else (),
        delegates=facts.delegates,
        parameters=count_parameters(request.program),
        macs=count_macs(request.program),
        fidelity=fidelity,
        minimum_runtime=facts.minimum_runtime,
        tool_versions=tool_versions(("torch", *tools)),
        lineage=request.lineage,
        notes=tuple(notes),
        warnings=(*facts.warnings, *_dtype_changes(facts, request)),
    )
    artifact = Artifact(path=path, passport=passport)
    artifact.save_passport()
    return artifact


def _example(request: ConversionRequest) -> tuple[tuple[np.ndarray, ...], ...]:
    """The program's own example inputs as one sample; empty when it carries none."""
    if request.program.example_inputs is None:
        return ()
    args, _ = request.program.example_inputs
    return (tuple(value.detach().numpy() for value in args),)


def _with_layouts(facts: FileFacts, request: ConversionRequest) -> tuple[TensorSpec, ...]:
    layouts = (*request.input_layouts, *([None] * len(facts.inputs)))
    return tuple(
        spec.model_copy(update={"layout": layout}) for spec, layout in zip(facts.inputs, layouts, strict=False)
    )


def _dtype_changes(facts: FileFacts, request: ConversionRequest) -> list[str]:
    """A sentence for each input whose type in the file is another than in the model (int8 I/O is meant, not told)."""
    changes = []
    for spec, original in zip(facts.inputs, input_specs(request.program), strict=False):
        if spec.dtype != original.dtype and spec.quantization is None:
            changes.append(f"input '{spec.name}' is {spec.dtype} in the file, {original.dtype} in the model")
    return changes
