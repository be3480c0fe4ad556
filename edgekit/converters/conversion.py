"""Conversion as the rest of edgekit calls it: one child process per target, each finished artifact kept.

An artifact appears at `<output_dir>/<name>.<scheme>.<format>/` by rename, complete or not at all. When one scheme
fails or a child dies, what the others finished stays; `ConversionOutcome` holds both.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, LineageStep, Scheme
from edgekit.converters.base import Capability
from edgekit.converters.calibration import check_calibration, check_samples, input_specs
from edgekit.converters.registry import load_converter
from edgekit.converters.wire import SchemeResult, WorkRequest, save_samples
from edgekit.errors import ConversionError, EdgekitError, Problem, UnsupportedError, UserError
from edgekit.exporting import export_program, load_own_program, save_program
from edgekit.isolation import ChildExit, failure_of, run_child
from edgekit.schema import read_record, write_atomically

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

__all__ = ["ConversionOptions", "ConversionOutcome", "ConversionProgress", "convert_model", "convert_program"]

Samples = Sequence[Sequence["np.ndarray"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionProgress:
    """Where a conversion is; `stage` is `import`, `check`, `convert`, `done` or `failed`."""

    target: str
    scheme: Scheme | None
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """How to convert; what is asked for has no default here."""

    lineage: tuple[LineageStep, ...] = ()
    input_layouts: tuple[str | None, ...] = ()
    io_dtype: str = "int8"
    """Inputs and outputs of full-integer TFLite: `int8` or `float32`."""
    jobs: int = 1
    """Children at a time; two need twice the memory and pay only with idle cores."""
    threads: int = 1
    timeout_seconds: float = 900
    """Of wall clock, for each target."""
    memory_bytes: int | None = None
    """Address space of each child; torch reserves several GB of it unused."""
    allow_lossy: bool = False
    """Keep an artifact below the fidelity floor, with a warning in its passport."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOutcome:
    """What came out: the finished artifacts, in the order asked for, and every failure."""

    artifacts: tuple[Artifact, ...] = ()
    failures: tuple[EdgekitError, ...] = ()

    def raise_failures(self) -> None:
        """Raise the failure there was; with several, a ConversionError that lists each."""
        if len(self.failures) == 1:
            raise self.failures[0]
        if self.failures:
            first = self.failures[0]
            listed = "\n".join(f"- {failure.message}" for failure in self.failures)
            raise ConversionError(
                f"{len(self.failures)} conversions failed:\n{listed}",
                backend=getattr(first, "backend", "converters"),
                stage="convert",
                stderr=getattr(first, "stderr", ""),
                hint=first.hint,
            ) from first


@dataclass(slots=True)
class _Batch:
    """What all children of one call share."""

    name: str
    program_path: Path
    sha256: str
    calibration: tuple[tuple[np.ndarray, ...], ...]
    verification: tuple[tuple[np.ndarray, ...], ...]
    output_dir: Path
    options: ConversionOptions
    report: Callable[[ConversionProgress], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


def convert_model(
    model: nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    *,
    name: str,
    targets: Sequence[str],
    schemes: Sequence[Scheme],
    output_dir: Path,
    calibration: Samples = (),
    verification: Samples = (),
    options: ConversionOptions | None = None,
    on_progress: Callable[[ConversionProgress], None] | None = None,
) -> ConversionOutcome:
    """Export the model and convert the program; see `convert_program`. Raises ExportError."""
    program = export_program(model, example_inputs, name=name)
    with tempfile.TemporaryDirectory(prefix="edgekit-export-") as folder:
        path = Path(folder) / "program.pt2"
        return convert_program(
            path,
            save_program(program, path),
            name=name,
            targets=targets,
            schemes=schemes,
            output_dir=output_dir,
            calibration=calibration,
            verification=verification,
            options=options,
            on_progress=on_progress,
        )


def convert_program(
    program_path: Path,
    sha256: str,
    *,
    name: str,
    targets: Sequence[str],
    schemes: Sequence[Scheme],
    output_dir: Path,
    calibration: Samples = (),
    verification: Samples = (),
    options: ConversionOptions | None = None,
    on_progress: Callable[[ConversionProgress], None] | None = None,
) -> ConversionOutcome:
    """Every (target, scheme) of a program `save_program` wrote, as artifacts under `output_dir`.

    Raises at once, before any child is started, for what cannot be right: an unknown target, a bad name, a program
    that is not ours, unfit calibration (UserError, ArtifactError, WorkloadError). What fails later is in the outcome.
    `on_progress` is called from worker threads.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        raise UserError(f"'{name}' cannot name an artifact", hint="use letters, digits, '.', '_' and '-'")
    wanted = {target: _split_by_support(target, schemes) for target in dict.fromkeys(targets)}
    specs = input_specs(load_own_program(program_path, sha256))
    check_calibration(calibration, specs, [s for supported, _ in wanted.values() for s in supported])
    check_samples(verification, specs, what="verification")
    output_dir.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(output_dir)
    batch = _Batch(
        name=name,
        program_path=program_path,
        sha256=sha256,
        calibration=tuple(tuple(sample) for sample in calibration),
        verification=tuple(tuple(sample) for sample in verification),
        output_dir=output_dir,
        options=options or ConversionOptions(),
        report=on_progress or (lambda _: None),
    )
    return _run_batch(batch, wanted)


def _split_by_support(target: str, schemes: Sequence[Scheme]) -> tuple[tuple[Scheme, ...], tuple[EdgekitError, ...]]:
    """The schemes a backend can write, and an UnsupportedError for each it cannot."""
    notes: dict[Scheme, Capability] = {c.scheme: c for c in load_converter(target).capabilities()}
    supported = tuple(s for s in dict.fromkeys(schemes) if s in notes and notes[s].supported)
    refused = tuple(
        UnsupportedError([Problem(backend=target, message=f"cannot write {s}: {_note_of(notes.get(s))}")])
        for s in dict.fromkeys(schemes)
        if s not in supported
    )
    return supported, refused


def _note_of(capability: Capability | None) -> str:
    return capability.note if capability is not None else "not known to this backend"


def _run_batch(
    batch: _Batch, wanted: dict[str, tuple[tuple[Scheme, ...], tuple[EdgekitError, ...]]]
) -> ConversionOutcome:
    artifacts: list[Artifact] = []
    failures = [error for _, refused in wanted.values() for error in refused]
    with ThreadPoolExecutor(max_workers=max(1, batch.options.jobs), thread_name_prefix="convert") as pool:
        futures = [
            pool.submit(_convert_target, batch, target, supported)
            for target, (supported, _) in wanted.items()
            if supported
        ]
        try:
            outcomes = [future.result() for future in futures]
        except BaseException:
            batch.cancelled.set()  # ends the running children; those not started yet see it first
            for future in futures:
                future.cancel()
            raise
    for outcome in outcomes:
        artifacts.extend(outcome.artifacts)
        failures.extend(outcome.failures)
    return ConversionOutcome(artifacts=tuple(artifacts), failures=tuple(failures))


def _convert_target(batch: _Batch, target: str, schemes: tuple[Scheme, ...]) -> ConversionOutcome:
    """One child: every scheme of one backend."""
    folder = Path(tempfile.mkdtemp(prefix=f".convert-{os.getpid()}-", dir=batch.output_dir))
    try:
        _prepare(folder, batch, target, schemes)
        told: set[str] = set()

        def tell() -> None:
            _tell_stage(batch, target, folder, told)

        ended = run_child(
            "edgekit.converters.worker",
            folder,
            timeout_seconds=batch.options.timeout_seconds,
            memory_bytes=batch.options.memory_bytes,
            threads=batch.options.threads,
            cancelled=batch.cancelled,
            on_poll=tell,
        )
        return _collect(batch, target, schemes, folder, ended)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(folder: Path, batch: _Batch, target: str, schemes: tuple[Scheme, ...]) -> None:
    shutil.copyfile(batch.program_path, folder / "program.pt2")
    if batch.calibration:
        save_samples(folder / "calibration.npz", batch.calibration)
    if batch.verification:
        save_samples(folder / "verification.npz", batch.verification)
    request = WorkRequest(
        converter=target,
        name=batch.name,
        program="program.pt2",
        sha256=batch.sha256,
        schemes=schemes,
        has_calibration=bool(batch.calibration),
        has_verification=bool(batch.verification),
        io_dtype=batch.options.io_dtype,
        input_layouts=batch.options.input_layouts,
        lineage=batch.options.lineage,
        threads=batch.options.threads,
        allow_lossy=batch.options.allow_lossy,
    )
    write_atomically(folder / "request.json", request.model_dump_json())


def _tell_stage(batch: _Batch, target: str, folder: Path, told: set[str]) -> None:
    stage = _stage(folder)
    if stage and stage not in told:
        told.add(stage)
        scheme, _, what = stage.partition(" ")
        batch.report(ConversionProgress(target=target, scheme=Scheme(scheme), stage=what))


def _stage(folder: Path) -> str:
    try:
        return (folder / "stage.txt").read_text()
    except FileNotFoundError:
        return ""


def _collect(
    batch: _Batch, target: str, schemes: tuple[Scheme, ...], folder: Path, ended: ChildExit
) -> ConversionOutcome:
    """The artifacts of a child that ended, moved into place; each scheme without an answer shares its death."""
    artifacts: list[Artifact] = []
    failures: list[EdgekitError] = []
    for scheme in schemes:
        answer = folder / f"result.{scheme}.json"
        if not answer.is_file():
            failures.append(_death(batch, target, scheme, folder, ended))
        else:
            result = read_record(SchemeResult, answer)
            if result.error is None:
                artifacts.append(_publish(batch, target, scheme, folder / "out" / scheme, ended))
            else:
                failures.append(result.error.rebuilt(backend=target, stderr=ended.stderr_tail))
        stage = "failed" if not answer.is_file() or (failures and result.error is not None) else "done"
        batch.report(ConversionProgress(target=target, scheme=scheme, stage=stage))
    return ConversionOutcome(artifacts=tuple(artifacts), failures=tuple(failures))


def _death(batch: _Batch, target: str, scheme: Scheme, folder: Path, ended: ChildExit) -> ConversionError:
    stage = _stage(folder) or f"{scheme} start"
    death = failure_of(
        ended,
        backend=target,
        stage=stage,
        timeout_seconds=batch.options.timeout_seconds,
        memory_bytes=batch.options.memory_bytes,
    )
    if death is None:
        return ConversionError("ended without an answer", backend=target, stage=stage, stderr=ended.stderr_tail)
    return death


def _publish(batch: _Batch, target: str, scheme: Scheme, made: Path, ended: ChildExit) -> Artifact:
    """The artifact in its final folder; one of the same name made before is replaced."""
    artifact = Artifact.open(made)
    measured = artifact.passport.model_copy(update={"conversion_peak_rss_bytes": ended.peak_rss_bytes})
    Artifact(path=artifact.path, passport=measured).save_passport()
    final = batch.output_dir / f"{batch.name}.{scheme}.{target}"
    old = None
    if final.exists():
        old = Path(tempfile.mkdtemp(prefix=f".convert-{os.getpid()}-", dir=batch.output_dir)) / "old"
        final.rename(old)
    made.rename(final)
    if old is not None:
        shutil.rmtree(old.parent)
    return Artifact(path=final / artifact.path.name, passport=measured)


def _remove_abandoned(output_dir: Path) -> None:
    """Remove work folders of edgekit processes that were killed; those of living ones stay."""
    for folder in output_dir.glob(".convert-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
