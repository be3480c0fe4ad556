"""Accuracy, agreement, KL and SQNR against values worked out by hand or published."""

import math

import numpy as np
import pytest

from edgekit.benchmarks.accuracy import evaluate, kl_per_input, paired_drop, sqnr_db, wilson
from edgekit.errors import WorkloadError


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_as_published(hits: int, total: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3; printed to four places."""
    p = wilson(hits, total)
    assert (round(p.low, 4), round(p.high, 4)) == (low, high)


def test_wilson_is_symmetric_and_stays_inside() -> None:
    """The interval of the misses mirrors that of the hits; all right has 1 as its upper end."""
    p, q = wilson(30, 200), wilson(170, 200)
    assert p.low == pytest.approx(1 - q.high, abs=1e-15)
    assert wilson(200, 200).high == 1.0
    with pytest.raises(ValueError, match="no proportion"):
        wilson(3, 2)


def test_sqnr_of_a_known_error() -> None:
    """An error of a tenth of the signal everywhere is 20 dB; equal is exact, not infinite."""
    ref = np.array([[1.0, -2.0], [3.0, 4.0]])
    value, exact = sqnr_db(ref, ref * 1.1)
    assert value == pytest.approx(20.0)
    assert not exact
    assert sqnr_db(ref, ref.copy()) == (None, True)
    assert sqnr_db(ref, np.where(ref == 1, np.nan, ref)) == (None, False)


def test_kl_of_two_known_distributions() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): KL = ln 2 - ln 3 / 2; adding a constant to logits changes nothing."""
    p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    assert kl_per_input(p, q + 1000)[0] == pytest.approx(math.log(2) - math.log(3) / 2, rel=1e-9)
    assert kl_per_input(p, p)[0] == 0


def test_everything_at_once() -> None:
    """Four inputs: three right, three as the teacher, and the worst by KL is the one that differs most."""
    labels = np.array([0, 1, 0, 1])
    teacher = np.array([[2.0, 0], [0, 2.0], [2.0, 0], [2.0, 0]])
    outputs = np.array([[2.0, 0], [0, 2.0], [-5.0, 0], [0, 0.1]])
    found = evaluate(outputs, labels=labels, teacher=teacher, reference=teacher)
    assert found.accuracy is not None
    assert found.agreement is not None
    assert (found.accuracy.hits, found.agreement.hits) == (3, 2)
    assert found.accuracy_drop is not None
    assert found.accuracy_drop.value == 0  # the teacher is right on 0, 1, 2, the artifact on 0, 1, 3
    assert found.worst[0][0] == 2
    assert found.non_finite == 0


def test_non_finite_outputs_are_counted_and_never_right() -> None:
    """A NaN is a miss, is counted, and leaves KL and SQNR unmeasured; nothing is put in its place."""
    outputs = np.array([[np.nan, 5.0], [0.0, 1.0]])
    found = evaluate(outputs, labels=np.array([1, 1]), teacher=np.array([[0.0, 1], [0, 1]]), reference=outputs * 0)
    assert found.accuracy is not None
    assert (found.accuracy.hits, found.non_finite) == (1, 1)
    assert found.kl_to_teacher is None
    assert found.sqnr_db is None


def test_two_broken_models_do_not_agree() -> None:
    """Teacher and artifact both NaN on an input is not agreement."""
    broken = np.array([[np.nan, 1.0]])
    agreement = evaluate(broken, teacher=broken).agreement
    assert agreement is not None
    assert agreement.hits == 0


def test_the_paired_interval_by_hand() -> None:
    """n = 98, b = 9, c = 3: Agresti-Min (9.5 - 3.5) / 100 ± 1.96 sqrt(13 - 0.36) / 100."""
    teacher = np.array([True] * 9 + [False] * 3 + [True] * 86)
    artifact = np.array([False] * 9 + [True] * 3 + [True] * 86)
    d = paired_drop(teacher, artifact)
    half = 1.959964 * math.sqrt(13 - 36 / 100) / 100
    assert d.value == pytest.approx(6 / 98)
    assert (d.low, d.high) == (pytest.approx(0.06 - half, abs=1e-6), pytest.approx(0.06 + half, abs=1e-6))


def test_no_difference_is_not_certainty() -> None:
    """Equal on all of few inputs still leaves an interval; more inputs narrow it."""
    few = paired_drop(np.ones(20, bool), np.ones(20, bool))
    many = paired_drop(np.ones(2000, bool), np.ones(2000, bool))
    assert few.low < 0 < few.high
    assert 0 < many.high < few.high / 50


def test_lengths_must_match() -> None:
    """Outputs of other inputs than the labels' are refused, not broadcast."""
    with pytest.raises(WorkloadError, match="labels"):
        evaluate(np.zeros((3, 2)), labels=np.zeros(2, int))


def test_top5_counts_by_rank_and_never_what_is_not_finite() -> None:
    """Twelve classes: rank 0 and 4 count, rank 5 does not, nor a row with NaN, nor a label outside; under ten: None."""
    rising = np.arange(12, dtype=np.float32)
    outputs = np.stack([rising] * 5)
    outputs[3, 0] = np.nan
    labels = np.array([11, 7, 6, 11, 12])
    told = evaluate(outputs, labels=labels).top5
    assert told is not None
    assert (told.hits, told.total) == (2, 5)
    assert evaluate(outputs[:, :9], labels=labels).top5 is None
    assert evaluate(outputs).top5 is None
