"""The converting child: `python -m edgekit.converters.worker FOLDER`; the files are described in `wire`.

One child serves one backend: imports, export lowering and the float file are shared by its schemes, while each
scheme succeeds, fails and is kept on its own.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from edgekit.artifact import Artifact, Scheme
from edgekit.converters.base import ConversionRequest, Converter
from edgekit.converters.early import TARGET_NAME
from edgekit.converters.fidelity import below_floor
from edgekit.converters.registry import load_converter
from edgekit.converters.wire import SchemeResult, WireError, WorkRequest, load_samples
from edgekit.errors import ConversionError, EdgekitError, UnsupportedError
from edgekit.exporting import load_own_program
from edgekit.isolation import enter_child, peak_rss_bytes
from edgekit.leaving import leave
from edgekit.schema import read_record, write_atomically

__all__ = ["main"]


def main(folder: Path) -> None:
    """Do the work request in `folder`, scheme by scheme."""
    enter_child()
    _import_toolchain(folder)
    while not (folder / "request.json").exists():  # a parent that dies ends this child too
        time.sleep(0.01)
    work = read_record(WorkRequest, folder / "request.json")
    try:
        _note(folder, work.schemes[0], "import")
        base = _base_request(folder, work)
        converter = load_converter(work.converter)
    except EdgekitError as e:
        for scheme in work.schemes:
            _answer(folder, SchemeResult(scheme=scheme, seconds=0.0, error=WireError.of(e)))
        return
    for scheme in work.schemes:
        _convert_one(folder, work, converter, base, scheme)


_TOOLCHAINS = {
    "tflite": ("litert_torch", "ai_edge_quantizer.quantizer", "ai_edge_litert.interpreter"),
    "executorch": ("executorch.exir", "executorch.backends.xnnpack.partition.xnnpack_partitioner"),
    "onnx": ("onnxruntime.quantization", "onnxscript", "torch.onnx"),
}


def _import_toolchain(folder: Path) -> None:
    """Import what the conversion will, while the parent still exports; what is missing is told by the conversion."""
    target = (folder / TARGET_NAME).read_text() if (folder / TARGET_NAME).exists() else ""
    for module in ("torch", *_TOOLCHAINS.get(target, ())):
        try:
            importlib.import_module(module)
        except ImportError:
            return


def _base_request(folder: Path, work: WorkRequest) -> ConversionRequest:
    import torch

    torch.set_num_threads(work.threads)
    return ConversionRequest(
        name=work.name,
        program=load_own_program(folder / "program.pt2", work.sha256),
        scheme=work.schemes[0],
        calibration=load_samples(folder / "calibration.npz") if work.has_calibration else (),
        verification=load_samples(folder / "verification.npz") if work.has_verification else (),
        output_dir=folder / "out",
        lineage=work.lineage,
        backend=work.converter,
        quantization=work.quantization,
        is_trained=work.is_trained,
        signatures={
            name: load_own_program(folder / f"signature.{index}.pt2", sha256)
            for index, (name, sha256) in enumerate(work.signatures.items())
        },
        micro=work.micro,
        input_layouts=work.input_layouts,
        threads=work.threads,
    )


def _convert_one(
    folder: Path, work: WorkRequest, converter: Converter, base: ConversionRequest, scheme: Scheme
) -> None:
    """Check and convert to one scheme and answer; an EdgekitError is an answer, anything else ends the child."""
    from dataclasses import replace

    _note(folder, scheme, "check")
    started = time.monotonic()
    output_dir = folder / "out" / scheme
    output_dir.mkdir(parents=True)
    request = replace(base, scheme=scheme, output_dir=output_dir, note=lambda stage: _note(folder, scheme, stage))
    error = None
    try:
        _refuse_obstacles(converter, replace(request, looks_for_ops=work.only_check))
        if work.only_check:
            _answer(folder, SchemeResult(scheme=scheme, seconds=time.monotonic() - started))
            return
        _note(folder, scheme, "convert")
        artifact = _converted(converter, request)
        _check_floor(artifact, work, scheme, time.monotonic() - started)
    except EdgekitError as e:
        error = WireError.of(e)
    _answer(folder, SchemeResult(scheme=scheme, seconds=time.monotonic() - started, error=error))


def _refuse_obstacles(converter: Converter, request: ConversionRequest) -> None:
    problems = converter.check(request)
    if problems:
        raise UnsupportedError(problems)


def _converted(converter: Converter, request: ConversionRequest) -> Artifact:
    """The artifact; where the toolchain fails and ops without a lowering are why, the error that names them all."""
    try:
        return converter.convert(request)
    except ConversionError as e:
        try:
            _refuse_obstacles(converter, request)
        except UnsupportedError as named:
            raise named from e
        raise


def _check_floor(artifact: Artifact, work: WorkRequest, scheme: Scheme, seconds: float) -> None:
    """Refuse an artifact too far from its model, or say so in its passport when that is allowed."""
    passport = artifact.passport
    checks = [passport.fidelity, passport.calibration_fidelity, *(entry.fidelity for entry in passport.signatures)]
    reasons = [
        f"on {check.source} inputs {reason}"
        for check in checks
        if check is not None
        for reason in below_floor(check, scheme)
    ]
    if passport.fidelity is None:
        reasons.append("it was not compared with PyTorch")
    if reasons and not work.allow_lossy:
        raise ConversionError(
            "; ".join(reasons),
            backend=work.converter,
            stage=f"verify {scheme}",
            hint="calibrate with inputs like the real ones, train quantization-aware, or keep it with allow_lossy",
        )
    lossy = tuple(f"kept although {reason}" for reason in reasons)
    measured = {"conversion_seconds": seconds, "conversion_peak_rss_bytes": peak_rss_bytes()}
    told = (*passport.warnings, *(work.warnings if scheme.is_static else ()), *lossy)
    changed = passport.model_copy(update={"warnings": told, **measured})
    Artifact(path=artifact.path, passport=changed).save_passport()


def _note(folder: Path, scheme: Scheme, stage: str) -> None:
    write_atomically(folder / "stage.txt", f"{scheme} {stage}")


def _answer(folder: Path, result: SchemeResult) -> None:
    write_atomically(folder / f"result.{result.scheme}.json", result.model_dump_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
