"""Conversion as the rest of edgekit calls it: one child process per target, each finished artifact kept.

An artifact appears at `<output_dir>/<name>.<scheme>.<format>/` by rename, complete or not at all. When one scheme
fails or a child dies, what the others finished stays; `ConversionOutcome` holds both.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, Scheme
from edgekit.converters.base import Capability
from edgekit.converters.calibration import check_calibration, check_samples, input_specs
from edgekit.converters.registry import load_converter
from edgekit.converters.target_run import (
    Batch,
    ConversionFailure,
    ConversionOptions,
    ConversionProgress,
    Samples,
    TargetRun,
)
from edgekit.errors import ConversionError, Problem, UnsupportedError, UserError
from edgekit.exporting import export_program, load_own_program, save_program

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "ConversionFailure",
    "ConversionOptions",
    "ConversionOutcome",
    "ConversionProgress",
    "convert_model",
    "convert_program",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOutcome:
    """What came out: the finished artifacts, in the order asked for, and every failure."""

    artifacts: tuple[Artifact, ...] = ()
    failures: tuple[ConversionFailure, ...] = ()

    def raise_failures(self) -> None:
        """Raise the error there was; with several, a ConversionError that lists each."""
        if len(self.failures) == 1:
            raise self.failures[0].error
        if self.failures:
            first = self.failures[0]
            listed = "\n".join(f"- {failure.target} {failure.scheme}: {failure.error}" for failure in self.failures)
            raise ConversionError(
                f"{len(self.failures)} conversions failed:\n{listed}",
                backend=first.target,
                stage="convert",
                stderr=getattr(first.error, "stderr", ""),
                hint=first.error.hint,
            ) from first.error


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
    batch = Batch(
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


def _split_by_support(
    target: str, schemes: Sequence[Scheme]
) -> tuple[tuple[Scheme, ...], tuple[ConversionFailure, ...]]:
    """The schemes a backend can write, and a failure for each it cannot."""
    known: dict[Scheme, Capability] = {c.scheme: c for c in load_converter(target).capabilities()}
    supported, refused = [], []
    for scheme in dict.fromkeys(schemes):
        capability = known.get(scheme)
        if capability is not None and capability.supported:
            supported.append(scheme)
        else:
            note = _refusal(capability)
            problem = Problem(backend=target, message=f"cannot write {scheme}: {note}")
            refused.append(ConversionFailure(target=target, scheme=scheme, error=UnsupportedError([problem])))
    return tuple(supported), tuple(refused)


def _refusal(capability: Capability | None) -> str:
    if capability is None:
        return "not known to this backend"
    return capability.note + (f"; nearest: {capability.nearest}" if capability.nearest else "")


def _run_batch(
    batch: Batch, wanted: dict[str, tuple[tuple[Scheme, ...], tuple[ConversionFailure, ...]]]
) -> ConversionOutcome:
    artifacts: list[Artifact] = []
    failures = [failure for _, refused in wanted.values() for failure in refused]
    with ThreadPoolExecutor(max_workers=max(1, batch.options.jobs), thread_name_prefix="convert") as pool:
        runs = [TargetRun(batch, target, supported) for target, (supported, _) in wanted.items() if supported]
        futures = [pool.submit(run.finish) for run in runs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            batch.cancelled.set()  # ends the running children
            for future in futures:
                future.cancel()
            raise
    for run in runs:
        artifacts.extend(run.artifacts)
        failures.extend(run.failures)
    return ConversionOutcome(artifacts=tuple(artifacts), failures=tuple(failures))


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
