"""What a climb starts from: the student to bring to int8, its teacher, and their data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import NodeRule
from edgekit.compress.student import Student
from edgekit.converters.base import QuantizationOptions
from edgekit.errors import UserError, WorkloadError

if TYPE_CHECKING:
    from torch import nn

    from edgekit.tuning.options import TuneOptions
    from edgekit.workload import Workload

__all__ = ["Start", "start"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A workload with the weights to start from."""

    name: str
    workload: Workload
    source: str
    """sha256 of the user's code; empty for a Workload given as a value."""
    teacher: nn.Module
    student: Student
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    input_layout: str | None = None
    timeout_seconds: float = 900.0


def start(subject: str | Path | Workload, options: TuneOptions) -> Start:
    """From a recipe (`*.yaml`, whose teacher and student are learned where they are not yet), a workload's name, or a
    workload. Raises WorkloadError for a model without weights."""
    from edgekit.workload import Workload, load_workload

    if isinstance(subject, Workload):
        return _of_workload(subject, subject.name, "", options)
    if str(subject).endswith((".yaml", ".yml")):
        return _of_recipe(Path(subject), options)
    loaded = load_workload(str(subject), options.params)
    return _of_workload(loaded.workload, str(subject), loaded.source_sha256, options)


def _of_workload(workload: Workload, name: str, source: str, options: TuneOptions) -> Start:
    if options.teacher is None and options.weights is None and not workload.has_weights:
        raise WorkloadError(
            f"workload '{workload.name}': model is a function that makes an untrained model",
            hint="give --weights (a .safetensors file or a stage folder of a run) or a recipe, or let the workload "
            "return a trained instance",
        )
    own = Student(module=workload.build_model().eval()) if workload.has_weights else None
    student = _read(workload, options.weights) if options.weights is not None else own
    teacher = _read(workload, options.teacher) if options.teacher is not None else own
    student, teacher = student or teacher, teacher or student
    assert student is not None and teacher is not None  # noqa: S101, PT018 - one of three was given
    return Start(name=name, workload=workload, source=source, teacher=teacher.module, student=student)


def _read(workload: Workload, path: Path) -> Student:
    from edgekit.compress.storage import load_student
    from edgekit.training.weights import load_weights

    if not path.exists():
        raise UserError(f"{path}: no such weights", hint="a .safetensors file, or a stage folder of a run")
    if path.is_dir():
        return load_student(path, workload.build_base, workload.example_inputs)
    module = workload.build_model()
    load_weights(module, path)
    return Student(module=module.eval())


def _before_qat(student: Student) -> Student:
    """The float student: what a recipe trained for a backend is a rung here."""
    lineage = tuple(step for step in student.lineage if step.step != "qat")
    return replace(student, trained={}, lineage=lineage)


def _of_recipe(path: Path, options: TuneOptions) -> Start:
    from edgekit.pipeline.learning import learn
    from edgekit.pipeline.run import RunOptions, open_run
    from edgekit.recipe import load_recipe

    if options.weights is not None or options.teacher is not None:
        raise UserError("a recipe says itself what its teacher and student are", hint="leave the weights out")
    recipe = load_recipe(path, overrides={("params", name): value for name, value in options.params.items()})
    context = open_run(recipe, RunOptions(workspace=options.workspace, base=path.resolve().parent))
    learned = learn(context)
    convert = recipe.convert
    return Start(
        name=str(path),
        workload=context.workload,
        source=context.identity.source,
        teacher=learned.teacher.module,
        student=_before_qat(learned.student),
        quantization=QuantizationOptions(
            io_dtype=convert.io_dtype,
            percentile=convert.percentile,
            rules=tuple(NodeRule(node=node, action=action) for node, action in convert.rules.items()),
        ),
        input_layout=convert.input_layout,
        timeout_seconds=convert.timeout_seconds,
    )
