"""Proof that steps paid: the student before and after each, converted, timed side by side, and judged.

Conversions and timings are stages of the workspace, keyed by the students they are of, so that a second run measures
nothing. What cannot be converted or measured leaves its steps without a verdict, and is an error of the run.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, Effect, Format, LineageStep, Scheme, StepProof
from edgekit.benchmarks.stats import stated_ratio
from edgekit.compress.proof import judge
from edgekit.errors import EdgekitError, Interrupted
from edgekit.pipeline.events import StageEvent, StageStatus
from edgekit.pipeline.facts import TOOLKITS, tool_versions
from edgekit.pipeline.samples import calibration_batches, held_out_batches
from edgekit.pipeline.workspace import Stage
from edgekit.schema import Record, read_record, write_atomically

if TYPE_CHECKING:
    from edgekit.compress.effects import TeacherReference
    from edgekit.compress.proof_options import ProofOptions
    from edgekit.compress.student import Student
    from edgekit.pipeline.run import Context
    from edgekit.workload import Workload

__all__ = ["Made", "prove"]

VERSION = 2
"""Raised when a proof here starts to measure something else for the same students."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A student and the stage that made it."""

    stage: Stage
    student: Student


class _Timing(Record):
    """One student, as timed beside another."""

    min_ns: int
    p50_ns: int
    memory_bytes: int | None


class _PairRecord(Record):
    """A timing on disk."""

    before: _Timing
    after: _Timing
    device: str
    emulated: bool

    @property
    def speedups(self) -> tuple[float, float]:
        return self.before.min_ns / self.after.min_ns, self.before.p50_ns / self.after.p50_ns


class _Packed(Record):
    """What `edgekit pack` makes of a file."""

    bytes: int


class _FileAnswers(Record):
    """How a quantized file answers on the evaluation set."""

    accuracy: float
    agreement: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Converted:
    """One student's file."""

    artifact: Artifact
    packed_bytes: int
    answers: _FileAnswers | None


def prove(context: Context, teacher: TeacherReference, chain: Sequence[Made]) -> tuple[LineageStep, ...] | None:
    """The lineage steps that lead from the first of `chain` to the last, with what they brought; None without a proof.

    They are judged as one (see `edgekit.compress.proof`).
    """
    options = context.recipe.proof
    if options is None:
        return None
    try:
        return _Proof(context, options, teacher, chain).steps()
    except Interrupted:
        raise
    except EdgekitError as e:
        context.errors.append(e)
        context.warn("proof", f"{' + '.join(_kinds(chain))}: not judged: {e.message}")
        return None


def _kinds(chain: Sequence[Made]) -> tuple[str, ...]:
    return tuple(made.student.lineage[-1].step for made in chain[1:])


class _Proof:
    """The proof of one group of steps."""

    def __init__(
        self, context: Context, options: ProofOptions, teacher: TeacherReference, chain: Sequence[Made]
    ) -> None:
        self._context = context
        self._options = options
        self._teacher = teacher
        self._chain = chain
        self._kinds = _kinds(chain)
        self._scheme = Scheme.STATIC_W8A8 if self._kinds[-1] == "qat" else options.scheme

    def steps(self) -> tuple[LineageStep, ...]:
        files = [self._converted(made) for made in self._chain]
        pairs = [self._timed(a, b) for a, b in itertools.pairwise(files)]
        whole = pairs[0] if len(pairs) == 1 else self._timed(files[0], files[-1])
        told = [made.student.lineage[-1] for made in self._chain[1:]]
        proof = self._judged(
            _effect(told[0].before, files[0], whole.before), _effect(told[-1].after, files[-1], whole.after), whole
        )
        return tuple(
            step.model_copy(
                update={
                    "before": _effect(step.before, a, pair.before),
                    "after": _effect(step.after, b, pair.after),
                    "proof": proof,
                }
            )
            for step, pair, a, b in zip(told, pairs, files[:-1], files[1:], strict=True)
        )

    def _judged(self, before: Effect, after: Effect, whole: _PairRecord) -> StepProof:
        by_min, by_p50 = whole.speedups
        verdict, reason = judge(
            before,
            after,
            speedups=whole.speedups,
            max_drop_points=self._options.max_accuracy_drop_pp,
            device=whole.device,
        )
        return StepProof(
            verdict=verdict,
            reason=reason,
            judged_with=self._kinds if len(self._kinds) > 1 else (),
            format=Format(self._options.format),
            scheme=self._scheme,
            device=whole.device,
            emulated=whole.emulated,
            speedup=stated_ratio(by_min, by_p50),
            speedup_min=by_min,
            speedup_p50=by_p50,
        )

    # ---- one student

    def _converted(self, made: Made) -> _Converted:
        options, recipe = self._options, self._context.recipe
        versions = tool_versions()
        tools = {name: versions.get(name) for name in ("torch", *TOOLKITS[options.format])}
        name = f"proof-{made.stage.name}-{options.format}-{self._scheme}"
        key: list[object] = [VERSION, made.stage.key, options.format, self._scheme.value, tools]
        if self._scheme.is_static:
            key += [recipe.convert.calibration, self._context.identity.calibration or self._context.identity.train]
        if not self._scheme.is_float:
            key += [self._context.identity.evaluation, recipe.seed]
        stage = self._context.stage(name, key, functools.partial(self._convert, made))
        return _Converted(
            artifact=Artifact.open(stage.folder / "artifact"),
            packed_bytes=read_record(_Packed, stage.folder / "packed.json").bytes,
            answers=None if self._scheme.is_float else read_record(_FileAnswers, stage.folder / "answers.json"),
        )

    def _convert(self, made: Made, work: Path, out: Path) -> None:
        from edgekit.converters.conversion import convert_model
        from edgekit.converters.target_run import ConversionOptions
        from edgekit.packing.files import pack
        from edgekit.pipeline.trained_form import form_of
        from edgekit.sensing.deployment import deployed

        recipe = self._context.recipe
        student, workload = deployed(made.student, self._context.workload)
        options = ConversionOptions(
            input_layouts=workload.input_layouts,
            timeout_seconds=recipe.convert.timeout_seconds,
            allow_lossy=True,  # a student that has not recovered yet may be far from anything
        )
        form = form_of(student, workload.example_inputs, self._options.format, self._scheme, options)
        calibration = (
            calibration_batches(workload, recipe.convert.calibration, seed=recipe.seed)
            if self._scheme.is_static
            else ()
        )
        outcome = convert_model(
            form.model,
            form.example_inputs,
            name=made.stage.name,
            targets=[self._options.format],
            schemes=[self._scheme],
            output_dir=work / "made",
            calibration=form.samples(calibration),
            verification=form.samples(held_out_batches(workload, 8, seed=recipe.seed)),
            options=form.options,
        )
        outcome.raise_failures()
        artifact = outcome.artifacts[0]
        if not self._scheme.is_float:
            answers = self._answers(artifact, workload, work)
            write_atomically(out / "answers.json", answers.model_dump_json() + "\n")
        packed = pack(artifact.path, work / "packed.ekpack", with_passport=False)
        write_atomically(out / "packed.json", _Packed(bytes=packed.size_bytes).model_dump_json() + "\n")
        os.replace(artifact.folder, out / "artifact")

    def _answers(self, artifact: Artifact, workload: Workload, work: Path) -> _FileAnswers:
        """The file's own answers on the whole evaluation set, against labels and teacher."""
        import numpy as np

        from edgekit.diagnosis.probing import run_file
        from edgekit.train import agreement, top1_accuracy

        samples = held_out_batches(workload, len(workload.evaluation), seed=self._context.recipe.seed)
        outputs = np.concatenate([o[0] for o in run_file(artifact.path, artifact.passport.format, samples, work)])
        count = len(outputs)
        reference, targets = self._teacher.answers()
        return _FileAnswers(
            accuracy=top1_accuracy(outputs, targets[:count]),
            agreement=agreement(outputs, reference[:count]),
            samples=count,
        )

    # ---- two students

    def _timed(self, before: _Converted, after: _Converted) -> _PairRecord:
        options = self._options
        shas = [before.artifact.passport.sha256, after.artifact.passport.sha256]
        key: list[object] = [VERSION, *shas, options.device, options.rounds]
        name = f"proof-timing-{before.artifact.passport.name}-{after.artifact.passport.name}"
        stage = self._context.stage(name, key, functools.partial(self._time, before, after))
        return read_record(_PairRecord, stage.folder / "timing.json")

    def _time(self, before: _Converted, after: _Converted, _work: Path, out: Path) -> None:
        from edgekit.benchmarks.inputs import random_inputs
        from edgekit.benchmarks.side_by_side import measure_pair
        from edgekit.store import ResultStore

        def tell(text: str) -> None:
            self._context.observe(StageEvent(stage="proof-timing", status=StageStatus.PROGRESS, text=text))

        root = self._context.workspace.root
        with ResultStore(root, url=self._context.options.store_url) as store:
            pair = measure_pair(
                (before.artifact, random_inputs(before.artifact.passport, seed=0)),
                (after.artifact, random_inputs(after.artifact.passport, seed=0)),
                self._options.device,
                store=store,
                work_dir=root / "inputs",
                rounds=self._options.rounds,
                on_progress=tell,
            )
        first, second = (
            _Timing(min_ns=timed.min_ns, p50_ns=timed.p50_ns, memory_bytes=timed.memory_bytes)
            for timed in (pair.before, pair.after)
        )
        record = _PairRecord(before=first, after=second, device=pair.device, emulated=pair.emulated)
        write_atomically(out / "timing.json", record.model_dump_json(indent=2) + "\n")


def _effect(claimed: Effect | None, file: _Converted, timing: _Timing) -> Effect:
    """What the student claims, with what its file is."""
    answers = file.answers.model_dump() if file.answers is not None else {}
    return (claimed or Effect()).model_copy(
        update={
            **answers,
            "file_bytes": file.artifact.passport.size_bytes,
            "packed_bytes": file.packed_bytes,
            "memory_bytes": timing.memory_bytes,
            "latency_min_ns": timing.min_ns,
            "latency_p50_ns": timing.p50_ns,
        }
    )
