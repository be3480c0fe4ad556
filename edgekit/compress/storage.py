"""A student on disk: `weights.safetensors` and `student.json`, nothing that can run code when it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from edgekit.artifact import LineageStep
from edgekit.compress.qat_options import TRAINED_BACKENDS
from edgekit.compress.student import Base, Edit, Student, WeightConstraint, replay
from edgekit.errors import ArtifactError, HostError, WorkloadError
from edgekit.schema import Record, read_record, write_atomically
from edgekit.training.weights import load_weights, safetensors_function

__all__ = ["STUDENT_NAME", "WEIGHTS_NAME", "load_student", "save_student"]

WEIGHTS_NAME = "weights.safetensors"
TRAINED_NAME = "trained.{backend}.safetensors"
STUDENT_NAME = "student.json"


class _StudentRecord(Record):
    schema_version: Literal[1] = 1
    base: Base = "model"
    edits: tuple[Edit, ...] = ()
    constraints: tuple[WeightConstraint, ...] = ()
    trained: tuple[str, ...] = ()
    """Backends with weights of their own, in TRAINED_NAME."""
    lineage: tuple[LineageStep, ...] = ()


def save_student(student: Student, folder: Path) -> None:
    """Write `student` into `folder`; `student.json` comes last, so where it is the student is whole."""
    save_model = safetensors_function("save_model")
    record = _StudentRecord(
        base=student.base,
        edits=student.edits,
        constraints=student.constraints,
        trained=tuple(student.trained),
        lineage=student.lineage,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{WEIGHTS_NAME}.partial"
        # Tensors that share memory (tied weights) are written once; load_model ties them again.
        save_model(student.module, str(partial))
        partial.replace(folder / WEIGHTS_NAME)
        for backend, state in student.trained.items():
            safetensors_function("save_file")(dict(state), str(partial))
            partial.replace(folder / TRAINED_NAME.format(backend=backend))
        write_atomically(folder / STUDENT_NAME, record.model_dump_json(indent=2) + "\n")
    except OSError as e:
        raise HostError(f"{folder}: the student cannot be written: {e}") from e


def load_student(
    folder: Path, fresh: nn.Module | Callable[[Base], nn.Module], example_inputs: Sequence[Tensor]
) -> Student:
    """The student saved in `folder`, its edits replayed on `fresh`, the architecture they started from.

    `fresh` may be `workload.build_base`, which is then asked for the one the student names.

    Raises ArtifactError when a file is missing or broken or does not belong to that architecture.
    """
    try:
        record = read_record(_StudentRecord, folder / STUDENT_NAME)
    except FileNotFoundError as e:
        raise ArtifactError(f"{folder}: holds no {STUDENT_NAME}") from e
    except (OSError, ValueError) as e:
        raise ArtifactError(f"{folder / STUDENT_NAME}: {e}") from e
    try:
        start = fresh if isinstance(fresh, nn.Module) else fresh(record.base)
        module = replay(start, record.edits, example_inputs)
        load_weights(module, folder / WEIGHTS_NAME)
    except (ValueError, WorkloadError) as e:
        raise ArtifactError(
            f"{folder}: the student does not fit the workload's model: {e}",
            hint="the model's code changed since the student was made; run the step again",
        ) from e
    return Student(
        module=module.eval(),
        base=record.base,
        edits=record.edits,
        constraints=record.constraints,
        trained={backend: _trained(folder, backend) for backend in record.trained},
        lineage=record.lineage,
    )


def _trained(folder: Path, backend: str) -> dict[str, Tensor]:
    path = folder / TRAINED_NAME.format(backend=backend)
    if backend not in TRAINED_BACKENDS:
        raise ArtifactError(f"{folder / STUDENT_NAME}: '{backend}' is no backend to train for")
    try:
        state: dict[str, Tensor] = safetensors_function("load_file")(str(path))
    except Exception as e:  # a missing or broken file, in safetensors' own errors
        raise ArtifactError(f"{path}: cannot be read: {e}", hint="run the step again") from e
    return state
