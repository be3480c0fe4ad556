"""How close a converted model is to the PyTorch program it came from, measured in its real runtime on this host."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekit.artifact import Fidelity, OutputFidelity, Scheme

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

__all__ = ["below_floor", "compare", "measure_fidelity", "reference_outputs", "sqnr_db"]

Run = Callable[[Sequence["np.ndarray"]], "list[np.ndarray]"]

SQNR_FLOOR_DB = {Scheme.FP32: 60.0, Scheme.STATIC_W8A8: 15.0}
"""A float conversion that is right gives more than 100 dB; an int8 one of a sound model 25 to 40 dB (measured)."""
MAX_SAMPLES = 256


def reference_outputs(program: ExportedProgram, samples: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    """The program's own outputs, one list of arrays per sample, computed by PyTorch on the CPU."""
    import torch
    from torch.utils import _pytree as pytree

    module = program.module()
    outputs = []
    with torch.no_grad():
        for sample in samples:
            flat = pytree.tree_leaves(module(*(torch.from_numpy(array.copy()) for array in sample)))
            outputs.append([value.numpy() for value in flat if isinstance(value, torch.Tensor)])
    return outputs


def measure_fidelity(
    program: ExportedProgram,
    samples: Sequence[Sequence[np.ndarray]],
    run: Run,
    *,
    names: Sequence[str],
    source: str,
    runtime: str,
) -> Fidelity:
    """Fidelity of `run` (the artifact in its runtime: float arrays in, float arrays out) on the first 256 samples."""
    used = list(samples[:MAX_SAMPLES])
    expected = reference_outputs(program, used)
    found = [run(sample) for sample in used]
    return compare(expected, found, names=names, source=source, runtime=runtime)


def compare(
    expected: list[list[np.ndarray]],
    found: list[list[np.ndarray]],
    *,
    names: Sequence[str],
    source: str,
    runtime: str,
) -> Fidelity:
    """Each output of `found` against `expected`, over all samples together."""
    import numpy as np

    outputs = []
    agreement = None
    for index, name in enumerate(names):
        reference = np.stack([np.asarray(sample[index]) for sample in expected])
        values = np.stack([np.asarray(sample[index]).reshape(reference.shape[1:]) for sample in found])
        outputs.append(_output_fidelity(name, reference.astype(np.float64), values.astype(np.float64)))
        is_scores = reference.ndim == 3 and reference.shape[-1] > 1  # [samples, N, C]
        if agreement is None and is_scores and np.issubdtype(reference.dtype, np.floating):
            agreement = float(np.mean(np.argmax(reference, -1) == np.argmax(values, -1)))
    return Fidelity(
        samples=len(expected), source=source, outputs=tuple(outputs), top1_agreement=agreement, runtime=runtime
    )


def _output_fidelity(name: str, reference: np.ndarray, values: np.ndarray) -> OutputFidelity:
    import numpy as np

    non_finite = int(values.size - np.count_nonzero(np.isfinite(values)))
    exact = bool(np.array_equal(reference, values))
    if non_finite or not np.isfinite(reference).all():
        return OutputFidelity(
            name=name, sqnr_db=None, exact=exact, cosine=None, max_abs_error=None, non_finite=non_finite
        )
    norms = float(np.linalg.norm(reference) * np.linalg.norm(values))
    return OutputFidelity(
        name=name,
        sqnr_db=None if exact else sqnr_db(reference, values),
        exact=exact,
        cosine=float(np.vdot(reference, values)) / norms if norms > 0 else None,
        max_abs_error=float(np.max(np.abs(reference - values), initial=0.0)),
        non_finite=non_finite,
    )


def sqnr_db(reference: np.ndarray, values: np.ndarray) -> float | None:
    """10·log10(Σ ref² / Σ (ref − out)²) in dB; None when either sum is zero, so that no ratio can be told."""
    import numpy as np

    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum(np.square(reference.astype(np.float64) - values)))
    return 10.0 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def below_floor(fidelity: Fidelity, scheme: Scheme) -> list[str]:
    """Why this artifact is too far from its model to be used: one sentence per output; empty when it is not."""
    floor = SQNR_FLOOR_DB.get(scheme)
    sentences = []
    for output in fidelity.outputs:
        if output.non_finite:
            sentences.append(f"output '{output.name}' has {output.non_finite} NaN or infinite values")
        elif floor is not None and output.sqnr_db is not None and output.sqnr_db < floor:
            sentences.append(
                f"output '{output.name}' has {output.sqnr_db:.1f} dB SQNR against PyTorch, below the {floor:g} dB "
                f"expected of {scheme.value}"
            )
    return sentences
