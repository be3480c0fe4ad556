"""`edgekit convert`: a workload to artifacts with passports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgekit.cli.app import app, fail
from edgekit.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgekit.artifact import Artifact
    from edgekit.converters.target_run import ConversionOptions

_QUANTIZATION, _SHAPES, _LIMITS = "Quantization", "Shapes and layout", "Limits"


@app.command(epilog="Example: edgekit convert workload.py:workload --to tflite,onnx --scheme fp32,static_w8a8 -o out")
def convert(
    workload: Annotated[str, typer.Argument(help="module:function or path/to/file.py:function.")],
    to: Annotated[
        str, typer.Option("--to", help="Converters, comma-separated; `edgekit converters` lists them.")
    ] = "tflite,executorch,onnx",
    scheme: Annotated[str, typer.Option("--scheme", help="Schemes, comma-separated.")] = "fp32,static_w8a8",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the artifacts.")] = Path("artifacts"),
    params: Annotated[
        list[str] | None, typer.Option("--param", help="A parameter of the workload: name=value.")
    ] = None,
    calibration: Annotated[int, typer.Option(help="Calibration samples.", min=1, rich_help_panel=_QUANTIZATION)] = 200,
    verification: Annotated[
        int, typer.Option(help="Held-out samples of the check after conversion.", min=1, rich_help_panel=_QUANTIZATION)
    ] = 100,
    ranges: Annotated[
        str,
        typer.Option(
            help="Activation ranges: auto (the best of all, measured), minmax, percentile, mse.",
            rich_help_panel=_QUANTIZATION,
        ),
    ] = "auto",
    percentile: Annotated[
        float, typer.Option(help="Per cent of the values kept by --ranges percentile.", rich_help_panel=_QUANTIZATION)
    ] = 99.99,
    bias_correction: Annotated[
        bool,
        typer.Option("--bias-correction", help="Shift biases by the mean error.", rich_help_panel=_QUANTIZATION),
    ] = False,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="An exception for a node or submodule: NODE=float|int16|minmax|percentile|mse.",
            rich_help_panel=_QUANTIZATION,
        ),
    ] = None,
    io_dtype: Annotated[
        str,
        typer.Option(help="Inputs and outputs of full-integer TFLite: int8 or float32.", rich_help_panel=_QUANTIZATION),
    ] = "int8",
    allow_lossy: Annotated[
        bool,
        typer.Option(
            "--allow-lossy",
            help="Keep an artifact below its scheme's fidelity floor, marked.",
            rich_help_panel=_QUANTIZATION,
        ),
    ] = False,
    input_layout: Annotated[
        str | None, typer.Option(help="Layout of image inputs: nchw or nhwc.", rich_help_panel=_SHAPES)
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(help="A free axis: INPUT:AXIS=MIN..MAX[:NAME], 0:0=1..8.", rich_help_panel=_SHAPES),
    ] = None,
    signature: Annotated[
        list[str] | None,
        typer.Option(help="A further entry point at another size: NAME=1x3x64x64[,…].", rich_help_panel=_SHAPES),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Conversions at a time.", min=1, rich_help_panel=_LIMITS)] = 2,
    timeout: Annotated[
        float, typer.Option(help="Seconds allowed for one converter.", min=1, rich_help_panel=_LIMITS)
    ] = 900.0,
    memory: Annotated[
        int | None, typer.Option(help="MB of memory allowed for one converter.", min=64, rich_help_panel=_LIMITS)
    ] = None,
    flash_kb: Annotated[
        int | None, typer.Option(help="tflite-micro: flash for the model, KiB.", min=1, rich_help_panel=_LIMITS)
    ] = None,
    ram_kb: Annotated[
        int | None, typer.Option(help="tflite-micro: RAM for the arena, KiB.", min=1, rich_help_panel=_LIMITS)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the passports as JSON.")] = False,
) -> int:
    """Convert a workload's model (as it is, untrained or trained) to artifacts with passports."""
    from edgekit.api import quantization_options
    from edgekit.converters.base import MicroBudget
    from edgekit.converters.shapes import parse_dynamic_axis
    from edgekit.converters.target_run import ConversionOptions

    options = ConversionOptions(
        quantization=quantization_options(
            io_dtype=_io_dtype(io_dtype),
            ranges=ranges,
            percentile=percentile,
            bias_correction=bias_correction,
            rules=dict(_pair(text, "--rule", "NODE=ACTION") for text in rule or ()),
        ),
        input_layout=input_layout,
        dynamic=tuple(parse_dynamic_axis(text) for text in dynamic or ()),
        micro=MicroBudget(flash_kb=flash_kb, ram_kb=ram_kb),
        jobs=jobs,
        timeout_seconds=timeout,
        memory_bytes=None if memory is None else memory * 1_000_000,
        allow_lossy=allow_lossy,
    )
    signatures = dict(_signature(text) for text in signature or ())
    return _convert(
        options,
        as_json=as_json,
        workload=workload,
        params=workload_params(params),
        targets=names(to),
        schemes=names(scheme),
        output_dir=output,
        calibration=calibration,
        verification=verification,
        signatures=signatures,
    )


def _convert(options: ConversionOptions, *, as_json: bool, **what: Any) -> int:
    from rich.console import Console

    from edgekit.api import convert_workload

    with Console(stderr=True).status("exporting") as status:
        outcome = convert_workload(
            options=options,
            on_progress=lambda p: status.update(f"{p.target} {p.scheme or ''} · {p.stage}"),
            **what,
        )
    if as_json:
        print(json.dumps([artifact.passport.model_dump(mode="json") for artifact in outcome.artifacts]))
    elif outcome.artifacts:
        Console().print(artifact_table(outcome.artifacts))
        print(f"in {what['output_dir']}")
    different = {str(failure.error): failure.error for failure in outcome.failures}
    return max((fail(error, as_json=False) for error in different.values()), default=0)


def names(text: str) -> list[str]:
    """The names in a comma-separated list."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise UserError("an empty list; name at least one, separated by commas")
    return found


def _io_dtype(text: str) -> Literal["int8", "float32"]:
    known: dict[str, Literal["int8", "float32"]] = {"int8": "int8", "float32": "float32"}
    if text in known:
        return known[text]
    raise UserError(f"--io-dtype '{text}' is not one of int8, float32")


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise UserError(f"{option} {text}: write it as {form}")
    return name.strip(), value.strip()


def _signature(text: str) -> tuple[str, tuple[tuple[int, ...], ...]]:
    name, value = _pair(text, "--signature", "NAME=1x3x64x64")
    try:
        return name, tuple(tuple(int(n) for n in shape.split("x")) for shape in value.split(","))
    except ValueError as e:
        raise UserError(f"--signature {text}: '{value}' is no list of shapes", hint="large=1x3x64x64") from e


def workload_params(texts: list[str] | None) -> dict[str, Any]:
    """`name=value` options as the workload's keyword arguments, read as YAML."""
    import yaml

    params = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--param {text}: write it as name=value")
        params[name] = yaml.safe_load(value)
    return params


def artifact_table(artifacts: tuple[Artifact, ...]) -> RenderableType:
    """One line an artifact: what it is, how big, how close to PyTorch, what stayed float."""
    from rich.table import Table

    from edgekit.cli.inspecting import sqnr
    from edgekit.report import quantities

    table = Table(box=None, pad_edge=False)
    for heading in ("artifact", "size", "SQNR", "left float", "transposes"):
        table.add_column(heading, overflow="fold")
    for artifact in artifacts:
        passport = artifact.passport
        is_quantized = passport.scheme is not None and not passport.scheme.is_float
        table.add_row(
            passport.name + (" [yellow]![/]" if passport.warnings else ""),
            quantities.size(passport.size_bytes),
            sqnr(passport),
            str(len(passport.unquantized_ops)) if is_quantized else "-",
            "-" if passport.transposes is None else str(passport.transposes),
        )
    if any(artifact.passport.warnings for artifact in artifacts):
        table.caption = "[yellow]![/] has warnings: edgekit inspect FOLDER/ARTIFACT"
        table.caption_justify = "left"
    return table
