"""Samples are judged before any child is started."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.artifact import Scheme
from edgekit.converters.calibration import InputSpec, check_calibration, check_samples
from edgekit.errors import UserError, WorkloadError

SPECS = (InputSpec(name="x", shape=(1, 4), dtype="float32"), InputSpec(name="ids", shape=(1, 2), dtype="int64"))


def sample(**changes: np.ndarray) -> tuple[np.ndarray, ...]:
    whole = {"x": np.zeros((1, 4), np.float32), "ids": np.zeros((1, 2), np.int64)} | changes
    return tuple(whole.values())


def test_fit_samples_pass() -> None:
    """Right number, shapes and dtypes: no complaint, for float and integer inputs."""
    check_calibration([sample()] * 3, SPECS, [Scheme.FP32, Scheme.STATIC_W8A8])


def test_a_static_scheme_without_samples_is_refused_by_name() -> None:
    """No calibration: the static scheme is named; float ones need none."""
    check_calibration([], SPECS, [Scheme.FP32, Scheme.DYNAMIC_W8])
    with pytest.raises(UserError, match="static_w8a8 needs calibration"):
        check_calibration([], SPECS, [Scheme.FP32, Scheme.STATIC_W8A8])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_value_is_found_and_counted(bad: float) -> None:
    """One NaN or infinity spoils a range: sample, input and count are told."""
    spoilt = np.zeros((1, 4), np.float32)
    spoilt[0, 2] = bad
    with pytest.raises(WorkloadError, match=r"sample 1, input 'x': 1 of 4 values"):
        check_samples([sample(), sample(x=spoilt)], SPECS, what="calibration")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"x": np.zeros((4,), np.float32)}, "shape"),
        ({"x": np.zeros((1, 4), np.float64)}, "dtype float64"),
        ({"ids": np.zeros((1, 2), np.int32)}, "input 'ids': dtype int32"),
    ],
)
def test_a_misfit_is_named(changed: dict[str, np.ndarray], told: str) -> None:
    """Wrong shape or dtype: the message names the input and both values."""
    with pytest.raises(WorkloadError, match=told):
        check_samples([sample(**changed)], SPECS, what="calibration")


def test_a_missing_input_is_told() -> None:
    """A sample with too few arrays says how many the model takes."""
    with pytest.raises(WorkloadError, match="has 1 arrays, the model takes 2"):
        check_samples([sample()[:1]], SPECS, what="verification")
