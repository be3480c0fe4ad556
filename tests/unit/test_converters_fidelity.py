"""Fidelity numbers: right where they can be computed by hand, None where there is nothing to compute."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.artifact import Scheme
from edgekit.converters.fidelity import below_floor, compare, sqnr_db


def fidelity(expected: np.ndarray, found: np.ndarray):
    return compare([[row] for row in expected], [[row] for row in found], names=["y"], source="held-out", runtime="r 1")


def test_sqnr_is_the_ratio_of_powers() -> None:
    """Signal 1, error 0.1 everywhere: 20 dB."""
    reference = np.ones((4, 8))
    assert sqnr_db(reference, reference + 0.1) == pytest.approx(20.0, abs=1e-9)


def test_equal_outputs_are_exact_and_have_no_sqnr() -> None:
    """No error, no ratio: None and `exact`, never infinity."""
    same = np.random.default_rng(0).normal(size=(3, 1, 5)).astype(np.float32)
    output = fidelity(same, same).outputs[0]
    assert output.exact
    assert output.sqnr_db is None
    assert output.max_abs_error == 0.0
    assert output.cosine == pytest.approx(1.0)


def test_non_finite_outputs_are_counted_and_fail_the_floor() -> None:
    """A NaN is counted, gives no numbers, and no scheme's floor lets it pass."""
    expected = np.ones((2, 1, 4), np.float32)
    found = expected.copy()
    found[1, 0, 2] = np.nan
    result = fidelity(expected, found)
    assert result.outputs[0].non_finite == 1
    assert result.outputs[0].sqnr_db is None
    assert all("1 NaN or infinite" in below_floor(result, scheme)[0] for scheme in Scheme)


def test_top1_agreement_counts_rows_that_choose_the_same_class() -> None:
    """Over all samples and rows of an [N, C] output."""
    expected = np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    found = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.9, 0.1], [0.1, 0.9]]])
    assert fidelity(expected, found).top1_agreement == pytest.approx(3 / 4)


def test_an_output_that_is_no_scores_has_no_agreement() -> None:
    """An image or a single number per row is not a choice between classes."""
    assert fidelity(np.ones((2, 1, 3, 4, 4)), np.ones((2, 1, 3, 4, 4))).top1_agreement is None
    assert fidelity(np.ones((2, 1, 1)), np.ones((2, 1, 1))).top1_agreement is None


@pytest.mark.parametrize(
    ("scheme", "db", "is_refused"),
    [
        (Scheme.FP32, 59.0, True),
        (Scheme.FP32, 61.0, False),
        (Scheme.STATIC_W8A8, 14.0, True),
        (Scheme.STATIC_W8A8, 16.0, False),
    ],
)
def test_the_floor_is_60_db_for_float_and_15_db_for_int8(scheme: Scheme, db: float, is_refused: bool) -> None:
    """An artifact under the floor of its scheme is refused, with both numbers in the sentence."""
    reference = np.ones((2, 1, 8))
    result = fidelity(reference, reference + math.pow(10, -db / 20))
    assert bool(below_floor(result, scheme)) is is_refused
