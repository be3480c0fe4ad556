"""Samples are judged before any child is started."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.artifact import Scheme
from edgekit.converters.calibration import InputSpec, check_calibration, check_samples, unlike
from edgekit.errors import UserError, WorkloadError

SPECS = (InputSpec(name="x", shape=(1, 4), dtype="float32"), InputSpec(name="ids", shape=(1, 2), dtype="int64"))


def sample(**changes: np.ndarray) -> tuple[np.ndarray, ...]:
    whole = {"x": np.zeros((1, 4), np.float32), "ids": np.zeros((1, 2), np.int64)} | changes
    return tuple(whole.values())


def test_fit_samples_pass() -> None:
    """Right number, shapes and dtypes: no complaint, for float and integer inputs."""
    varied = [sample(x=np.full((1, 4), value, np.float32)) for value in (0.0, 1.0, 2.0)]
    check_calibration(varied, SPECS, [Scheme.FP32, Scheme.STATIC_W8A8])


def test_samples_that_never_change_are_refused() -> None:
    """A calibration set of zeros teaches no range: refused for a static scheme, with the value; float needs none."""
    check_calibration([sample()] * 3, SPECS, [Scheme.FP32])
    with pytest.raises(WorkloadError, match="input 'x': all values of all 3 samples are 0"):
        check_calibration([sample()] * 3, SPECS, [Scheme.STATIC_W8A8])


def test_one_input_that_never_changes_may_be_meant() -> None:
    """A recurrent state that always starts at zero is no mistake while another input varies."""
    specs = (SPECS[0], InputSpec(name="state", shape=(1, 3), dtype="float32"))
    rng = np.random.default_rng(0)
    samples = [(rng.normal(size=(1, 4)).astype(np.float32), np.zeros((1, 3), np.float32)) for _ in range(3)]
    check_calibration(samples, specs, [Scheme.STATIC_W8A8])


@pytest.mark.parametrize(("factor", "is_told"), [(1.0, False), (1.3, False), (255.0, True), (1 / 255, True)])
def test_data_unlike_calibration_is_told(factor: float, is_told: bool) -> None:
    """Pixels of 0..255 beside 0..1 are told with both ranges; a sample that reaches a little further is not."""
    values = np.linspace(0, 1, 4, dtype=np.float32).reshape(1, 4)
    told = unlike([sample(x=values)], [sample(x=values * np.float32(factor))], SPECS)
    assert bool(told) == is_told
    if told:
        assert "input 'x' was calibrated on values from 0 to 1" in told[0]


def test_a_free_axis_takes_what_is_within_its_bounds() -> None:
    """A batch of 1 to 8: both ends pass, 9 is refused with the bounds shown."""
    spec = InputSpec(name="x", shape=(1, 4), dtype="float32", bounds={0: (1, 8)})
    check_samples([(np.zeros((n, 4), np.float32),) for n in (1, 8)], [spec], what="calibration")
    with pytest.raises(WorkloadError, match=r"shape \(9, 4\), the model was exported with \(1\.\.8, 4\)"):
        check_samples([(np.zeros((9, 4), np.float32),)], [spec], what="calibration")


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
