"""The stages before conversion: teacher, compression steps, and the PyTorch outputs all else is judged by."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekit.artifact import LineageStep, StepVerdict
from edgekit.compress.proof import groups_of
from edgekit.compress.student import Student
from edgekit.pipeline.events import StageEvent, StageStatus
from edgekit.pipeline.facts import tool_versions
from edgekit.pipeline.pretraining import pretrained_teacher
from edgekit.pipeline.proving import Made, prove
from edgekit.pipeline.workspace import Stage
from edgekit.recipe import Recipe, Step
from edgekit.schema import sha256_of
from edgekit.training.loggers import keep_logs
from edgekit.workload import LoadedWorkload, sample_digest

if TYPE_CHECKING:
    import numpy as np

    from edgekit.compress.effects import TeacherReference
    from edgekit.pipeline.run import Context
    from edgekit.train import TrainProgress

__all__ = ["Learned", "Reference", "WorkloadIdentity", "identify", "learn", "reference_outputs"]

VERSION = 1
"""Raised when a stage here starts to give other outputs for the same inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadIdentity:
    """What the stages are keyed by: the user's code, parameters and data."""

    source: str
    params: dict[str, Any]
    train: str | None
    calibration: str | None
    evaluation: str | None
    unlabelled: str | None = None


def identify(loaded: LoadedWorkload, recipe: Recipe) -> WorkloadIdentity:
    """The identity of a workload: hashes of its source and of samples of its data."""
    workload = loaded.workload
    return WorkloadIdentity(
        source=loaded.source_sha256,
        params=dict(recipe.params),
        train=sample_digest(workload.train),
        calibration=sample_digest(workload.calibration),
        evaluation=sample_digest(workload.evaluation),
        unlabelled=sample_digest(workload.unlabelled),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The students after each step, teacher first, and the stages that made them."""

    teacher: Student
    student: Student
    teacher_stage: Stage
    student_stage: Stage
    lineage: tuple[LineageStep, ...] = ()
    """Every step that was run, with its proof; those that were dropped from the student too."""
    pretraining: tuple[LineageStep, ...] = ()
    """What the teacher's model went through before the labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A PyTorch model's outputs over the evaluation set, `[N, …] float32`, and the targets `[N]`."""

    outputs: np.ndarray
    targets: np.ndarray
    stage: Stage


def learn(context: Context) -> Learned:
    """Teacher, then each compression step, each a stage of its own."""
    from edgekit.compress.effects import TeacherReference

    teacher_stage, teacher, pretraining = _teacher(context)
    judge = TeacherReference(teacher.module, context.workload)
    last = Made(stage=teacher_stage, student=teacher)
    told: list[LineageStep] = []
    for group in groups_of(context.recipe.student):
        chain = [last]
        for index in group:
            chain.append(_made(context, judge, chain[-1], index))
        steps = prove(context, judge, chain) or tuple(made.student.lineage[-1] for made in chain[1:])
        last, steps = _kept(context, chain, steps, group)
        told.extend(steps)
    kept = tuple(step for step in told if step.proof is None or not step.proof.dropped)
    return Learned(
        teacher=teacher,
        student=replace(last.student, lineage=kept),
        teacher_stage=teacher_stage,
        student_stage=last.stage,
        lineage=tuple(told),
        pretraining=pretraining,
    )


def _made(context: Context, judge: TeacherReference, before: Made, index: int) -> Made:
    """The student after one step of the recipe."""
    step = _resolved(context.recipe, context.recipe.student[index])
    name = f"{index + 1}-{step.kind}"
    build = functools.partial(_step, context, judge, before.student, step, name)
    key: list[object] = [VERSION, before.stage.key, step.kind, step.options, context.recipe.seed, _train_versions()]
    if context.identity.unlabelled is not None:
        key.append(context.identity.unlabelled)
    key += _files_of(context, step)
    stage = context.stage(name, key, build)
    return Made(stage=stage, student=_load(context, stage))


def _resolved(recipe: Recipe, step: Step) -> Step:
    """A `qat` step that names no backends trains for those the recipe converts to."""
    if step.qat is None or step.qat.backends is not None:
        return step
    return step.model_copy(update={"qat": step.qat.model_copy(update={"backends": recipe.trained_backends})})


def _kept(
    context: Context, chain: list[Made], steps: tuple[LineageStep, ...], group: tuple[int, ...]
) -> tuple[Made, tuple[LineageStep, ...]]:
    """What the recipe goes on from: without these steps where one is marked `keep_if_paid` and they did not pay."""
    is_marked = any(context.recipe.student[index].keep_if_paid for index in group)
    proof = steps[0].proof
    if not is_marked or proof is None or proof.verdict is not StepVerdict.NOT_PAID:
        return chain[-1], steps
    names = " + ".join(step.step for step in steps)
    context.warn("student", f"{names}: dropped, it did not pay: {proof.reason}")
    dropped = proof.model_copy(update={"dropped": True})
    return chain[0], tuple(step.model_copy(update={"proof": dropped}) for step in steps)


class _Teacher(NamedTuple):
    stage: Stage
    student: Student
    pretraining: tuple[LineageStep, ...]


def _teacher(context: Context) -> _Teacher:
    from edgekit.compress.storage import save_student
    from edgekit.training.teacher import train_teacher

    recipe, identity = context.recipe, context.identity
    pretrained = pretrained_teacher(context)

    def build(work: Path, out: Path) -> None:
        model = train_teacher(
            context.workload,
            recipe.teacher,
            seed=recipe.seed,
            work_dir=work,
            weights_base=context.base,
            pretrained=pretrained.module if pretrained is not None else None,
            on_progress=training_progress(context, "teacher"),
        )
        save_student(Student(module=model), out)
        keep_logs(work, out)

    weights = recipe.teacher.weights
    weights_hash = sha256_of(context.base / weights) if weights and (context.base / weights).is_file() else weights
    key: list[object] = [
        VERSION,
        identity.source,
        identity.params,
        identity.train,
        recipe.teacher,
        weights_hash,
        recipe.seed,
        _train_versions(),
    ]
    if pretrained is not None:
        key.append(pretrained.stage.key)
    stage = context.stage("teacher", key, build)
    return _Teacher(stage, _load(context, stage), () if pretrained is None else (pretrained.step,))


def _step(
    context: Context, teacher: TeacherReference, student: Student, step: Step, name: str, work: Path, out: Path
) -> None:
    from edgekit.compress.steps import run_step
    from edgekit.compress.storage import save_student

    made = run_step(
        student,
        teacher,
        step,
        context.workload,
        seed=context.recipe.seed,
        work_dir=work,
        base=context.base,
        on_progress=training_progress(context, name),
    )
    save_student(made, out)
    keep_logs(work, out)


def _files_of(context: Context, step: Step) -> list[object]:
    """The identity of the files a step's options name: their bytes, not their names, are what it is made from."""
    named = getattr(step.options, "teacher_outputs", None)
    if named is None:
        return []
    path = context.base / named
    return [sha256_of(path) if path.is_file() else named]


def _load(context: Context, stage: Stage) -> Student:
    from edgekit.compress.storage import load_student

    return load_student(stage.folder, context.workload.build_base, context.workload.example_inputs)


def reference_outputs(context: Context, name: str, student: Student, made_by: Stage) -> Reference:
    """The model's PyTorch fp32 outputs over the whole evaluation set, computed once."""
    import numpy as np

    from edgekit.train import evaluate_outputs

    def build(_work: Path, out: Path) -> None:
        outputs, targets = evaluate_outputs(
            student.module, context.workload.evaluation, on_progress=plain_progress(context, name)
        )
        np.save(out / "outputs.npy", outputs, allow_pickle=False)
        np.save(out / "targets.npy", targets, allow_pickle=False)

    stage = context.stage(name, [VERSION, made_by.key, context.identity.evaluation, _train_versions()], build)
    return Reference(
        outputs=np.load(stage.folder / "outputs.npy", allow_pickle=False),
        targets=np.load(stage.folder / "targets.npy", allow_pickle=False),
        stage=stage,
    )


def _train_versions() -> dict[str, str]:
    return {k: v for k, v in tool_versions().items() if k in ("torch", "torch-pruning", "pytorch-lightning")}


def training_progress(context: Context, stage: str) -> Callable[[TrainProgress], None]:
    """An observer of training that tells the pipeline's."""

    def tell(progress: TrainProgress) -> None:
        fraction = progress.step / progress.total_steps if progress.total_steps else None
        text = f"epoch {progress.epoch}/{progress.epochs} · loss {progress.loss:.3f}"
        if progress.accuracy is not None:
            text += f" · accuracy {progress.accuracy:.1%}"
        if progress.validation is not None:
            text += f" · validation loss {progress.validation.loss:.3f}"
        if progress.seconds_left is not None:
            text += f" · {round(progress.seconds_left)} s left"
        context.observe(StageEvent(stage=stage, status=StageStatus.PROGRESS, fraction=fraction, text=text))

    return tell


def plain_progress(context: Context, stage: str) -> Callable[[int, int], None]:
    """An observer of `done` of `total` that tells the pipeline's."""

    def tell(done: int, total: int) -> None:
        context.observe(StageEvent(stage=stage, status=StageStatus.PROGRESS, fraction=done / total))

    return tell
