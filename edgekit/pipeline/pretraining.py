"""The stage before the teacher's: pretraining without labels, and what it was worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import LineageStep
from edgekit.pipeline.events import StageEvent, StageStatus
from edgekit.pipeline.facts import tool_versions
from edgekit.schema import Record, read_record, write_atomically

if TYPE_CHECKING:
    from torch import nn

    from edgekit.pipeline.run import Context
    from edgekit.pipeline.workspace import Stage
    from edgekit.pretrain.options import PretrainOptions
    from edgekit.workload import MapDataset

__all__ = ["Pretrained", "pretrained_teacher"]

VERSION = 1
"""Raised when the stages here start to give other outputs for the same inputs."""
JUDGED_SAMPLES = 2000
"""At most so many labelled samples and so many others tell what the representation is worth."""

HEAD_SAMPLES = 5000
"""At most so many labelled samples set the head; with more of them training makes it anyway."""


class _PretrainingRecord(Record):
    """`pretraining.json`."""

    features: str
    spread: str
    collapsed: bool


class _WorthRecord(Record):
    """`worth.json`: nearest neighbours' accuracy (k = 20) on the representation before and after."""

    before: float
    after: float
    labels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """A model that has seen the unlabelled data, and the stage that made it."""

    module: nn.Module
    stage: Stage
    step: LineageStep


def pretrained_teacher(context: Context) -> Pretrained | None:
    """The teacher's model after the recipe's `pretrain`; None where it has none.

    Trains on the workload's `unlabelled` data, else on `train` without its labels. Warns of a collapsed
    representation.
    """
    from edgekit.compress.storage import WEIGHTS_NAME
    from edgekit.training.teacher import fresh_model
    from edgekit.training.weights import load_weights

    options = context.recipe.teacher.pretrain
    if options is None:
        return None
    data = _data(context)
    identity = context.identity
    key: list[object] = [
        VERSION,
        identity.source,
        identity.params,
        identity.unlabelled or identity.train,
        options,
        context.recipe.seed,
        _versions(),
    ]

    def build(work: Path, out: Path) -> None:
        _pretrain(context, options, data, work, out)

    stage = context.stage("pretrain", key, build)
    seconds = stage.seconds
    module = fresh_model(context.workload, seed=context.recipe.seed)
    load_weights(module, stage.folder / WEIGHTS_NAME)
    found = read_record(_PretrainingRecord, stage.folder / "pretraining.json")
    if found.collapsed:
        context.warn("pretrain", found.spread)
    worth = _worth(context, module.eval(), stage, found.features)
    if options.probe_head:
        stage = _headed(context, module, stage)
    summary = f"pretrained by {options.method} for {options.epochs} epochs on {len(data)} samples without labels"
    if worth is not None:
        summary += (
            f"; nearest neighbours among {worth.labels} labelled samples {100 * worth.before:.1f} → "
            f"{100 * worth.after:.1f} %"
        )
    step = LineageStep(
        step="pretrain",
        summary=f"{summary}; {found.spread}",
        options=options.model_dump(mode="json", exclude_none=True),
        seed=context.recipe.seed,
        seconds=seconds,
    )
    return Pretrained(module=module, stage=stage, step=step)


def _data(context: Context) -> MapDataset:
    from edgekit.pretrain.data import without_labels
    from edgekit.training.teacher import training_data

    workload = context.workload
    if workload.unlabelled is not None:
        return workload.unlabelled
    return without_labels(training_data(workload, "pretraining"), inputs=len(workload.example_inputs))


def _pretrain(context: Context, options: PretrainOptions, data: MapDataset, work: Path, out: Path) -> None:
    from edgekit.compress.storage import save_student
    from edgekit.compress.student import Student
    from edgekit.pipeline.learning import training_progress
    from edgekit.pretrain.loop import pretrain
    from edgekit.training.loggers import keep_logs
    from edgekit.training.teacher import fresh_model

    seed = context.recipe.seed
    module = fresh_model(context.workload, seed=seed)
    tell = training_progress(context, "pretrain")
    result = pretrain(module, data, options, seed=seed, work_dir=work, on_progress=tell)
    save_student(Student(module=result.module), out)
    keep_logs(work, out)
    record = _PretrainingRecord(
        features=result.features, spread=result.spread.told(), collapsed=result.spread.is_collapsed
    )
    write_atomically(out / "pretraining.json", record.model_dump_json(indent=2) + "\n")


def _worth(context: Context, module: nn.Module, made_by: Stage, features: str) -> _WorthRecord | None:
    """What nearest neighbours make of the representation before and after; None without labels to judge by."""
    from edgekit.pretrain.data import evenly_spaced
    from edgekit.pretrain.evaluation import knn_accuracy
    from edgekit.training.teacher import fresh_model

    workload, identity = context.workload, context.identity
    if workload.train is None:
        return None
    train, evaluation = (evenly_spaced(data, JUDGED_SAMPLES) for data in (workload.train, workload.evaluation))

    def build(_work: Path, out: Path) -> None:
        context.observe(StageEvent(stage="pretrain-worth", status=StageStatus.PROGRESS, text="nearest neighbours"))
        fresh = fresh_model(workload, seed=context.recipe.seed)
        before = knn_accuracy(fresh, train, evaluation, features=features)
        after = knn_accuracy(module, train, evaluation, features=features)
        record = _WorthRecord(before=before.accuracy, after=after.accuracy, labels=after.labels)
        write_atomically(out / "worth.json", record.model_dump_json(indent=2) + "\n")

    key: list[object] = [VERSION, made_by.key, identity.train, identity.evaluation, _versions()]
    return read_record(_WorthRecord, context.stage("pretrain-worth", key, build).folder / "worth.json")


def _headed(context: Context, module: nn.Module, pretrained: Stage) -> Stage:
    """The stage that set the head of `module`, in place, by the linear probe; warns where the head is no such layer."""
    from edgekit.compress.storage import WEIGHTS_NAME, save_student
    from edgekit.compress.student import Student
    from edgekit.pretrain.data import evenly_spaced
    from edgekit.pretrain.head import set_probe_head, why_no_probe_head
    from edgekit.training.teacher import training_data
    from edgekit.training.weights import load_weights

    data = training_data(context.workload, "training the teacher")
    reason = why_no_probe_head(module, data)
    if reason is not None:
        context.warn("pretrain", f"the head starts from random weights: {reason}")
        return pretrained

    def build(_work: Path, out: Path) -> None:
        set_probe_head(module, evenly_spaced(data, HEAD_SAMPLES))
        save_student(Student(module=module), out)

    key: list[object] = [VERSION, pretrained.key, context.identity.train, _versions()]
    stage = context.stage("pretrain-head", key, build)
    load_weights(module, stage.folder / WEIGHTS_NAME)
    return stage


def _versions() -> dict[str, str]:
    return {k: v for k, v in tool_versions().items() if k in ("torch", "pytorch-lightning")}
