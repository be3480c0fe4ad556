"""`edgekit pack` and `edgekit unpack`: model files made small for delivery, and the same bytes again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.app import app

if TYPE_CHECKING:
    from edgekit.packing import PackedFile, PackReport

_MAX_MB = 1024


@app.command(epilog="Example: edgekit pack artifacts/student.fp32.tflite -o student.ekpack")
def pack(
    source: Annotated[Path, typer.Argument(help="An artifact's folder, a model file, or a student's folder.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The pack; else beside where you are.")] = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="The version the device has: only the difference is packed.")
    ] = None,
    passport: Annotated[
        bool, typer.Option("--passport/--no-passport", help="Whether passport.json or student.json goes along.")
    ] = True,
    lzma: Annotated[bool, typer.Option("--lzma/--no-lzma", help="Off for a Python without the lzma module.")] = True,
    unpacker: Annotated[
        Path | None, typer.Option("--unpacker", help="Write the script that a board needs to this file, too.")
    ] = None,
    max_mb: Annotated[int, typer.Option(help="MiB a pack may expand to.", min=1)] = _MAX_MB,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> int:
    """Pack a model for delivery: pruned and shared weights entropy-coded, everything bit for bit."""
    from edgekit.packing import PACK_SUFFIX
    from edgekit.packing import pack as write_pack

    target = output or Path(source.resolve().name + PACK_SUFFIX)
    report = write_pack(source, target, base=base, with_passport=passport, use_lzma=lzma, max_bytes=max_mb << 20)
    if unpacker is not None:
        _write_unpacker(unpacker)
    if as_json:
        print(json.dumps(_as_record(report)))
    else:
        _show(report.files)
        against = f", as a difference from {base}" if base else ""
        print(f"{report.path}: {report.size_bytes:,} bytes, {report.ratio:.1f} times smaller{against}")
    return 0


@app.command(epilog="Example: edgekit unpack student.ekpack -o expanded")
def unpack(
    packed: Annotated[Path, typer.Argument(metavar="PACK", help="A file that `edgekit pack` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")],
    base: Annotated[
        list[Path] | None, typer.Option("--base", help="The version a difference was made from: file, folder or pack.")
    ] = None,
    max_mb: Annotated[int, typer.Option(help="Refuse a pack that expands to more MiB.", min=1)] = _MAX_MB,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there and differ.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the files as JSON.")] = False,
) -> int:
    """Expand a pack; each file has the sha256 that was packed, or nothing is written."""
    from edgekit.packing import unpack as expand_pack

    files = expand_pack(packed, output, bases=base or (), max_bytes=max_mb << 20, force=force)
    if as_json:
        print(json.dumps([_file_record(file) for file in files]))
    else:
        _show(files)
        print(f"in {output}")
    return 0


def _show(files: tuple[PackedFile, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("file", "bytes", "sha256", box=None, pad_edge=False)
    for file in files:
        table.add_row(file.name, f"{file.size_bytes:,}", file.sha256[:16])
    Console().print(table)


def _file_record(file: PackedFile) -> dict[str, object]:
    return {"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256}


def _as_record(report: PackReport) -> dict[str, object]:
    return {
        "pack": str(report.path),
        "size_bytes": report.size_bytes,
        "original_bytes": report.original_bytes,
        "base": None if report.base is None else str(report.base),
        "files": [_file_record(file) for file in report.files],
    }


def _write_unpacker(path: Path) -> None:
    from edgekit.errors import HostError
    from edgekit.packing import unpacker_source
    from edgekit.schema import write_atomically

    try:
        write_atomically(path, unpacker_source())
    except OSError as e:
        raise HostError(f"{path}: cannot be written: {e}") from e
