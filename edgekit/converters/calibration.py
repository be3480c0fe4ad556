"""What samples must be before any child is started: present, finite, and shaped as the program's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Scheme
from edgekit.errors import UserError, WorkloadError

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

Samples = Sequence[Sequence["np.ndarray"]]

__all__ = ["InputSpec", "check_calibration", "check_samples", "input_specs", "unlike"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a program: its name, shape and numpy dtype."""

    name: str
    shape: tuple[int, ...]
    """Of a free axis, the least extent."""
    dtype: str
    bounds: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Axis to (least, most) extent, where it is free."""

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape can be given."""
        if len(shape) != len(self.shape):
            return False
        limits = [self.bounds.get(axis, (extent, extent)) for axis, extent in enumerate(self.shape)]
        return all(low <= extent <= high for extent, (low, high) in zip(shape, limits, strict=True))

    @property
    def shown(self) -> str:
        """`(1..8, 3, 32, 32)`."""
        parts = [f"{b[0]}..{b[1]}" if (b := self.bounds.get(axis)) else str(n) for axis, n in enumerate(self.shape)]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def input_specs(program: ExportedProgram) -> tuple[InputSpec, ...]:
    """The inputs the user gives to the program, in order."""
    given = set(program.graph_signature.user_inputs)
    specs = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in given:
            value = node.meta["val"]
            dtype = str(value.dtype).removeprefix("torch.")
            bounds = {axis: _bounds_of(program, n) for axis, n in enumerate(value.shape) if not isinstance(n, int)}
            shape = tuple(bounds[axis][0] if axis in bounds else int(n) for axis, n in enumerate(value.shape))
            specs.append(InputSpec(name=node.name, shape=shape, dtype=dtype, bounds=bounds))
    return tuple(specs)


def _bounds_of(program: ExportedProgram, extent: Any) -> tuple[int, int]:
    limits = program.range_constraints[extent.node.expr]
    return int(limits.lower), int(limits.upper)


def check_calibration(samples: Samples, specs: Sequence[InputSpec], schemes: Sequence[Scheme]) -> None:
    """Raise when a scheme needs calibration and `samples` is not fit for it: empty, misshapen or non-finite."""
    static = [scheme.value for scheme in schemes if scheme.is_static]
    if static and not samples:
        raise UserError(
            f"{', '.join(static)} needs calibration samples and there are none",
            hint="give a hundred or so inputs like those the model will see; without them no activation range is known",
        )
    check_samples(samples, specs, what="calibration")
    if static:
        _check_variety(samples, specs)


def _check_variety(samples: Samples, specs: Sequence[InputSpec]) -> None:
    """Raise when no float input ever changes: no range can be learned from that. (One of several may: a zero state.)"""
    ranges = [(spec, _range_of(samples, index)) for index, spec in enumerate(specs) if _is_float(spec)]
    if not ranges or any(low < high for _, (low, high) in ranges) or all(_is_one_number(spec) for spec, _ in ranges):
        return
    spec, (low, _) = ranges[0]
    raise WorkloadError(
        f"calibration input '{spec.name}': all values of all {len(samples)} samples are {low:g}",
        hint="activation ranges come from these samples: give inputs like those the model will see, "
        "preprocessed as they will be",
    )


def _is_float(spec: InputSpec) -> bool:
    import numpy as np

    return bool(np.issubdtype(np.dtype(spec.dtype), np.floating))


def _is_one_number(spec: InputSpec) -> bool:
    return all(extent == 1 for extent in spec.shape)


def _range_of(samples: Samples, index: int) -> tuple[float, float]:
    return min(float(s[index].min()) for s in samples), max(float(s[index].max()) for s in samples)


def unlike(calibration: Samples, verification: Samples, specs: Sequence[InputSpec]) -> tuple[str, ...]:
    """A sentence for each float input whose held-out values reach far beyond those it was calibrated with.

    "Far": by more than half the calibrated range (which one sample more could not explain), or on less than a
    quarter of it (so that most of the integers would never be used).
    """
    if not calibration or not verification:
        return ()
    told = []
    for index, spec in enumerate(specs):
        if not _is_float(spec):
            continue
        (low, high), (seen_low, seen_high) = _range_of(calibration, index), _range_of(verification, index)
        width, seen = high - low, seen_high - seen_low
        if max(low - seen_low, seen_high - high) > 0.5 * width or seen < 0.25 * width:
            told.append(
                f"input '{spec.name}' was calibrated on values from {low:.4g} to {high:.4g}, the evaluation data has "
                f"{seen_low:.4g} to {seen_high:.4g}: are both preprocessed alike?"
            )
    return tuple(told)


def check_samples(samples: Samples, specs: Sequence[InputSpec], *, what: str) -> None:
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

    if not spec.takes(tuple(array.shape)):
        raise WorkloadError(
            f"{where}: shape {tuple(array.shape)}, the model was exported with {spec.shown}",
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
