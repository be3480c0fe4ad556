"""The model converted again: to its float file, or with other rules; and what an artifact gives on some inputs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekit.artifact import PASSPORT_NAME, Artifact, Fidelity, NodeRule, Scheme
from edgekit.converters.base import QuantizationOptions
from edgekit.converters.fidelity import SQNR_FLOOR_DB, compare, reference_outputs
from edgekit.converters.host_runtimes import runtime_name
from edgekit.diagnosis.examination import quantization_of
from edgekit.diagnosis.probing import run_file
from edgekit.diagnosis.subject import Subject, lowest_sqnr
from edgekit.errors import ArtifactError, UserError

__all__ = ["fidelity_of", "float_file_of", "placed", "with_rules"]

Samples = Sequence[tuple[np.ndarray, ...]]


def float_file_of(subject: Subject, artifact: Artifact, given: Sequence[Artifact]) -> Artifact:
    """The fp32 artifact of the same backend: one of `given`, the one converted beside it, else made now.

    Raises ConversionError and its like.
    """
    passport = artifact.passport
    backend = passport.backend or passport.format.value
    for other in (*given, *_beside(subject, artifact, backend)):
        if other.passport.scheme is Scheme.FP32 and (other.passport.backend or other.passport.format.value) == backend:
            return other
    return _converted(subject, artifact, Scheme.FP32, QuantizationOptions(), (), backend)


def _beside(subject: Subject, artifact: Artifact, backend: str) -> tuple[Artifact, ...]:
    """What `edgekit convert` wrote as fp32 with the artifact, if that still is the model of the subject."""
    folder = artifact.folder.parent / artifact.folder.name.replace(f".{artifact.passport.scheme}.", ".fp32.")
    if not (folder / PASSPORT_NAME).is_file() or folder == artifact.folder:
        return ()
    try:
        other = Artifact.open(folder)
    except ArtifactError:
        return ()
    if (other.passport.backend or other.passport.format.value) != backend:
        return ()
    try:
        measured = lowest_sqnr(fidelity_of(subject, other, subject.samples[:2], "evaluation"))
    except ValueError:  # outputs of other shapes
        return ()
    return (other,) if measured is None or measured >= SQNR_FLOOR_DB[Scheme.FP32] else ()


def with_rules(subject: Subject, artifact: Artifact, rules: Sequence[NodeRule]) -> Artifact:
    """The artifact made again with these rules behind its own; below the fidelity floor it is kept all the same.

    Raises what the converter raises: UnsupportedError, ConversionError, UserError.
    """
    scheme, backend = artifact.passport.scheme, artifact.passport.backend
    if scheme is None or backend is None:
        raise UserError(
            f"{artifact.passport.name}: not known to be made by edgekit, so it cannot be made again",
            hint="convert the workload with `edgekit convert` and give that artifact",
        )
    options = quantization_of(artifact)
    options = options.model_copy(update={"rules": (*options.rules, *rules)})
    calibration = subject.calibration_of(artifact) if scheme.is_static else ()
    return _converted(subject, artifact, scheme, options, calibration, backend)


def _converted(
    subject: Subject,
    artifact: Artifact,
    scheme: Scheme,
    options: QuantizationOptions,
    calibration: Samples,
    backend: str,
) -> Artifact:
    from edgekit.converters.conversion import convert_program
    from edgekit.converters.target_run import ConversionOptions

    passport = artifact.passport
    outcome = convert_program(
        subject.program_path,
        subject.sha256,
        name=passport.name.partition(f".{passport.scheme}.")[0] or "model",
        targets=[backend],
        schemes=[scheme],
        output_dir=Path(tempfile.mkdtemp(prefix="convert-", dir=subject.work)),
        calibration=calibration,
        verification=subject.samples,
        options=ConversionOptions(
            lineage=passport.lineage, input_layouts=subject.layouts, quantization=options, allow_lossy=True
        ),
    )
    outcome.raise_failures()
    return outcome.artifacts[0]


def fidelity_of(subject: Subject, artifact: Artifact, samples: Samples, source: str) -> Fidelity:
    """The artifact in its runtime on this host against PyTorch, on these inputs."""
    passport = artifact.passport
    return compare(
        reference_outputs(subject.program, samples),
        run_file(artifact.path, passport.format, samples, subject.work),
        names=[spec.name for spec in passport.outputs],
        source=source,
        runtime=runtime_name(passport.format),
    )


def placed(made: Artifact, original: Artifact, output: Path | None, suffix: str) -> Artifact:
    """`made`, moved to where it stays: into `output`, or beside the original with a suffix to its name."""
    name = made.folder.name if output is not None else f"{made.folder.name}.{suffix}"
    target = (output or original.path.resolve().parent.parent) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.resolve() == original.folder.resolve():
        raise UserError(f"{target}: is the artifact itself", hint="give another folder with -o")
    if target.exists():
        shutil.rmtree(target)
    shutil.move(made.folder, target)
    return Artifact.open(target)
