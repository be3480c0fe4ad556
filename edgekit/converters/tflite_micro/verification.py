"""A file in TensorFlow Lite Micro against PyTorch, and against ai-edge-litert on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, Fidelity, Format
from edgekit.converters import host_runtimes
from edgekit.converters.base import ConversionRequest
from edgekit.converters.fidelity import Samples, measure_fidelity, probe_inputs
from edgekit.converters.host_runtimes import load_runtime, micro_run
from edgekit.converters.tflite_micro.interpreter import BACKEND, MicroInterpreter, runtime_name
from edgekit.errors import ConversionError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["checked_samples", "verified"]

MAX_MACS = 4_000_000_000
"""Of all samples of the check together: the reference kernels do a few hundred million a second."""
MIN_SAMPLES, MAX_SAMPLES = 4, 64
DISAGREEMENT_DB = 6.0
"""By how much TFLM may be worse than ai-edge-litert on the same file. Both round alike, or by one step apart, at each
layer, which moves the SQNR by a fraction of this; a kernel that reads something wrong costs tens."""
SAME_DB = 60.0
"""Above this an output is right whatever the other runtime gives."""


def checked_samples(request: ConversionRequest, macs: int | None) -> tuple[Samples, str]:
    """The inputs to compare on and what they are: held-out, calibration or random ones, fewer for a large model."""
    count = max(MIN_SAMPLES, min(MAX_SAMPLES, MAX_MACS // max(macs or 1, 1)))
    if request.verification:
        return request.verification[:count], "held-out"
    if request.calibration:
        return request.calibration[:count], "calibration"
    return probe_inputs(request.program), "random"


def verified(
    request: ConversionRequest, made: Artifact, arena_bytes: int, samples: Samples, source: str
) -> tuple[Fidelity, str]:
    """Its fidelity in TFLM, in an arena of just this size, and a sentence on ai-edge-litert's.

    Raises ConversionError when TFLM's kernels answer otherwise than ai-edge-litert's do.
    """

    def measured(run: Callable[[Sequence[np.ndarray]], list[np.ndarray]], runtime: str) -> Fidelity:
        names = [spec.name for spec in made.passport.outputs]
        return measure_fidelity(request.program, samples, run, names=names, source=source, runtime=runtime)

    here = measured(micro_run(MicroInterpreter(made.path.read_bytes(), arena_bytes)), runtime_name())
    other_name = host_runtimes.runtime_name(Format.TFLITE)
    there = measured(load_runtime(made.path, Format.TFLITE), other_name)
    differing = [
        f"'{ours.name}' has {ours.sqnr_db:.1f} dB here and {_sqnr(theirs.sqnr_db):.1f} dB there"
        for ours, theirs in zip(here.outputs, there.outputs, strict=True)
        if ours.sqnr_db is not None and ours.sqnr_db < min(_sqnr(theirs.sqnr_db), SAME_DB) - DISAGREEMENT_DB
    ]
    if differing:
        raise ConversionError(
            f"TensorFlow Lite Micro's kernels answer otherwise than {other_name}: output {', '.join(differing)}",
            backend=BACKEND,
            stage="verify",
            hint="one of its kernels computes something else for this model; `edgekit why` tells the layer",
        )
    worst = min((_sqnr(o.sqnr_db) for o in there.outputs), default=SAME_DB)
    return here, f"{other_name} on the same file and inputs: {worst:.1f} dB SQNR"


def _sqnr(value: float | None) -> float:
    """None (exact, or no float) is as good as can be told."""
    return SAME_DB if value is None else value
