"""`edgekit inspect`: an artifact's passport, as a person reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.app import app
from edgekit.report.visible import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgekit.artifact import CalibrationFacts, Fidelity, OutputFidelity, Passport, TensorSpec


@app.command(epilog="Example: edgekit inspect artifacts/student.static_w8a8.tflite")
def inspect(
    artifact: Annotated[Path, typer.Argument(help="An artifact's folder, or a .tflite, .pte or .onnx file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the passport as JSON.")] = False,
) -> int:
    """Show an artifact's passport: inputs and outputs, ops by type, what stayed float, tools, lineage."""
    from rich.console import Console

    import edgekit

    passport = edgekit.inspect(artifact)
    if as_json:
        print(passport.model_dump_json())
    else:
        Console().print(_passport_view(passport))
    return 0


def _passport_view(passport: Passport) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from edgekit.cli.shown import shown

    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(passport):
        facts.add_row(Text(name, "bold"), Text(visible(value)))
    tensors = Table("", "name", "shape", "dtype", "layout", "scale", "zero point", box=None, pad_edge=False)
    for kind, specs in (("in", passport.inputs), ("out", passport.outputs)):
        for spec in specs:
            tensors.add_row(kind, *(shown(cell) for cell in _tensor_cells(spec)))
    ops = Table("op", "dtype", "count", "version", box=None, pad_edge=False)
    for op in passport.ops:
        ops.add_row(shown(op.name), op.dtype, str(op.count), "" if op.version is None else str(op.version))
    parts: list[RenderableType] = [facts, Text(), tensors, Text(), ops]
    if passport.scheme is not None and not passport.scheme.is_float:
        parts += [Text(), _left_float(passport)]
    parts += [Text(visible(f"note: {note}"), "dim") for note in passport.notes]
    for warning in passport.warnings:
        parts.append(Text(visible(f"warning: {warning}"), "yellow"))
    return Group(*parts)


def sqnr(passport: Passport) -> str:
    if passport.fidelity is None:
        return "not checked"
    values = [output.sqnr_db for output in passport.fidelity.outputs if output.sqnr_db is not None]
    return f"{min(values):.1f} dB" if values else "exact"


def _left_float(passport: Passport) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from edgekit.cli.shown import shown

    if not passport.unquantized_ops:
        return Text("No op was left in float.", "green")
    left = Table("left float", "where", "why", box=None, pad_edge=False)
    for op in passport.unquantized_ops:
        left.add_row(shown(op.op), shown(op.where), shown(op.reason))
    return left


def _facts(passport: Passport) -> list[tuple[str, str]]:
    from edgekit.report import quantities, sections

    facts = [
        ("name", passport.name),
        ("format", passport.format.value),
        ("scheme", passport.scheme.value if passport.scheme else "not told by the file"),
        ("size", f"{quantities.size(passport.size_bytes)} ({passport.size_bytes} bytes)"),
        ("sha256", passport.sha256),
    ]
    if passport.parameters is not None:
        facts.append(("parameters", f"{passport.parameters:,}"))
    if passport.macs is not None:
        facts.append(("MACs", f"{passport.macs:,}"))
    for delegate in passport.delegates:
        facts.append(("delegate", f"{delegate.name}: {delegate.nodes} of {delegate.total} nodes"))
    facts += _graph_facts(passport)
    for fidelity in (passport.fidelity, passport.calibration_fidelity):
        if fidelity is not None:
            facts += [(f"{fidelity.source} inputs", _output_line(output, fidelity)) for output in fidelity.outputs]
    if passport.calibration is not None:
        facts.append(("ranges", _calibration_line(passport.calibration)))
    for name, version in passport.minimum_runtime.items():
        facts.append(("needs", f"{name} {version} or newer"))
    facts.extend(("made by", f"{name} {version}") for name, version in sorted(passport.tool_versions.items()))
    for step in passport.lineage:
        facts.append(("lineage", f"{step.step}: {step.summary}"))
        if step.proof is not None:
            facts.append(("paid?", f"{step.step}: {sections.judged_text(step.proof)}"))
    return facts


def _graph_facts(passport: Passport) -> list[tuple[str, str]]:
    """What the file does at every inference besides computing, and what it takes."""
    from edgekit.report import quantities

    facts = []
    if passport.transposes is not None:
        facts.append(("transposes", f"{passport.transposes} of activations, at every inference"))
    if passport.boundaries is not None:
        facts.append(("boundaries", f"{passport.boundaries} quantize or dequantize ops on activations"))
    if passport.peak_activation_bytes is not None:
        facts.append(("peak activations", quantities.size(passport.peak_activation_bytes)))
    if passport.micro is not None:
        micro = passport.micro
        facts.append(("arena", f"{micro.arena_bytes} bytes in TensorFlow Lite Micro on this host"))
        facts.append(("flash", f"{micro.flash_bytes} bytes, and the kernels {', '.join(micro.kernels)}"))
    facts.extend(("entry point", f"{entry.name}: {_shapes(entry.inputs)}") for entry in passport.signatures)
    facts.extend(("with", f"{extra.path} ({quantities.size(extra.size_bytes)})") for extra in passport.extra_files[:8])
    if len(passport.extra_files) > 8:
        facts.append(("with", f"{len(passport.extra_files) - 8} more files"))
    return facts


def _shapes(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join("×".join(map(str, spec.shape)) or "scalar" for spec in specs)


def _output_line(output: OutputFidelity, fidelity: Fidelity) -> str:
    """`output_0: 38.9 dB SQNR, cosine 0.99994, max error 0.021, agreement 99.0% over 100`."""
    if output.exact:
        return f"{output.name}: equal to the bit over {fidelity.samples}"
    parts = [f"{output.sqnr_db:.1f} dB SQNR" if output.sqnr_db is not None else "no SQNR"]
    if output.cosine is not None:
        parts.append(f"cosine {output.cosine:.5f}")
    if output.max_abs_error is not None:
        parts.append(f"max error {output.max_abs_error:.3g}")
    if output.agreement is not None:
        parts.append(f"agreement {output.agreement:.1%}")
    if output.non_finite:
        parts.append(f"{output.non_finite} NaN or infinite")
    return f"{output.name}: {', '.join(parts)} over {fidelity.samples}"


def _calibration_line(calibration: CalibrationFacts) -> str:
    told = f"{calibration.rule}, {calibration.samples} samples"
    if calibration.compared:
        told += " (" + ", ".join(f"{name} {value:.1f} dB" for name, value in calibration.compared.items()) + ")"
    if calibration.bias_correction:
        told += ", biases corrected"
    for rule in calibration.rules:
        told += f"; {rule.node} {rule.action}"
    return told


def _tensor_cells(spec: TensorSpec) -> tuple[str, str, str, str, str, str]:
    quantization = spec.quantization
    scale = zero = ""
    if quantization is not None:
        scale = f"{quantization.scale[0]:.6g}" + (" …" if len(quantization.scale) > 1 else "")
        zero = str(quantization.zero_point[0])
    return spec.name, "×".join(map(str, spec.shape)) or "scalar", spec.dtype, spec.layout or "", scale, zero
