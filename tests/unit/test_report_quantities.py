"""Numbers as people read them."""

from __future__ import annotations

import pytest

from edgekit.report import quantities as q


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.04567, "0.0457"),
        (1, "1.00"),
        (9.996, "10.0"),
        (99.96, "100"),
        (123.4, "123"),
        (1234, "1,230"),
        (41_234, "41,200"),
        (-5.678, "−5.68"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    """Three significant digits, whatever the size, and none gained or lost where rounding adds a digit."""
    assert q.significant(value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_for_what_is_none(value: float) -> None:
    """A non-finite value is a bug upstream, not a text in a report."""
    with pytest.raises(ValueError, match="not a finite number"):
        q.significant(value)


def test_a_column_has_one_unit() -> None:
    """The unit is the largest in which the smallest value is not a tiny fraction."""
    assert q.time_unit([90_000, 20_000_000]).name == "µs"
    assert q.time_unit([900_000, 20_000_000]).name == "ms"
    assert q.size_unit([118_104, 1_741_392]).name == "KiB"
    assert q.size_unit([42 << 20, None]).name == "MiB"
    assert q.time_unit([None, None]).name == "ns"
    assert q.time_unit([90_000]).text(20_000_000) == "20,000"
    assert q.time_unit([90_000]).text(None) == q.MISSING


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "100.0"),
        (0.99999, "99.99"),
        (0.9995, "99.95"),
        (0.0, "0.0"),
        (0.00001, "0.01"),
        (0.9268, "92.7"),
        (None, q.MISSING),
    ],
)
def test_percent_never_hides_an_exception(value: float | None, text: str) -> None:
    """100.0 is said of all and 0.0 of none only."""
    assert q.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0081, "−0.8"), (0.003, "+0.3"), (0.0, "0.0"), (-0.0001, "0.0"), (None, q.MISSING)],
)
def test_points_are_signed(value: float | None, text: str) -> None:
    """A difference carries its sign, and zero has none."""
    assert q.points(value) == text


def test_single_values_carry_their_unit() -> None:
    """A number by itself says its unit."""
    assert q.time(1_530_000) == "1.53 ms"
    assert q.time(999) == "999 ns"
    assert q.size(86_100) == "84.1 KiB"
    assert q.duration(0.42) == "0.420 s"
    assert q.duration(274) == "4 min 34 s"
    assert q.duration(7500) == "2 h 05 min"
    assert q.count(14_812_160) == "14.8 M"
    assert q.count(999) == "999"
    assert q.ratio(3.4199) == "3.42×"
    assert q.decibels(31.24) == "31.2"
    assert q.decibels(None, exact=True) == "exact"
    for missing in (q.time(None), q.size(None), q.duration(None), q.count(None), q.ratio(None), q.decibels(None)):
        assert missing == q.MISSING
