"""`why`: artifacts examined, and on request repaired, ranked and searched."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from edgekit.artifact import Artifact, Format
from edgekit.diagnosis.examination import Examination, examine
from edgekit.diagnosis.reconversion import float_file_of, placed
from edgekit.diagnosis.repair import repair
from edgekit.diagnosis.search import SEARCHED, VERIFIED, search
from edgekit.diagnosis.sensitivity import rank
from edgekit.diagnosis.subject import Subject, open_subject
from edgekit.diagnosis.values import ArtifactDiagnosis, Diagnosis, Layer, Repair, SearchResult, Sensitivity
from edgekit.errors import UserError, WorkloadError

__all__ = ["WhyOptions", "why"]

LEAST_OWN_DB = 6.0
"""4-bit weights give a layer 15 to 20 dB, other weights about 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyOptions:
    """What to find out, beyond the layers' errors."""

    params: Mapping[str, Any] = field(default_factory=dict)
    """Of the workload."""
    weights: Path | None = None
    """A .safetensors file or a stage folder, where the workload's model is not the one converted."""
    samples: int = 8
    """Evaluation inputs the layers are compared on."""
    seed: int = 0
    """Of the draw of inputs; the one the artifact was calibrated with (0 with `edgekit convert`)."""
    device: str | None = None
    suggest: bool = True
    """Try rules for the layers that break."""
    apply: bool = False
    """Keep the artifact made with the rules that were chosen, or found by the search."""
    sensitivity: bool = False
    max_drop: float | None = None
    """Points of accuracy (agreement, without labels) to hold with as few layers in float as possible."""
    searched: int = SEARCHED
    verified: int = VERIFIED
    budget_seconds: float = 900.0
    output: Path | None = None
    """Folder for what is applied."""
    workspace: Path = Path("runs")
    """Where device runs are kept."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.budget_seconds <= 0 or (self.max_drop is not None and self.max_drop < 0):
            raise UserError("samples and budget must be above zero, and the allowed drop not below")


def why(
    artifacts: Sequence[Path | str],
    workload: str,
    *,
    options: WhyOptions | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Why artifacts of one model are worse than it, layer by layer; see `WhyOptions` for what else.

    Raises ArtifactError, WorkloadError (not made from these weights), ConversionError, DeviceError and its kin.
    """
    options = options or WhyOptions()
    paths = [Path(path) for path in artifacts]
    if not paths:
        raise UserError("no artifact given")
    with tempfile.TemporaryDirectory(prefix="edgekit-why-") as folder:
        tell("loading the workload")
        subject = open_subject(
            paths,
            workload,
            params=options.params,
            weights=options.weights,
            samples=options.samples,
            seed=options.seed,
            work=Path(folder),
        )
        return _Course(subject, options, tell).finish()


def _refuse_other_weights(examination: Examination) -> None:
    """Raise WorkloadError where the layers with weights compute something else than PyTorch, most of them.

    An artifact that is itself far from its model cannot be told by its outputs; layer by layer it can: fed with the
    file's own inputs, a layer of the same weights gives the file's result but for its quantization.
    """
    layers = [
        layer.local_sqnr_db
        for layer in examination.diagnosis.layers
        if examination.pieces[layer.node].weight_values and layer.local_sqnr_db is not None
    ]
    if layers and median(layers) < LEAST_OWN_DB:
        name = examination.artifact.passport.name
        raise WorkloadError(
            f"{name} was not made from this workload's weights: half of its layers are below {LEAST_OWN_DB:g} dB of "
            f"what PyTorch computes from the same inputs (median {median(layers):.1f} dB)",
            hint="the workload must give the very weights the artifact was made from: give them with --weights",
        )


class _Course:
    """One diagnosis on its way."""

    def __init__(self, subject: Subject, options: WhyOptions, tell: Callable[[str], None]) -> None:
        self._subject = subject
        self._options = options
        self._tell = tell
        self._layers: dict[str, Layer] = {}
        self._diagnoses: list[ArtifactDiagnosis] = []
        self._repairs: list[Repair] = []
        self._sensitivity: dict[str, tuple[Sensitivity, ...]] = {}
        self._searches: list[SearchResult] = []
        self._float_files: dict[str, Artifact] = {}

    def finish(self) -> Diagnosis:
        for artifact in self._subject.artifacts:
            self._one(artifact)
        place = {node.name: index for index, node in enumerate(self._subject.program.graph.nodes)}
        return Diagnosis(
            workload=self._subject.reference,
            samples=len(self._subject.samples),
            source=f"evaluation inputs; weights: {self._subject.weights}",
            device=self._options.device,
            layers=tuple(sorted(self._layers.values(), key=lambda layer: place[layer.node])),
            artifacts=tuple(self._diagnoses),
            repairs=tuple(self._repairs),
            sensitivity=self._sensitivity,
            searches=tuple(self._searches),
        )

    def _one(self, artifact: Artifact) -> None:
        name = artifact.passport.name
        float_file = self._float_file(artifact)
        self._tell(f"examining {name}")
        examination = examine(self._subject, artifact, float_file)
        _refuse_other_weights(examination)
        for layer in examination.diagnosis.layers:
            self._layers.setdefault(layer.node, examination.pieces.layer(layer.node))
        self._diagnoses.append(self._on_device(artifact, float_file, examination))
        is_float = artifact.passport.scheme is None or artifact.passport.scheme.is_float
        if self._options.sensitivity:
            self._sensitivity[name] = rank(examination)
        if is_float:
            return
        if self._options.max_drop is not None:
            self._search(artifact, examination)
        elif self._options.suggest or self._options.apply:
            self._repair(artifact, examination, float_file)

    def _float_file(self, artifact: Artifact) -> Artifact:
        passport = artifact.passport
        backend = passport.backend or passport.format.value
        if passport.format is Format.EXECUTORCH or passport.scheme is None or passport.scheme.value == "fp32":
            return artifact  # ExecuTorch's layers are aligned in the program
        if backend not in self._float_files:
            self._tell(f"converting to {backend} fp32, to align layers with")
            self._float_files[backend] = float_file_of(self._subject, artifact, self._subject.artifacts)
        return self._float_files[backend]

    def _on_device(self, artifact: Artifact, float_file: Artifact, examination: Examination) -> ArtifactDiagnosis:
        if self._options.device is None:
            return examination.diagnosis
        from edgekit.diagnosis.on_device import compared_on_device

        # without the tensors a device cannot give back; the others keep their rows
        sendable = examine(self._subject, artifact, float_file, effects=False, for_device=True)
        there = compared_on_device(self._subject, sendable, self._options.device, self._options.workspace, self._tell)
        found = {layer.node: layer for layer in there.layers}
        layers = tuple(
            layer.model_copy(
                update={
                    "device_sqnr_db": found[layer.node].device_sqnr_db,
                    "device_exact": found[layer.node].device_exact,
                }
            )
            if layer.node in found
            else layer
            for layer in examination.diagnosis.layers
        )
        return examination.diagnosis.model_copy(update={"layers": layers, "device_differs": there.device_differs})

    def _repair(self, artifact: Artifact, examination: Examination, float_file: Artifact) -> None:
        repaired = repair(
            self._subject, examination, float_file, budget_seconds=self._options.budget_seconds, tell=self._tell
        )
        record = repaired.record
        if self._options.apply and repaired.artifact is not None:
            made = placed(repaired.artifact, artifact, self._options.output, "repaired")
            record = record.model_copy(update={"applied": str(made.folder)})
        self._repairs.append(record)

    def _search(self, artifact: Artifact, examination: Examination) -> None:
        assert self._options.max_drop is not None  # noqa: S101 - the caller looked
        found = search(
            self._subject,
            examination,
            max_drop_points=self._options.max_drop,
            budget_seconds=self._options.budget_seconds,
            searched=self._options.searched,
            verified=self._options.verified,
            tell=self._tell,
        )
        record = found.record
        if self._options.apply and found.artifact is not artifact and record.float_layers:
            made = placed(found.artifact, artifact, self._options.output, "bounded")
            record = record.model_copy(update={"applied": str(made.folder)})
        self._searches.append(record)
