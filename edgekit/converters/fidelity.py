"""How close a converted model is to the PyTorch program it came from, measured in its real runtime on this host."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekit.artifact import Fidelity, OutputFidelity, Scheme

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

__all__ = [
    "Samples",
    "below_floor",
    "compare",
    "measure_fidelity",
    "probe_inputs",
    "reference_outputs",
    "sqnr_db",
    "worst_sqnr_db",
]

Run = Callable[[Sequence["np.ndarray"]], "list[np.ndarray]"]
Samples = Sequence[Sequence["np.ndarray"]]

SQNR_FLOOR_DB = {
    Scheme.FP32: 60.0,
    Scheme.FP16: 30.0,
    Scheme.DYNAMIC_W8: 15.0,
    Scheme.WEIGHT_W8: 15.0,
    Scheme.WEIGHT_W4: 8.0,
    Scheme.STATIC_W8A8: 15.0,
    Scheme.STATIC_W8A16: 20.0,
}
"""A float conversion that is right gives more than 100 dB, half precision 50 to 70; int8 of a sound model 25 to 40 dB
(measured). 4-bit weights: an 8 times coarser step than at 6 bits more, 15 to 20 dB where a model bears it."""
AGREEMENT_FLOOR = 0.9
"""Of integer and boolean outputs, which have no SQNR."""
ZERO_TOLERANCE = 1e-6
"""How far from zero an output may be that is all zeros in PyTorch, so that no ratio can be told."""
MAX_SAMPLES = 256
PROBES = 4


def probe_inputs(program: ExportedProgram, *, count: int = PROBES, seed: int = 0) -> tuple[tuple[np.ndarray, ...], ...]:
    """Inputs made for a check when there is no data: the example, then seeded variations of it.

    Floats are drawn from a normal distribution; integers and booleans are the example's own values, shuffled, since
    others may not be valid indices. Empty when the program carries no example.
    """
    import numpy as np

    if program.example_inputs is None:
        return ()
    example = tuple(value.detach().cpu().numpy() for value in program.example_inputs[0])
    rng = np.random.default_rng(seed)

    def varied(array: np.ndarray) -> np.ndarray:
        if np.issubdtype(array.dtype, np.floating):
            return rng.standard_normal(array.shape).astype(array.dtype)
        return rng.permutation(array.reshape(-1)).reshape(array.shape)

    return (example, *(tuple(varied(array) for array in example) for _ in range(count - 1)))


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

    if expected and not len(expected[0]) == len(found[0]) == len(names):
        raise ValueError(f"{len(found[0])} outputs ({len(names)} named), PyTorch gives {len(expected[0])}")
    outputs = []
    for index, name in enumerate(names):
        reference = [np.asarray(sample[index]) for sample in expected]
        values = [np.asarray(sample[index]) for sample in found]
        outputs.append(_output_fidelity(name, reference, values))
    scores = [
        output.agreement
        for index, output in enumerate(outputs)
        if expected[0][index].ndim == 2 and np.issubdtype(expected[0][index].dtype, np.floating)
    ]
    return Fidelity(
        samples=len(expected),
        source=source,
        outputs=tuple(outputs),
        top1_agreement=scores[0] if scores else None,
        runtime=runtime,
    )


def _output_fidelity(name: str, references: list[np.ndarray], values: list[np.ndarray]) -> OutputFidelity:
    """One output over all samples, whose shapes may differ from sample to sample. Raises ValueError where they differ
    between PyTorch and the file."""
    import numpy as np

    for reference, value in zip(references, values, strict=True):
        if reference.size != value.size:
            raise ValueError(f"output '{name}' has shape {value.shape}, PyTorch gives {reference.shape}")
    agreement = _agreement(references, values)
    reference, value = (np.concatenate([np.ravel(a) for a in arrays]) for arrays in (references, values))
    is_number = np.issubdtype(reference.dtype, np.floating)
    reference, value = reference.astype(np.float64), value.astype(np.float64)
    non_finite = int(value.size - np.count_nonzero(np.isfinite(value)))
    exact = bool(np.array_equal(reference, value))
    # a mask holds -inf on purpose: where PyTorch says so too, the rest is compared
    meant = ~np.isfinite(reference) & (reference == value)
    non_finite -= int(np.count_nonzero(meant))
    if non_finite or not np.isfinite(reference[~meant]).all():
        return OutputFidelity(
            name=name, sqnr_db=None, exact=exact, cosine=None, max_abs_error=None, non_finite=non_finite
        )
    reference, value = reference[~meant], value[~meant]
    norms = float(np.linalg.norm(reference) * np.linalg.norm(value))
    return OutputFidelity(
        name=name,
        sqnr_db=sqnr_db(reference, value) if is_number and not exact else None,
        exact=exact,
        cosine=float(np.vdot(reference, value)) / norms if norms > 0 else None,
        max_abs_error=float(np.max(np.abs(reference - value), initial=0.0)),
        non_finite=0,
        agreement=agreement,
        reference_rms=float(np.sqrt(np.mean(np.square(reference)))) if reference.size else 0.0,
    )


def _agreement(references: list[np.ndarray], values: list[np.ndarray]) -> float | None:
    """See `OutputFidelity.agreement`."""
    import numpy as np

    if not np.issubdtype(references[0].dtype, np.floating):
        same = [np.asarray(r).reshape(-1) == np.asarray(v).reshape(-1) for r, v in zip(references, values, strict=True)]
        return float(np.mean(np.concatenate(same))) if sum(s.size for s in same) else None
    axis = 1 if references[0].ndim == 4 else -1  # [N, C, H, W]: a class for every pixel
    if references[0].ndim < 2 or references[0].shape[axis] < 2:
        return None
    chosen = [
        np.argmax(r, axis).reshape(-1) == np.argmax(v.reshape(r.shape), axis).reshape(-1)
        for r, v in zip(references, values, strict=True)
    ]
    return float(np.mean(np.concatenate(chosen)))


def worst_sqnr_db(expected: list[list[np.ndarray]], found: list[list[np.ndarray]]) -> float:
    """The lowest SQNR over the float outputs, dB: what a search for ranges scores by. 200 where every one is exact;
    -200 where a value is not finite."""
    fidelity = compare(expected, found, names=[str(i) for i in range(len(expected[0]))], source="", runtime="")
    if any(output.non_finite for output in fidelity.outputs):
        return -200.0
    return min((output.sqnr_db for output in fidelity.outputs if output.sqnr_db is not None), default=200.0)


def sqnr_db(reference: np.ndarray, values: np.ndarray) -> float | None:
    """10·log10(Σ ref² / Σ (ref − out)²) in dB; None when either sum is zero, so that no ratio can be told."""
    import numpy as np

    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum(np.square(reference.astype(np.float64) - values)))
    return 10.0 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def below_floor(fidelity: Fidelity, scheme: Scheme) -> list[str]:
    """Why this artifact is too far from its model to be used: one sentence per output; empty when it is not."""
    floor = SQNR_FLOOR_DB[scheme]
    sentences = []
    for output in fidelity.outputs:
        told = f"output '{output.name}'"
        if output.non_finite:
            sentences.append(f"{told} has {output.non_finite} NaN or infinite values")
        elif output.exact:
            continue
        elif output.sqnr_db is not None:
            if output.sqnr_db < floor:
                sentences.append(
                    f"{told} has {output.sqnr_db:.1f} dB SQNR against PyTorch, below the {floor:g} dB expected of "
                    f"{scheme.value}"
                )
        elif output.agreement is not None and output.agreement < AGREEMENT_FLOOR:
            sentences.append(f"{told} has {output.agreement:.1%} of PyTorch's values, below {AGREEMENT_FLOOR:.0%}")
        elif output.max_abs_error is None or (output.agreement is None and output.max_abs_error > ZERO_TOLERANCE):
            sentences.append(f"{told} cannot be judged: PyTorch gives only zeros or non-finite values there")
    return sentences
