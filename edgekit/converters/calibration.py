"""What samples must be before any child is started: present, finite, and shaped as the program's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.artifact import Scheme
from edgekit.errors import UserError, WorkloadError

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

__all__ = ["InputSpec", "check_calibration", "check_samples", "input_specs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a program: its name, shape and numpy dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def input_specs(program: ExportedProgram) -> tuple[InputSpec, ...]:
    """The inputs the user gives to the program, in order."""
    given = set(program.graph_signature.user_inputs)
    specs = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in given:
            value = node.meta["val"]
            dtype = str(value.dtype).removeprefix("torch.")
            specs.append(InputSpec(name=node.name, shape=tuple(int(n) for n in value.shape), dtype=dtype))
    return tuple(specs)


def check_calibration(
    samples: Sequence[Sequence[np.ndarray]], specs: Sequence[InputSpec], schemes: Sequence[Scheme]
) -> None:
    """Raise when a scheme needs calibration and `samples` is not fit for it: empty, misshapen or non-finite."""
    static = [scheme.value for scheme in schemes if scheme.value.startswith("static")]
    if static and not samples:
        raise UserError(
            f"{', '.join(static)} needs calibration samples and there are none",
            hint="give a hundred or so inputs like those the model will see; without them no activation range is known",
        )
    check_samples(samples, specs, what="calibration")


def check_samples(samples: Sequence[Sequence[np.ndarray]], specs: Sequence[InputSpec], *, what: str) -> None:
    """Raise WorkloadError naming the first sample that does not fit the program's inputs."""
    for index, sample in enumerate(samples):
        if len(sample) != len(specs):
            raise WorkloadError(
                f"{what} sample {index} has {len(sample)} arrays, the model takes {len(specs)} inputs",
                hint="one tuple per sample, with one array for each argument of forward",
            )
        for array, spec in zip(sample, specs, strict=True):
            _check_array(array, spec, f"{what} sample {index}, input '{spec.name}'")


def _check_array(array: np.ndarray, spec: InputSpec, where: str) -> None:
    import numpy as np

    if tuple(array.shape) != spec.shape:
        raise WorkloadError(
            f"{where}: shape {tuple(array.shape)}, the model was exported with {spec.shape}",
            hint="samples are batched as the example inputs are: keep the batch axis",
        )
    if array.dtype.name != spec.dtype:
        raise WorkloadError(
            f"{where}: dtype {array.dtype.name}, the model takes {spec.dtype}", hint=f"array.astype('{spec.dtype}')"
        )
    if np.issubdtype(array.dtype, np.floating):
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad:
            raise WorkloadError(
                f"{where}: {bad} of {array.size} values are NaN or infinite",
                hint="find where they come from; one such value spoils the range of every later layer",
            )
