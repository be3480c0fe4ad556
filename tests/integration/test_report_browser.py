"""The page in a real browser: drawn, quiet, never wider than the screen, and deaf to what devices say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chromium import Chromium, find_chromium
from support.report_fixture import example_report, with_every_text

from edgekit.report.html import render_html

pytestmark = pytest.mark.browser

OVERFLOWING = """
(() => {
  const wide = document.documentElement.clientWidth;
  const scrolls = (n) => n.closest('.scroll, pre, .sr, .skip');
  return [...document.querySelectorAll('body *')]
    .filter((n) => !scrolls(n) && !n.closest('svg') && n.getBoundingClientRect().right > wide + 1)
    .map((n) => `${n.tagName}.${n.className}`).slice(0, 5);
})()
"""
CLIPPED_CHART_TEXT = """
[...document.querySelectorAll('.chart')].flatMap((chart) => {
  const box = chart.getBoundingClientRect();
  return [...chart.querySelectorAll('text')].filter((n) => {
    const r = n.getBoundingClientRect();
    const across = r.left < box.left - 1 || r.right > box.right + 1;
    return r.width && (across || r.top < box.top - 1 || r.bottom > box.bottom + 1);
  }).map((n) => n.textContent);
})
"""
INK = "getComputedStyle(document.querySelector('#trade-off .xtick text')).fill"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        if os.environ.get("EDGEKIT_REQUIRE_BROWSER") == "1":
            pytest.fail("EDGEKIT_REQUIRE_BROWSER=1 but there is no chromium on PATH")
        pytest.skip("no chromium on PATH")
    with Chromium(program) as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_html(example_report()), encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 768, 1280])
def test_page_is_drawn_quiet_and_fits(browser: Chromium, page: Path, width: int, dark: bool) -> None:
    """Every picture is drawn without an error or policy violation, and nothing is wider than the screen."""
    browser.problems.clear()
    browser.emulate(width=width, height=900, dark=dark, mobile=width < 700)
    browser.open(page)
    browser.settle()
    charts = browser.evaluate("document.querySelectorAll('.chart').length")
    drawn = browser.evaluate(
        "[...document.querySelectorAll('.chart')].filter(c => c.querySelector('svg.main-svg')).length"
    )
    assert charts == 5  # the trade-off, and for each of two devices its distributions and its course
    assert drawn == charts
    assert browser.problems == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OVERFLOWING) == []
    assert browser.evaluate(CLIPPED_CHART_TEXT) == []


def test_page_asks_the_network_for_nothing(browser: Chromium, page: Path) -> None:
    """The file is whole: apart from itself only data inside it is loaded."""
    browser.requests.clear()
    browser.emulate(width=1280, height=900, dark=False)
    browser.open(page)
    browser.settle()
    outside = [url for url in browser.requests if not url.startswith(("data:", "blob:", page.as_uri()))]
    assert outside == []
    assert page.as_uri() in browser.requests  # the recorder does record


def test_every_row_is_a_bubble_with_its_number(browser: Chromium, page: Path) -> None:
    """The picture shows each measured row, by the number it has in the table."""
    browser.emulate(width=1280, height=900, dark=False)
    browser.open(page)
    browser.settle()
    numbers = browser.evaluate("[...document.querySelectorAll('#trade-off .textpoint')].map(n => n.textContent.trim())")
    assert sorted(numbers, key=int) == [str(n) for n in range(1, 14)]  # row 14 crashed


def test_pictures_follow_the_colour_scheme(browser: Chromium, page: Path) -> None:
    """A change of the scheme recolours what is already drawn."""
    browser.emulate(width=1280, height=900, dark=False)
    browser.open(page)
    browser.settle()
    light = browser.evaluate(INK)
    browser.emulate(width=1280, height=900, dark=True)
    browser.settle()
    browser.settle()
    assert browser.evaluate(INK) != light


def test_table_sorts_and_keeps_the_unmeasured_last(browser: Chromium, page: Path) -> None:
    """A click on a heading sorts by the raw number, either way, with rows that have none at the end."""
    browser.emulate(width=1280, height=900, dark=False)
    browser.open(page)
    column = "document.querySelector('th[data-key=p50] button')"
    read = "[...document.querySelectorAll('#results-table tbody td.c-p50')].map(n => n.dataset.order)"
    for direction in (1, -1):
        browser.evaluate(f"{column}.click()")
        orders = browser.evaluate(read)
        assert orders[-1] == ""
        values = [int(v) for v in orders[:-1]]
        assert values == sorted(values, reverse=direction < 0)
        assert len(values) == 13


def test_hostile_text_runs_nothing(browser: Chromium, tmp_path: Path) -> None:
    """Markup in every text of a report is shown, in the page and inside the pictures, and never runs."""
    hostile = "<img src=x onerror=alert(1)></script><script>alert(2)</script><a href='javascript:alert(3)'>"
    path = tmp_path / "report.html"
    path.write_text(render_html(with_every_text(example_report(), hostile)), encoding="utf-8")
    browser.problems.clear()
    browser.emulate(width=1280, height=900, dark=False)
    browser.open(path)
    browser.settle()
    assert browser.problems == []  # a dialog, an error or a violation would be here
    assert browser.evaluate("document.querySelectorAll('[src=x], [onerror], [href^=javascript]').length") == 0
    assert browser.evaluate("document.querySelectorAll('.chart a').length") == 0
    assert browser.evaluate("document.querySelectorAll('#trade-off svg.main-svg').length") > 0


def test_page_reads_without_scripts(browser: Chromium, page: Path) -> None:
    """With JavaScript off the table is whole, and each picture says what it would need."""
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.emulate(width=1280, height=900, dark=False)
        browser.open(page)
        document = browser.call("DOM.getDocument")["root"]["nodeId"]

        def found(selector: str) -> int:
            return len(browser.call("DOM.querySelectorAll", nodeId=document, selector=selector)["nodeIds"])

        assert found("#results-table tbody tr") == 14
        assert found(".chart .needs-js") == 5
        assert found("svg.main-svg") == 0
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
