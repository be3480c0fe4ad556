"""The conversion stages: student (and teacher, for the baseline) to artifacts.

Each artifact is a stage of its own, keyed by the model, the scheme, the data that calibrated it and the
versions of the tools that made it; one that fails does not take the others with it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, NodeRule, Scheme
from edgekit.compress.qat_options import backend_trained_for
from edgekit.compress.student import Student
from edgekit.converters.base import MicroBudget, QuantizationOptions
from edgekit.errors import EdgekitError, HostError
from edgekit.pipeline.events import StageEvent, StageStatus
from edgekit.pipeline.facts import TOOLKITS, tool_versions
from edgekit.pipeline.learning import Learned
from edgekit.pipeline.samples import calibration_batches, held_out_batches
from edgekit.pipeline.trained_form import ConvertedForm, form_of
from edgekit.pipeline.workspace import Stage

if TYPE_CHECKING:
    from edgekit.converters.conversion import ConversionOptions, ConversionProgress
    from edgekit.pipeline.run import Context
    from edgekit.recipe import ConvertOptions
    from edgekit.workload import Workload

__all__ = ["Converted", "convert_all"]

VERSION = 2
"""Raised when a converter here starts to give other files for the same inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """The artifacts of a run, baseline first, and what could not be made."""

    baseline: Artifact | None
    students: tuple[Artifact, ...]
    failures: tuple[tuple[str, EdgekitError], ...]
    student_workload: Workload
    """The workload as the students' files see it: its inputs are measurements after a `sense` step."""
    encoders: tuple[Artifact, ...] = ()
    """What a sensor node runs, signal to measurements: made and checked, not measured."""

    @property
    def all(self) -> tuple[Artifact, ...]:
        """What is measured on devices."""
        return ((self.baseline,) if self.baseline else ()) + self.students

    @property
    def shipped(self) -> tuple[Artifact, ...]:
        return self.all + self.encoders


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One artifact to make."""

    model: str
    target: str
    scheme: Scheme
    key: list[object]

    @property
    def stage(self) -> str:
        return f"convert-{self.model}-{self.target}-{self.scheme}"


def convert_all(context: Context, learned: Learned) -> Converted:
    """Every artifact the recipe names, made or found."""
    from edgekit.sensing.deployment import deployed, encoder_of, is_sensed

    options = context.recipe.convert
    failures: list[tuple[str, EdgekitError]] = []
    baseline: list[Artifact] = []
    if context.recipe.baseline is not None:
        jobs = _jobs(context, "teacher", learned.teacher_stage, [context.recipe.baseline.value], [Scheme.FP32])
        baseline = _convert(context, learned.teacher, context.workload, jobs, failures)
    jobs = _jobs(context, "student", learned.student_stage, options.to, options.schemes)
    student, workload = deployed(learned.student, context.workload)
    students = _convert(context, student, workload, jobs, failures)
    encoders: list[Artifact] = []
    if is_sensed(learned.student):
        jobs = _jobs(context, "encoder", learned.student_stage, options.to, options.schemes)
        encoders = _convert(context, *encoder_of(learned.student, context.workload), jobs, failures)
    return Converted(
        baseline=baseline[0] if baseline else None,
        students=tuple(students),
        failures=tuple(failures),
        student_workload=workload,
        encoders=tuple(encoders),
    )


def _jobs(context: Context, model: str, stage: Stage, targets: Iterable[str], schemes: Iterable[Scheme]) -> list[_Job]:
    versions = tool_versions()
    schemes = list(schemes)
    found = []
    options = context.recipe.convert
    for target in targets:
        tools = {name: versions.get(name) for name in ("torch", *TOOLKITS.get(target, versions))}
        for scheme in schemes:
            key: list[object] = [VERSION, stage.key, target, scheme.value, tools]
            if not scheme.is_float:
                identity = context.identity.calibration or context.identity.train
                key += [options.calibration, identity, context.recipe.seed]
                key += [_quantization(options).model_dump(mode="json")]
            key += [context.identity.evaluation, options.verification, options.input_layout]
            key += [options.allow_lossy, options.flash_kb, options.ram_kb]
            found.append(_Job(model=model, target=target, scheme=scheme, key=key))
    return found


def _quantization(options: ConvertOptions) -> QuantizationOptions:
    return QuantizationOptions(
        io_dtype=options.io_dtype,
        ranges=options.ranges,
        percentile=options.percentile,
        bias_correction=options.bias_correction,
        rules=tuple(NodeRule(node=node, action=action) for node, action in options.rules.items()),
    )


def _convert(
    context: Context,
    student: Student,
    workload: Workload,
    jobs: list[_Job],
    failures: list[tuple[str, EdgekitError]],
) -> list[Artifact]:
    """The artifacts of `jobs` in their order; what is missing is converted together."""
    missing = [job for job in jobs if not context.workspace.stage_folder(job.stage, *context.plain(job.key)).exists()]
    failed = _run_converters(context, student, workload, missing) if missing else {}
    artifacts = []
    for job in jobs:
        if job in missing:
            error = failed.get(job.stage)
            if error is not None:
                context.note(job.stage, StageStatus.FAILED, text=str(error))
                context.errors.append(error)
                failures.append((job.stage.removeprefix("convert-"), error))
                continue
        else:
            context.stage(job.stage, job.key, _refuse)
        artifacts.append(Artifact.open(context.workspace.stage_folder(job.stage, *context.plain(job.key))))
    return artifacts


def _refuse(_work: Path, out: Path) -> None:
    raise HostError(f"{out}: was there a moment ago and is gone", hint="is something cleaning the workspace?")


def _run_converters(
    context: Context, student: Student, workload: Workload, jobs: list[_Job]
) -> dict[str, EdgekitError]:
    """Convert `jobs`, each artifact becoming its stage the moment it is finished; stage name to its failure."""
    from edgekit.converters.conversion import ConversionOptions, convert_model

    recipe = context.recipe
    convert = recipe.convert
    needs_calibration = any(job.scheme.is_static for job in jobs)
    options = ConversionOptions(
        lineage=student.lineage,
        input_layouts=workload.input_layouts,
        input_layout=convert.input_layout,
        quantization=_quantization(convert),
        micro=MicroBudget(flash_kb=convert.flash_kb, ram_kb=convert.ram_kb),
        jobs=convert.jobs,
        timeout_seconds=convert.timeout_seconds,
        memory_bytes=None if convert.memory_mb is None else convert.memory_mb * 1_000_000,
        allow_lossy=convert.allow_lossy,
    )
    adoption = _Adoption(context, {(job.target, job.scheme): job for job in jobs})
    failed: dict[str, EdgekitError] = {}
    calibration = calibration_batches(workload, convert.calibration, seed=recipe.seed) if needs_calibration else ()
    verification = held_out_batches(workload, convert.verification, seed=recipe.seed)
    for form, schemes, targets in _forms(student, workload, jobs, options):
        outcome = convert_model(
            form.model,
            form.example_inputs,
            name=jobs[0].model,
            targets=targets,
            schemes=schemes,
            calibration=form.samples(calibration),
            verification=form.samples(verification),
            output_dir=adoption.scratch,
            options=form.options,
            on_progress=adoption.observe,
        )
        for failure in outcome.failures:
            failed[f"convert-{jobs[0].model}-{failure.target}-{failure.scheme}"] = failure.error
    return failed


def _forms(
    student: Student, workload: Workload, jobs: list[_Job], options: ConversionOptions
) -> Iterator[tuple[ConvertedForm, list[Scheme], list[str]]]:
    """What is converted to which (schemes, targets): the float student, or what it was trained to for one backend."""
    examples = workload.example_inputs
    trained = {
        job.stage
        for job in jobs
        if job.scheme is Scheme.STATIC_W8A8 and backend_trained_for(job.target) in student.trained
    }
    for schemes, targets in _groups([job for job in jobs if job.stage not in trained]):
        yield ConvertedForm(model=student.module, example_inputs=examples, options=options), schemes, targets
    for job in jobs:
        if job.stage in trained:
            yield form_of(student, examples, job.target, job.scheme, options), [job.scheme], [job.target]


class _Adoption:
    """Turns each artifact into its stage as soon as the converter has finished it, so that a kill loses none."""

    def __init__(self, context: Context, jobs: dict[tuple[str, Scheme], _Job]) -> None:
        self._context = context
        self._jobs = jobs
        self._lock = threading.Lock()
        self.scratch = context.workspace.stages / ".converting"

    def observe(self, progress: ConversionProgress) -> None:
        """Called from the converters' threads."""
        if progress.scheme is None:
            return
        job = self._jobs[progress.target, progress.scheme]
        if progress.stage == "done":
            with self._lock:
                folder = self.scratch / f"{job.model}.{job.scheme}.{job.target}"
                took = Artifact.open(folder).passport.conversion_seconds
                stage = self._context.workspace.stage(
                    job.stage, self._context.plain(job.key), lambda _work, out: _adopt(folder, out)
                )
                self._context.note(job.stage, StageStatus.DONE, seconds=took, key=stage.key)
        else:
            self._context.observe(StageEvent(stage=job.stage, status=StageStatus.PROGRESS, text=progress.stage))


def _adopt(made: Path, out: Path) -> None:
    for path in made.iterdir():
        os.replace(path, out / path.name)
    made.rmdir()


def _groups(jobs: list[_Job]) -> list[tuple[list[Scheme], list[str]]]:
    """Jobs as few calls of (schemes, targets): targets that miss the same schemes go together."""
    missing: dict[str, list[Scheme]] = {}
    for job in jobs:
        missing.setdefault(job.target, []).append(job.scheme)
    groups: dict[tuple[Scheme, ...], list[str]] = {}
    for target, schemes in missing.items():
        groups.setdefault(tuple(schemes), []).append(target)
    return [(list(schemes), targets) for schemes, targets in groups.items()]
