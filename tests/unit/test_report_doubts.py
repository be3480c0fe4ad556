"""Steadiness, the unstated speed-up and the comparison with the host, as a reader sees them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from support.report_fixture import example_report

from edgekit.benchmarks.accuracy import wilson
from edgekit.report.html import render_html
from edgekit.report.model import Doubt, Report, Row, Stability, Verdict
from edgekit.report.results import ColumnKey, result_table
from edgekit.report.text import render_table

HOSTILE = "<script>x</script> [bold red]y[/]"
UNSTEADY = Stability(
    verdict=Verdict.NOISY,
    doubts=(Doubt(kind="drift", told=f"drifting {HOSTILE}", remedy="let it cool"),),
)


@pytest.fixture(scope="module")
def report() -> Report:
    """The example with one row in doubt in every way there is."""
    example = example_report(samples=60)
    place = next(i for i, row in enumerate(example.rows) if row.status == "ok" and not row.is_baseline)
    changes = {
        "stability": UNSTEADY,
        "speedup": None,
        "speedup_unstated": f"no speed-up is stated: {HOSTILE}",
        "matches_host": False,
        "host_max_abs_difference": 0.5,
        "host_verdict": Verdict.FAIL,
        "host_reason": f"beyond the bound {HOSTILE}",
        "top5": wilson(99, 100),
    }
    rows = list(example.rows)
    rows[place] = rows[place].model_copy(update=changes)
    return example.model_copy(update={"rows": tuple(rows)})


def doubtful(report: Report) -> Row:
    return next(row for row in report.rows if row.speedup_unstated)


def test_a_noisy_row_is_named_in_the_terminal_with_what_to_do(report: Report) -> None:
    """One line for the row, markup shown as it is."""
    out = io.StringIO()
    Console(file=out, width=160, force_terminal=False).print(render_table(report))
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("~ ")]
    assert doubtful(report).artifact in line
    assert f"NOISY: drifting {HOSTILE} (try: let it cool)" in line


def test_a_speed_up_that_is_not_stated_says_why(report: Report) -> None:
    """The cell has no number and the reason."""
    (line,) = [line for line in result_table(report).lines if line.row.speedup_unstated]
    cell = line.cells[ColumnKey.SPEEDUP]
    assert (cell.order, cell.reason) == (None, doubtful(report).speedup_unstated)


def test_the_page_tells_of_the_host_and_top5_and_escapes(report: Report) -> None:
    """Verdict and rule of the comparison with the host, top-5 with its interval; nothing from a device is markup."""
    page = render_html(report)
    assert "FAIL, beyond the bound &lt;script&gt;x" in page
    assert "Top-5 accuracy</dt><dd>99.00 % (" in page
    assert "<script>x</script>" not in page
