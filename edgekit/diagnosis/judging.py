"""Accuracy of an artifact against the float model, on one part of a workload's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact import Artifact
from edgekit.diagnosis.probing import run_file
from edgekit.diagnosis.subject import Subject
from edgekit.diagnosis.values import Bound
from edgekit.errors import UserError, WorkloadError

if TYPE_CHECKING:
    from edgekit.workload import MapDataset

__all__ = ["Judge", "evaluation_judge", "search_judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Inputs, their labels where there are any, and the float model's answers."""

    data: str
    samples: Sequence[tuple[np.ndarray, ...]]
    labels: np.ndarray | None
    answers: np.ndarray
    """The class the float model chooses for each input, `[N]`."""
    subject: Subject

    def bound(self, artifact: Artifact) -> Bound:
        """The artifact's accuracy here, against the float model's on the same inputs."""
        from edgekit.benchmarks.accuracy import paired_drop, wilson

        outputs = run_file(artifact.path, artifact.passport.format, self.samples, self.subject.work)
        chosen = _classes(np.concatenate([sample[0] for sample in outputs]))
        wanted = self.answers if self.labels is None else self.labels
        right, float_right = chosen == wanted, self.answers == wanted
        is_accuracy = self.labels is not None
        return Bound(
            data=self.data,
            metric="accuracy" if is_accuracy else "agreement",
            reference=wilson(int(float_right.sum()), len(wanted)) if is_accuracy else None,
            value=wilson(int(right.sum()), len(wanted)),
            drop=paired_drop(float_right, right),
        )


def _classes(logits: np.ndarray) -> np.ndarray:
    """The class of each row; -1 where a value is not finite."""
    chosen: np.ndarray = np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)
    return chosen


def search_judge(subject: Subject, count: int, calibrated: int) -> Judge:
    """The judge a search may ask: training data (else calibration data) that did not set the ranges, if there is."""
    workload = subject.workload
    data = workload.train if workload.train is not None else workload.calibration
    if data is None:
        raise WorkloadError(
            f"workload '{workload.name}' has no training or calibration data to search on",
            hint="give Workload(train=…): the evaluation data are kept for verifying what was found",
        )
    # the very draw that calibration_batches makes of the same data
    drawn = np.random.default_rng(subject.seed).choice(len(data), size=min(calibrated, len(data)), replace=False)
    used = set(drawn.tolist()) if workload.calibration is None or workload.train is None else set()
    rest = np.array([i for i in range(len(data)) if i not in used], dtype=np.int64)
    pool = rest if len(rest) >= min(count, 100) else np.arange(len(data))
    chosen = np.random.default_rng(subject.seed + 1).permutation(pool)[:count]
    name = "training" if workload.train is not None else "calibration"
    return _judge(subject, data, np.sort(chosen), f"{len(chosen)} {name} inputs")


def evaluation_judge(subject: Subject, count: int) -> Judge:
    """The judge of the end: evaluation data, which no search sees."""
    data = subject.workload.evaluation
    chosen = np.sort(np.random.default_rng(subject.seed).permutation(len(data))[:count])
    return _judge(subject, data, chosen, f"{len(chosen)} evaluation inputs")


def _judge(subject: Subject, data: MapDataset, indices: np.ndarray, name: str) -> Judge:
    from edgekit.converters.fidelity import reference_outputs
    from edgekit.pipeline.samples import input_arrays

    size = int(subject.workload.example_inputs[0].shape[0])
    indices = indices[: len(indices) - len(indices) % size]
    items = [data[int(i)] for i in indices]
    arrays = [input_arrays(item) for item in items]
    samples = subject.permuted(
        [
            tuple(np.stack(column) for column in zip(*arrays[start : start + size], strict=True))
            for start in range(0, len(arrays), size)
        ]
    )
    if not samples:
        raise UserError(f"{name}: not one batch of {size}", hint="allow more inputs")
    outputs = np.concatenate([sample[0] for sample in reference_outputs(subject.program, samples)])
    if outputs.ndim != 2 or outputs.shape[1] < 2 or len(outputs) != len(indices):
        raise UserError(
            f"the model's output 0 has shape {outputs.shape} for {len(indices)} inputs: no class to be right or wrong",
            hint="an accuracy bound is for models whose output 0 is [batch, classes]; --sensitivity is for any",
        )
    return Judge(data=name, samples=samples, labels=_labels(items), answers=_classes(outputs), subject=subject)


def _labels(items: Sequence[object]) -> np.ndarray | None:
    """One class a sample, where the targets are that."""
    targets = [np.asarray(item[1]) for item in items if isinstance(item, tuple | list) and len(item) > 1]
    is_class = [t.size == 1 and np.issubdtype(t.dtype, np.integer) for t in targets]
    if len(targets) != len(items) or not all(is_class):
        return None
    return np.array([int(t.reshape(-1)[0]) for t in targets])
