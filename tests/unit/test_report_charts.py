"""The pictures as data: small, true to the samples, safe for plotly."""

from __future__ import annotations

import json
import random

import pytest
from support.report_fixture import example_report

from edgekit.report.charts import charts, front, histogram, label, number_places, segment_medians
from edgekit.report.headline import best_row, headlines
from edgekit.report.model import Verdict
from edgekit.report.results import ColumnKey, result_table


def test_picture_data_stays_small() -> None:
    """14 rows of 20,000 samples are drawn from less than 200 kB: raw samples stay out of the page."""
    report = example_report(samples=20_000)
    assert len(json.dumps(charts(report, result_table(report)))) < 200_000


def test_histogram_finds_both_modes() -> None:
    """A second mode of the samples is a second peak of the picture, at its place."""
    rng = random.Random(3)
    samples = [round(rng.gauss(1000, 10)) for _ in range(3000)] + [round(rng.gauss(1500, 10)) for _ in range(2000)]
    x, height = histogram(samples)
    assert max(height) == 1.0
    upper = max(range(len(x)), key=lambda i: height[i] if x[i] > 1.2 else 0)
    # the median lies in the lower mode (60 % of samples); a bin is (1530-980)/48 = 11 ns, 1.2 % of the median
    assert x[upper] == pytest.approx(1500 / sorted(samples)[2500], abs=0.025)
    valley = [h for v, h in zip(x, height, strict=True) if 1.1 < v < 1.4]
    assert max(valley) == 0


def test_histogram_of_equal_samples() -> None:
    """A clock too coarse to tell samples apart gives one bar, not a division by zero."""
    assert histogram([500] * 20) == ([1.0], [1.0])


def test_course_shows_a_drift_and_keeps_the_order() -> None:
    """A device that slows down gives a rising line; fewer samples than segments give one point each."""
    course = segment_medians(list(range(1000, 2000)), 10)
    assert course == sorted(course)
    assert len(course) == 10
    assert segment_medians([1, 2, 3], 60) == [0.5, 1.0, 1.5]


def test_front_drops_what_another_beats() -> None:
    """The line holds the points no other is both faster and better than, by latency."""
    assert front([(3, 90), (1, 80), (2, 79), (4, 89), (5, 95), (1, 70)]) == [(1, 80), (3, 90), (5, 95)]


def test_numbers_of_overlapping_bubbles_part() -> None:
    """Bubbles alone hold their number; of those that touch, no two put it in the same place."""
    places = number_places([(0.0, 0.0), (0.50, 0.5), (0.53, 0.5), (0.56, 0.5), (1.0, 1.0)])
    assert places == ["center", "left", "top", "right", "center"]


def test_labels_are_text_for_plotly() -> None:
    """Markup of plotly's own dialect is escaped, lines and length are bounded."""
    assert label("<a href='x'>&\n b</a>") == "&lt;a href='x'&gt;&amp; b&lt;/a&gt;"
    assert len(label("x" * 500)) <= 44


def test_latencies_that_were_not_measured_leave_the_pictures() -> None:
    """A row that crashed is a line of the table and no bubble."""
    report = example_report()
    data = charts(report, result_table(report))
    assert sum(len(d["points"]) for d in data["trade_off"]["devices"]) == 13
    assert [len(s["bands"]) for s in data["spread"]] == [7, 6]


def test_without_accuracy_the_next_measure_is_drawn() -> None:
    """Where a task has no accuracy the picture takes agreement, then SQNR, and says which."""
    report = example_report()
    rows = tuple(r.model_copy(update={"accuracy": None}) for r in report.rows)
    titles = []
    for update in ({}, {"agreement": None}, {"agreement": None, "sqnr_db": None}):
        changed = report.model_copy(update={"rows": tuple(r.model_copy(update=update) for r in rows)})
        picture = charts(changed, result_table(changed))["trade_off"]
        titles.append(picture and picture["y_title"])
    assert titles == ["Agreement with the teacher, %", "SQNR against PyTorch fp32, dB", None]


def test_headline_takes_the_fastest_that_passes() -> None:
    """The best of a device is the fastest Pareto row that passed; the teacher and failed rows never are."""
    report = example_report()
    local = tuple(r for r in report.rows if r.device == "local")
    best = best_row(local)
    assert best is not None
    assert best.artifact == "student.static_w8a8.pte"
    failed = tuple(r.model_copy(update={"verdict": Verdict.FAIL}) if r.artifact == best.artifact else r for r in local)
    second = best_row(failed)
    assert second is not None
    assert second.artifact == "student.static_w8a8.tflite"
    assert best_row(tuple(r.model_copy(update={"verdict": Verdict.FAIL}) for r in local)) is None


def test_headline_of_an_emulated_device_says_so() -> None:
    """No sentence about an emulated device can be quoted without the caveat."""
    by_device = {h.device: h for h in headlines(example_report())}
    assert "not a hardware latency" in by_device["board:arm64"].sentence
    assert "Emulated" not in by_device["local"].sentence


def test_a_missing_number_has_its_reason() -> None:
    """Not measured is a dash with a reason, never 0."""
    line = result_table(example_report()).lines[-1]
    for key in (ColumnKey.P50, ColumnKey.MEMORY, ColumnKey.ACCURACY, ColumnKey.SQNR, ColumnKey.SPEEDUP):
        assert line.cells[key].text == "—"
        assert "SIGSEGV" in (line.cells[key].reason or "")
