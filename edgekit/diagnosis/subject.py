"""What is diagnosed: artifacts, and the PyTorch model they were made from, made sure of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.artifact import Artifact, Fidelity, Scheme
from edgekit.converters.fidelity import SQNR_FLOOR_DB, compare, reference_outputs
from edgekit.converters.host_runtimes import runtime_name
from edgekit.diagnosis.probing import run_file
from edgekit.errors import ArtifactError, UserError, WorkloadError

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from edgekit.workload import Workload

__all__ = ["Subject", "lowest_sqnr", "open_subject", "subject_of"]

Samples = Sequence[tuple[np.ndarray, ...]]

CHECKED = 8
"""Inputs on which an artifact must be the model it is said to be."""
SLACK_DB = 6.0
"""By which the SQNR on these few inputs may be lower than the passport's: half the noise amplitude or twice it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Artifacts of one model, the model as a program, and inputs. `work` is a folder of the diagnosis' own."""

    workload: Workload
    reference: str
    """How the user named the workload."""
    artifacts: tuple[Artifact, ...]
    program: ExportedProgram
    program_path: Path
    sha256: str
    orders: tuple[tuple[int, ...] | None, ...]
    layouts: tuple[str | None, ...]
    samples: Samples
    """Evaluation inputs, as the program takes them."""
    weights: str
    """Where the weights come from."""
    work: Path
    seed: int

    def permuted(self, batches: Samples) -> Samples:
        """Batches in the model's layout, as the program takes them."""
        from edgekit.converters.shapes import permuted

        return [permuted(sample, self.orders) for sample in batches]

    def calibration_of(self, artifact: Artifact) -> Samples:
        """The calibration inputs the artifact was made with: as many, drawn alike."""
        from edgekit.pipeline.samples import calibration_batches

        facts = artifact.passport.calibration
        count = facts.samples if facts is not None and facts.samples else 200
        return self.permuted(calibration_batches(self.workload, count, seed=self.seed))


def lowest_sqnr(fidelity: Fidelity | None) -> float | None:
    """SQNR of the worst float output, dB; None where every one is exact or none could be told."""
    if fidelity is None:
        return None
    return min((output.sqnr_db for output in fidelity.outputs if output.sqnr_db is not None), default=None)


def open_subject(
    artifacts: Sequence[Path],
    reference: str,
    *,
    params: Mapping[str, Any],
    weights: Path | None,
    samples: int,
    seed: int,
    work: Path,
) -> Subject:
    """The subject; raises WorkloadError where an artifact was not made from the workload's weights.

    Weights are those of the workload's model, or of `weights` (a .safetensors file, or a stage folder of a workspace);
    where an artifact has a lineage and neither fits, the stages of the workspace it lies in are looked through.
    """
    from edgekit.api import open_artifact
    from edgekit.pipeline.samples import held_out_batches
    from edgekit.workload import load_workload

    opened = tuple(open_artifact(path) for path in artifacts)
    workload = load_workload(reference, params).workload
    batches = held_out_batches(workload, samples, seed=seed)
    subject, problem = None, ""
    for label, module in _modules(workload, weights, opened):
        subject = _exported(workload, module, label, opened, reference, batches, work, seed)
        problem = _mismatch(subject)
        if not problem:
            return subject
    raise WorkloadError(
        f"{problem} (tried {'the ' if weights is None else ''}{subject.weights if subject else 'nothing'})",
        hint="the workload must give the very weights the artifact was made from: give them with --weights "
        "(a .safetensors file, or the stage folder of the run: runs/stages/<step>-<key>)",
    )


def subject_of(
    workload: Workload,
    module: nn.Module,
    artifacts: tuple[Artifact, ...],
    *,
    name: str,
    samples: int,
    seed: int,
    work: Path,
) -> Subject:
    """The subject of artifacts that this process made from `module`, which are not checked to be of it."""
    from edgekit.pipeline.samples import held_out_batches

    batches = held_out_batches(workload, samples, seed=seed)
    return _exported(workload, module, "the module given", artifacts, name, batches, work, seed)


def _modules(
    workload: Workload, weights: Path | None, artifacts: Sequence[Artifact]
) -> Iterator[tuple[str, nn.Module]]:
    """(where from, module) of every set of weights the artifacts may have been made from."""
    if weights is not None:
        yield str(weights), _with_weights(workload, weights)
        return
    yield "workload's own weights", workload.build_model().eval()
    for folder in _stages(artifacts):
        try:
            yield f"stage {folder.name}", _with_weights(workload, folder)
        except ArtifactError:  # a student of another workload
            continue


def _with_weights(workload: Workload, weights: Path) -> nn.Module:
    from edgekit.compress.storage import load_student
    from edgekit.training.weights import load_weights

    if weights.is_dir():
        return load_student(weights, workload.build_base, workload.example_inputs).module
    module = workload.build_model()
    try:
        load_weights(module, weights)
    except WorkloadError:
        if workload.student is None:
            raise
        module = workload.build_student()
        load_weights(module, weights)
    return module.eval()


def _stages(artifacts: Sequence[Artifact]) -> list[Path]:
    """Folders with a student in the workspace the artifacts lie in, the newest first."""
    from edgekit.compress.storage import STUDENT_NAME

    found: list[Path] = []
    for artifact in artifacts:
        for parent in artifact.path.resolve().parents:
            found += [path.parent for path in (parent / "stages").glob(f"*/{STUDENT_NAME}")]
    return sorted(dict.fromkeys(found), key=lambda folder: -folder.stat().st_mtime)


def _exported(
    workload: Workload,
    module: nn.Module,
    label: str,
    artifacts: tuple[Artifact, ...],
    reference: str,
    batches: Samples,
    work: Path,
    seed: int,
) -> Subject:
    from edgekit.converters.conversion import export_all
    from edgekit.converters.shapes import permuted
    from edgekit.converters.target_run import ConversionOptions
    from edgekit.exporting import save_program

    options = ConversionOptions(
        input_layouts=workload.input_layouts, input_layout=_input_layout(artifacts, workload.input_layouts)
    )
    exported = export_all(module, workload.example_inputs, workload.name, {}, options)
    program = exported.programs[0][1]
    path = work / "program.pt2"
    return Subject(
        workload=workload,
        reference=reference,
        artifacts=artifacts,
        program=program,
        program_path=path,
        sha256=save_program(program, path),
        orders=exported.orders,
        layouts=exported.layouts,
        samples=[permuted(sample, exported.orders) for sample in batches],
        weights=label,
        work=work,
        seed=seed,
    )


def _input_layout(artifacts: Sequence[Artifact], declared: Sequence[str | None]) -> str | None:
    """What `--input-layout` was when they were converted, as their passports tell."""
    model_is_last = any((layout or "").upper().endswith("C") for layout in declared)
    wanted = set()
    for artifact in artifacts:
        layouts = [spec.layout for spec in artifact.passport.inputs if spec.layout and len(spec.shape) in (4, 5)]
        is_last = any(layout.upper().endswith("C") for layout in layouts)
        wanted.add(None if not layouts or is_last == model_is_last else "nhwc" if is_last else "nchw")
    if len(wanted) > 1:
        raise UserError(
            "the artifacts take their images in different layouts", hint="diagnose those of one layout at a time"
        )
    return next(iter(wanted), None)


def _mismatch(subject: Subject) -> str:
    """Why an artifact cannot be of these weights; empty where all may be."""
    samples = list(subject.samples[:CHECKED])
    expected = reference_outputs(subject.program, samples)
    for artifact in subject.artifacts:
        passport = artifact.passport
        found = run_file(artifact.path, passport.format, samples, subject.work)
        if len(found[0]) != len(expected[0]) or any(
            f.size != e.size for f, e in zip(found[0], expected[0], strict=True)
        ):
            return f"{passport.name}: its outputs have other shapes than the workload's model"
        names = [spec.name for spec in passport.outputs]
        fidelity = compare(expected, found, names=names, source="evaluation", runtime=runtime_name(passport.format))
        problem = _too_far(artifact, lowest_sqnr(fidelity))
        if problem:
            return problem
    return ""


def _too_far(artifact: Artifact, measured: float | None) -> str:
    if measured is None:
        return ""
    passport = artifact.passport
    recorded = lowest_sqnr(passport.fidelity)
    least = SQNR_FLOOR_DB[Scheme.FP32] if passport.scheme is Scheme.FP32 else 3.0
    if recorded is not None:
        least = min(least, recorded - SLACK_DB) if passport.scheme is Scheme.FP32 else recorded - SLACK_DB
    if measured >= least:
        return ""
    told = "no fidelity in its passport" if recorded is None else f"{recorded:.1f} dB when it was made"
    return (
        f"{passport.name} was not made from this workload's weights: its outputs have {measured:.1f} dB SQNR against "
        f"the workload's model in PyTorch ({told})"
    )
