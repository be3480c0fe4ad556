"""Conversion as the rest of edgekit calls it: one child process per target, each finished artifact kept.

An artifact appears at `<output_dir>/<name>.<scheme>.<format>/` by rename, complete or not at all. When one scheme
fails or a child dies, what the others finished stays; `ConversionOutcome` holds both.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, Scheme
from edgekit.converters.base import Capability
from edgekit.converters.calibration import InputSpec, check_calibration, check_samples, input_specs, unlike
from edgekit.converters.early import EarlyChildren, shared_folder
from edgekit.converters.registry import load_converter
from edgekit.converters.shapes import (
    at_other_sizes,
    dynamic_shapes,
    enlarged,
    input_orders,
    layouts_after,
    permuted,
    permuting_inputs,
    tensors_permuted,
)
from edgekit.converters.target_run import (
    DISK_HINT,
    Batch,
    ConversionFailure,
    ConversionOptions,
    ConversionProgress,
    Samples,
    TargetRun,
)
from edgekit.converters.wire import save_samples
from edgekit.disk import disk_errors_explained
from edgekit.errors import ConversionError, Problem, UnsupportedError, UserError
from edgekit.exporting import check_inputs, export_program, load_own_program, save_program

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

__all__ = [
    "ConversionFailure",
    "ConversionOptions",
    "ConversionOutcome",
    "ConversionProgress",
    "ExportedModel",
    "convert_model",
    "convert_program",
    "export_all",
    "start_early",
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
    model: nn.Module | ExportedProgram,
    example_inputs: tuple[torch.Tensor, ...],
    *,
    name: str,
    targets: Sequence[str],
    schemes: Sequence[Scheme],
    output_dir: Path,
    calibration: Samples = (),
    verification: Samples = (),
    signatures: Mapping[str, tuple[torch.Tensor, ...]] | None = None,
    options: ConversionOptions | None = None,
    early: EarlyChildren | None = None,
    on_progress: Callable[[ConversionProgress], None] | None = None,
) -> ConversionOutcome:
    """Export the model and convert the program; see `convert_program`. Raises ExportError.

    Samples are in the model's own layout, whatever `options.input_layout` is. `signatures` holds the example inputs
    of further entry points. A program (`compress.quantize.trained_program` gives one) is taken as it is.
    """
    options = options or ConversionOptions()
    _check_names(name, targets)
    exported = export_all(model, example_inputs, name, signatures or {}, options)
    with tempfile.TemporaryDirectory(prefix="edgekit-export-") as folder:
        with disk_errors_explained(Path(folder), hint="the temporary folder needs room for the model: set TMPDIR"):
            saved = {
                key: _saved(program, Path(folder), index) for index, (key, program) in enumerate(exported.programs)
            }
        (path, sha256), *_ = saved.values()
        held_out = tuple(permuted(sample, exported.orders) for sample in verification)
        return convert_program(
            path,
            sha256,
            name=name,
            targets=targets,
            schemes=schemes,
            output_dir=output_dir,
            calibration=tuple(permuted(sample, exported.orders) for sample in calibration),
            verification=held_out + (at_other_sizes(held_out[0], options.dynamic) if held_out else ()),
            signatures=dict(list(saved.items())[1:]),
            options=replace(options, input_layouts=exported.layouts),
            specs=input_specs(exported.programs[0][1]),
            early=early,
            on_progress=on_progress,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """The programs of a model, the first being `forward`, and how samples become their inputs."""

    programs: tuple[tuple[str, ExportedProgram], ...]
    orders: tuple[tuple[int, ...] | None, ...]
    layouts: tuple[str | None, ...]


def export_all(
    model: nn.Module | ExportedProgram,
    example_inputs: tuple[torch.Tensor, ...],
    name: str,
    signatures: Mapping[str, tuple[torch.Tensor, ...]],
    options: ConversionOptions,
) -> ExportedModel:
    """The model's programs in the layout and with the free axes that are asked for. Raises ExportError, UserError."""
    from torch.export import ExportedProgram as Program

    if isinstance(model, Program):
        if signatures or options.dynamic or options.input_layout is not None:
            raise UserError(
                f"{name}: a program has its shapes, layout and one entry point already",
                hint="give the module, or export it as it is to be",
            )
        layouts = options.input_layouts
        return ExportedModel(programs=(("forward", model),), orders=(None,) * len(example_inputs), layouts=layouts)
    check_inputs(model, example_inputs, name)
    orders = input_orders(options.input_layout, example_inputs, options.input_layouts)
    programs = []
    with permuting_inputs(model, orders):
        for key, inputs in {"forward": example_inputs, **signatures}.items():
            given = enlarged(tensors_permuted(inputs, orders), options.dynamic)
            shapes = dynamic_shapes(options.dynamic, given)
            programs.append((key, export_program(model, given, name=name, dynamic_shapes=shapes)))
    layouts = layouts_after(orders, example_inputs, options.input_layouts)
    return ExportedModel(programs=tuple(programs), orders=orders, layouts=layouts)


def _saved(program: ExportedProgram, folder: Path, index: int) -> tuple[Path, str]:
    path = folder / f"program.{index}.pt2"
    return path, save_program(program, path)


def start_early(targets: Sequence[str], output_dir: Path, options: ConversionOptions) -> EarlyChildren:
    """Children that import their toolchains while the caller loads its model. Raises UserError."""
    _check_names("model", targets)
    _make_folder(output_dir)
    return EarlyChildren(targets, output_dir, options.jobs, threads=options.threads)


def _make_folder(output_dir: Path) -> None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{output_dir}: cannot be made: {e.strerror}", hint="give a folder of your own with -o") from e


def _check_names(name: str, targets: Sequence[str]) -> None:
    """Raise for what is wrong whatever the model is, before it is exported."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        raise UserError(f"'{name}' cannot name an artifact", hint="use letters, digits, '.', '_' and '-'")
    for target in targets:
        load_converter(target)


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
    signatures: Mapping[str, tuple[Path, str]] | None = None,
    options: ConversionOptions | None = None,
    specs: Sequence[InputSpec] | None = None,
    early: EarlyChildren | None = None,
    on_progress: Callable[[ConversionProgress], None] | None = None,
) -> ConversionOutcome:
    """Every (target, scheme) of a program `save_program` wrote, as artifacts under `output_dir`.

    Raises at once, before any child is started, for what cannot be right: an unknown target, a bad name, a program
    that is not ours, unfit calibration (UserError, ArtifactError, WorkloadError). What fails later is in the outcome.
    `specs` are the program's inputs, where the caller knows them: reading the file again is saved. `early` holds
    children that were started before there was a program, in the same `output_dir`.
    `on_progress` is called from worker threads.
    """
    _check_names(name, targets)
    options = options or ConversionOptions()
    wanted = {target: _split_by_support(target, schemes) for target in dict.fromkeys(targets)}
    specs = specs or input_specs(load_own_program(program_path, sha256))
    needed = (
        [] if options.is_trained or options.only_check else [s for supported, _ in wanted.values() for s in supported]
    )
    check_calibration(calibration, specs, needed)
    check_samples(verification, specs, what="verification")
    options = replace(options, warnings=(*options.warnings, *unlike(calibration, verification, specs)))
    _make_folder(output_dir)
    _remove_abandoned(output_dir)
    with disk_errors_explained(output_dir, hint=DISK_HINT), shared_folder(output_dir) as shared:
        batch = Batch(
            name=name,
            program_path=program_path,
            sha256=sha256,
            samples={
                what: save_samples(shared / f"{what}.npz", samples)
                for what, samples in (("calibration", calibration), ("verification", verification))
                if samples
            },
            output_dir=output_dir,
            options=options,
            report=on_progress or (lambda _: None),
            signatures=dict(signatures or {}),
            early=early or EarlyChildren((), output_dir, 0),
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
