"""`edgekit convert` and `edgekit inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.app import app, fail
from edgekit.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgekit.artifact import Artifact, Passport, TensorSpec


@app.command(epilog="Example: edgekit convert workload.py:workload --to tflite,onnx --scheme fp32,static_w8a8 -o out")
def convert(
    workload: Annotated[str, typer.Argument(help="module:function or path/to/file.py:function.")],
    to: Annotated[str, typer.Option("--to", help="Formats, comma-separated.")] = "tflite,executorch,onnx",
    scheme: Annotated[str, typer.Option("--scheme", help="Schemes, comma-separated.")] = "fp32,static_w8a8",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the artifacts.")] = Path("artifacts"),
    calibration: Annotated[int, typer.Option(help="Calibration samples.", min=1)] = 200,
    io_dtype: Annotated[str, typer.Option(help="Inputs and outputs of full-integer TFLite: int8 or float32.")] = "int8",
    params: Annotated[
        list[str] | None, typer.Option("--param", help="A parameter of the workload: name=value.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Conversions at a time.", min=1)] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds allowed for one conversion.", min=1)] = 900.0,
    allow_lossy: Annotated[bool, typer.Option(help="Keep an artifact below its scheme's fidelity floor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the passports as JSON.")] = False,
) -> int:
    """Convert a workload's model (as it is, untrained or trained) to artifacts with passports."""
    from rich.console import Console

    from edgekit.api import convert_workload
    from edgekit.converters.base import QuantizationOptions
    from edgekit.converters.conversion import ConversionOptions

    errors = Console(stderr=True)
    with errors.status("exporting") as status:
        outcome = convert_workload(
            workload,
            params=_params(params),
            targets=_names(to),
            schemes=_names(scheme),
            output_dir=output,
            calibration=calibration,
            options=ConversionOptions(
                quantization=QuantizationOptions(io_dtype=io_dtype),
                jobs=jobs,
                timeout_seconds=timeout,
                allow_lossy=allow_lossy,
            ),
            on_progress=lambda p: status.update(f"{p.target} {p.scheme or ''} · {p.stage}"),
        )
    if as_json:
        print(json.dumps([artifact.passport.model_dump(mode="json") for artifact in outcome.artifacts]))
    elif outcome.artifacts:
        Console().print(_artifact_table(outcome.artifacts))
    return max((fail(failure.error, as_json=False) for failure in outcome.failures), default=0)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("an empty list; name at least one, separated by commas")
    return names


def _params(texts: list[str] | None) -> dict[str, Any]:
    import yaml

    params = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--param {text}: write it as name=value")
        params[name] = yaml.safe_load(value)
    return params


def _artifact_table(artifacts: tuple[Artifact, ...]) -> RenderableType:
    from rich.table import Table

    from edgekit.report import quantities

    table = Table(box=None, pad_edge=False)
    for heading in ("artifact", "size", "SQNR", "left float", "path"):
        table.add_column(heading, overflow="fold")
    for artifact in artifacts:
        passport = artifact.passport
        table.add_row(
            passport.name,
            quantities.size(passport.size_bytes),
            _sqnr(passport),
            str(len(passport.unquantized_ops)) if passport.scheme not in (None, "fp32") else "-",
            str(artifact.path),
        )
    return table


def _sqnr(passport: Passport) -> str:
    if passport.fidelity is None:
        return "not checked"
    values = [output.sqnr_db for output in passport.fidelity.outputs if output.sqnr_db is not None]
    return f"{min(values):.1f} dB" if values else "exact"


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
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(passport):
        facts.add_row(Text(name, "bold"), Text(value))
    tensors = Table("", "name", "shape", "dtype", "layout", "scale", "zero point", box=None, pad_edge=False)
    for kind, specs in (("in", passport.inputs), ("out", passport.outputs)):
        for spec in specs:
            tensors.add_row(kind, *(escape(cell) for cell in _tensor_cells(spec)))
    ops = Table("op", "dtype", "count", "version", box=None, pad_edge=False)
    for op in passport.ops:
        ops.add_row(escape(op.name), op.dtype, str(op.count), "" if op.version is None else str(op.version))
    parts: list[RenderableType] = [facts, Text(), tensors, Text(), ops]
    if passport.scheme not in (None, "fp32"):
        parts += [Text(), _left_float(passport)]
    for warning in passport.warnings:
        parts.append(Text(f"warning: {warning}", "yellow"))
    return Group(*parts)


def _left_float(passport: Passport) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    if not passport.unquantized_ops:
        return Text("No op was left in float.", "green")
    left = Table("left float", "where", "why", box=None, pad_edge=False)
    for op in passport.unquantized_ops:
        left.add_row(escape(op.op), escape(op.where), escape(op.reason))
    return left


def _facts(passport: Passport) -> list[tuple[str, str]]:
    from edgekit.report import quantities

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
    if passport.fidelity is not None:
        fidelity = passport.fidelity
        facts.append(("fidelity", f"{_sqnr(passport)} over {fidelity.samples} {fidelity.source} inputs"))
    for name, version in passport.minimum_runtime.items():
        facts.append(("needs", f"{name} {version} or newer"))
    facts.extend(("made by", f"{name} {version}") for name, version in sorted(passport.tool_versions.items()))
    facts.extend(("lineage", f"{step.step}: {step.summary}") for step in passport.lineage)
    return facts


def _tensor_cells(spec: TensorSpec) -> tuple[str, str, str, str, str, str]:
    quantization = spec.quantization
    scale = zero = ""
    if quantization is not None:
        scale = f"{quantization.scale[0]:.6g}" + (" …" if len(quantization.scale) > 1 else "")
        zero = str(quantization.zero_point[0])
    return spec.name, "×".join(map(str, spec.shape)) or "scalar", spec.dtype, spec.layout or "", scale, zero
