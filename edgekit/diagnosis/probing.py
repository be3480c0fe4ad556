"""Probing children as the rest of the diagnosis sees them: a file's outputs, or what every layer of it holds."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.artifact import Artifact, Format
from edgekit.converters.wire import save_samples
from edgekit.diagnosis.wire import ProbeAnswer, ProbeRequest, Tap
from edgekit.errors import ConversionError, EdgekitError
from edgekit.isolation import failure_of, run_child
from edgekit.schema import read_record, write_atomically

__all__ = ["Probe", "probe_file", "run_file"]

Samples = Sequence[Sequence[np.ndarray]]

SECONDS = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a child found of one file; its folder lies below the diagnosis' own."""

    folder: Path
    answer: ProbeAnswer

    @property
    def taps(self) -> tuple[Tap, ...]:
        return self.answer.taps

    @property
    def tapped_file(self) -> Path:
        return self.folder / self.answer.tapped_file

    def held(self, index: int) -> dict[str, np.ndarray]:
        """What the file holds of each layer on one sample, by node."""
        with np.load(self.folder / f"values.{index}.npz", allow_pickle=False) as stored:
            return {tap.node: stored[f"t{i}"] for i, tap in enumerate(self.taps)}

    def outputs(self, samples: int) -> list[list[np.ndarray]]:
        """The file's own outputs, untapped, for each sample."""
        return _outputs(self.folder, samples, self.answer.own_outputs)


def _outputs(folder: Path, samples: int, count: int) -> list[list[np.ndarray]]:
    with np.load(folder / "outputs.npz", allow_pickle=False) as stored:
        return [[stored[f"o{n}_{i}"] for i in range(count)] for n in range(samples)]


def run_file(path: Path, kind: Format, samples: Samples, work: Path) -> list[list[np.ndarray]]:
    """The outputs of a model file on every sample, dequantized. Raises ConversionError where its runtime dies."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=work))
    try:
        answer = _ask(folder, ProbeRequest(path=str(path.resolve()), format=kind, only_run=True), samples)
        return _outputs(folder, len(samples), answer.own_outputs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def probe_file(
    artifact: Artifact,
    request: ProbeRequest,
    program: Path,
    samples: Samples,
    calibration: Samples,
    work: Path,
) -> Probe:
    """What the layers of an artifact hold. `program` is the file whose sha256 is in the request."""
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir=work))
    os.symlink(program, folder / "program.pt2")
    if request.has_calibration:
        save_samples(folder / "calibration.npz", calibration)
    return Probe(folder=folder, answer=_ask(folder, request, samples, who=artifact.passport.name))


def _ask(folder: Path, request: ProbeRequest, samples: Samples, who: str = "") -> ProbeAnswer:
    save_samples(folder / "samples.npz", samples)
    write_atomically(folder / "request.json", request.model_dump_json())
    ended = run_child("edgekit.diagnosis.worker", folder, timeout_seconds=SECONDS)
    name = who or Path(request.path).name
    death = failure_of(
        ended, backend=request.backend or request.format.value, stage=f"probe {name}", timeout_seconds=SECONDS
    )
    if death is not None:
        raise death
    answer = read_record(ProbeAnswer, folder / "answer.json")
    if answer.error is not None:
        error: EdgekitError = answer.error.rebuilt(backend=request.format.value, stderr=ended.stderr_tail)
        raise error
    if request.only_run or answer.taps:
        return answer
    raise ConversionError(
        "no layer of the file could be told to be a node of the program",
        backend=request.format.value,
        stage=f"probe {name}",
        hint="is the file an artifact of this workload?",
    )
