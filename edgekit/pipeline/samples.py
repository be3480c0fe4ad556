"""Inputs drawn from a workload's data, as numpy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import WorkloadError
from edgekit.workload import MapDataset, Workload

if TYPE_CHECKING:
    import numpy as np

__all__ = ["all_inputs", "calibration_batches", "held_out_batches"]


def calibration_batches(workload: Workload, count: int, *, seed: int) -> tuple[tuple[np.ndarray, ...], ...]:
    """`count` calibration inputs, each a tuple of arrays batched as the example inputs are.

    Drawn from the workload's calibration data, else (seeded) from its training data; never from evaluation.
    """
    data = workload.calibration if workload.calibration is not None else workload.train
    if data is None:
        raise WorkloadError(
            f"workload '{workload.name}' has neither calibration nor training data, which int8 needs",
            hint="give Workload(calibration=…), or convert with schemes: [fp32]",
        )
    return _batches(workload, data, count, seed=seed)


def held_out_batches(workload: Workload, count: int, *, seed: int) -> tuple[tuple[np.ndarray, ...], ...]:
    """`count` evaluation inputs for the check after conversion, batched as the example inputs are."""
    return _batches(workload, workload.evaluation, count, seed=seed)


def _batches(workload: Workload, data: MapDataset, count: int, *, seed: int) -> tuple[tuple[np.ndarray, ...], ...]:
    import numpy as np

    size = int(workload.example_inputs[0].shape[0])
    total = len(data)
    wanted = min(count * size, total - total % size)
    if wanted == 0:
        raise WorkloadError(f"workload '{workload.name}': {total} samples do not fill one batch of {size}")
    chosen = np.sort(np.random.default_rng(seed).choice(total, size=wanted, replace=False))
    items = [input_arrays(data[int(i)]) for i in chosen]
    return tuple(
        tuple(np.stack(column) for column in zip(*items[start : start + size], strict=True))
        for start in range(0, wanted, size)
    )


def all_inputs(data: MapDataset) -> tuple[np.ndarray, ...]:
    """Every input of `data`: one array `[N, …]` per model input."""
    import numpy as np

    columns = zip(*(input_arrays(data[i]) for i in range(len(data))), strict=True)
    return tuple(np.stack(column) for column in columns)


def input_arrays(item: Any) -> tuple[np.ndarray, ...]:
    """The inputs of one `(input, target)` item, or `(first, second, …, target)`, as arrays without a batch axis."""
    import numpy as np

    inputs = item[:-1] if len(item) > 2 else item[0]
    return tuple(np.asarray(value) for value in (inputs if isinstance(inputs, tuple | list) else (inputs,)))
