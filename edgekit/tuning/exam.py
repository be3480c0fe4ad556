"""How a file answers on one data set, against the labels and the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.benchmarks.accuracy import paired_drop, wilson
from edgekit.converters.shapes import Order, permuted
from edgekit.diagnosis.probing import run_file
from edgekit.diagnosis.values import Bound
from edgekit.errors import UserError
from edgekit.training.evaluation import evaluate_outputs
from edgekit.tuning.values import TuneGate

if TYPE_CHECKING:
    from torch import nn

    from edgekit.artifact import Artifact
    from edgekit.workload import MapDataset, Workload

__all__ = ["Exam", "exam_of", "holds", "refused_gate", "verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """Inputs as a file takes them, their classes, and the teacher's answers."""

    name: str
    samples: tuple[tuple[np.ndarray, ...], ...]
    labels: np.ndarray
    teacher: np.ndarray
    """The class the teacher chooses for each input, `[N]`."""

    def of_file(self, artifact: Artifact, work: Path, orders: tuple[Order, ...]) -> Bound:
        """The file's accuracy here. Raises ConversionError where its runtime dies."""
        given = [permuted(sample, orders) for sample in self.samples]
        outputs = run_file(artifact.path, artifact.passport.format, given, work)
        return self.of_outputs(np.concatenate([sample[0] for sample in outputs]))

    def of_outputs(self, logits: np.ndarray) -> Bound:
        """The accuracy of logits `[N, classes]`."""
        chosen = classes_of(logits)
        right, taught = chosen == self.labels, self.teacher == self.labels
        return Bound(
            data=self.name,
            metric="accuracy",
            reference=wilson(int(taught.sum()), len(taught)),
            value=wilson(int(right.sum()), len(right)),
            drop=paired_drop(taught, right),
        )


def exam_of(data: MapDataset, name: str, workload: Workload, teacher: nn.Module) -> Exam:
    """The exam of one data set; what does not fill a batch of the example's size is left out."""
    from edgekit.pipeline.samples import input_arrays

    size = int(workload.example_inputs[0].shape[0])
    count = len(data) - len(data) % size
    items = [data[index] for index in range(count)]
    arrays = [input_arrays(item) for item in items]
    samples = tuple(
        tuple(np.stack(column) for column in zip(*arrays[start : start + size], strict=True))
        for start in range(0, count, size)
    )
    outputs, labels = evaluate_outputs(teacher, data)
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise UserError(
            f"the teacher's output 0 has shape {outputs.shape}: no class to be right or wrong",
            hint="tune is for models whose output 0 is [batch, classes]",
        )
    return Exam(name=name, samples=samples, labels=labels[:count], teacher=classes_of(outputs[:count]))


def classes_of(logits: np.ndarray) -> np.ndarray:
    """The class of each row; -1 where a value is not finite."""
    chosen: np.ndarray = np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)
    return chosen


def holds(gate: TuneGate, bound: Bound) -> bool:
    """Whether the gate holds as measured."""
    if gate.max_drop_points is not None and round(100 * bound.drop.value, 6) > gate.max_drop_points:
        return False
    return gate.min_accuracy is None or bound.value.value >= gate.min_accuracy


def verdict(gate: TuneGate, bound: Bound) -> tuple[bool, str]:
    """Whether the gate holds for sure (by the whole 95 % interval), and the numbers."""
    told, sure = [], True
    if gate.max_drop_points is not None:
        drop = bound.drop
        told.append(
            f"{bound.metric} {100 * drop.value:.2f} points under the teacher (95 % interval {100 * drop.low:.2f} to "
            f"{100 * drop.high:.2f}; {gate.max_drop_points:g} allowed)"
        )
        sure &= 100 * drop.high <= gate.max_drop_points
    if gate.min_accuracy is not None:
        value = bound.value
        told.append(f"{bound.metric} {value.value:.2%} (at least {value.low:.2%}; {gate.min_accuracy:.2%} asked for)")
        sure &= value.low >= gate.min_accuracy
    how = "" if sure or not holds(gate, bound) else ": as measured it holds, with too few inputs to be sure"
    return sure, f"{' and '.join(told)} on {bound.data}{how}"


def refused_gate(gate: TuneGate, exam: Exam) -> None:
    """Raise UserError for a gate that no file can pass on these data."""
    total = len(exam.teacher)
    equal = np.ones(total, dtype=bool)
    least = 100 * paired_drop(equal, equal).high
    if gate.max_drop_points is not None and least > gate.max_drop_points:
        raise UserError(
            f"a drop of {gate.max_drop_points:g} points cannot be shown on {exam.name}: even a file that answers as "
            f"the teacher does has a 95 % interval up to {least:.2f} points",
            hint=f"allow {least:.2g} or more, or give the workload more evaluation data",
        )
    if gate.min_accuracy is not None:
        taught = exam.of_outputs(np.eye(int(exam.teacher.max()) + 1)[exam.teacher])
        if taught.value.high < gate.min_accuracy:
            raise UserError(
                f"the teacher itself has {taught.metric} {taught.value.value:.2%} on {exam.name}; "
                f"{gate.min_accuracy:.2%} is out of reach",
                hint="lower --min-accuracy, or train the teacher further",
            )
