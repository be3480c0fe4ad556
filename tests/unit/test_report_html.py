"""The page as text: whole, offline, and safe against what devices and users say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from support.report_fixture import example_report, with_every_text

from edgekit.report.html import render_html, render_page
from edgekit.report.model import Report, Verdict
from edgekit.report.visible import one_line, visible

LIBRARY = "window.Plotly = {};"

PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<a href='javascript:alert(1)'>x</a>",
    '<a href="JaVaScRiPt:alert(1)">x</a>',
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    '"><script>alert(1)</script>',
    "'><img src=x onerror=alert(1)>",
    "` onclick=alert(1) `",
    "<body onload=alert(1)>",
    "<input autofocus onfocus=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<math><mi xlink:href='javascript:alert(1)'>x</mi></math>",
    "<object data='javascript:alert(1)'>",
    "<embed src='javascript:alert(1)'>",
    "<form action='javascript:alert(1)'><button>x</button></form>",
    "<base href='//evil.example/'>",
    "<meta http-equiv=refresh content='0;url=javascript:alert(1)'>",
    "<link rel=stylesheet href='//evil.example/x.css'>",
    "<!--<script>alert(1)//-->",
    "{{ 7 * 7 }}{% raw %}<script>alert(1)</script>",
    "\u2028</SCRIPT ><sCrIpT>alert(1)</sCrIpT>\u0000",
)
WATCHED = ("script", "iframe", "object", "embed", "base", "meta", "link", "form", "input", "svg", "img", "a", "style")


class Nodes(HTMLParser):
    """Counts the elements a payload could add, the event handlers and the `javascript:` addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = dict.fromkeys([*WATCHED, "on*", "javascript:"], 0)
        self.elements = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements += 1
        if tag in self.counts:
            self.counts[tag] += 1
        for name, value in attrs:
            self.counts["on*"] += name.startswith("on")
            self.counts["javascript:"] += name in {"href", "src", "action", "data", "xlink:href", "content"} and (
                value or ""
            ).strip().lower().startswith("javascript:")


def nodes(page: str) -> tuple[dict[str, int], int]:
    parser = Nodes()
    parser.feed(page)
    parser.close()
    return parser.counts, parser.elements


@pytest.fixture(scope="module")
def report() -> Report:
    return example_report(samples=60)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_page(report, LIBRARY)


def chart_json(page: str) -> str:
    found = re.search(r'<script type="application/json" id="chart-data">(.*?)</script>', page, re.S)
    assert found
    return found.group(1)


@pytest.fixture(scope="module")
def harmless(report: Report) -> tuple[dict[str, int], int]:
    """What the page has when every text is a harmless one that breaks where the payloads may not."""
    counts, _ = nodes(render_page(with_every_text(report, "plain"), LIBRARY))
    return counts, 0


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_becomes_markup(report: Report, harmless: tuple[dict[str, int], int], payload: str) -> None:
    """A payload in every text of the report adds no element, handler or address to the page."""
    page = render_page(with_every_text(report, payload), LIBRARY)
    assert nodes(page)[0] == harmless[0]
    assert not any(character in chart_json(page) for character in "<>&")


def test_the_count_can_fail() -> None:
    """The counter of the test above does see what it looks for."""
    counts, _ = nodes("<script></script><img src=x onerror=y><a href=' JavaScript:z'>")
    assert (counts["script"], counts["img"], counts["on*"], counts["javascript:"]) == (1, 1, 1, 1)


def test_policy_names_exactly_the_two_scripts() -> None:
    """The page's own policy allows the library and the program by hash, and nothing else at all."""
    page = render_html(example_report(samples=30))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    said = policy.group(1).replace("&#39;", "'")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert len(hashes) == 2
    assert f"default-src 'none'; script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}';" in said
    assert "unsafe-eval" not in said
    assert "script-src 'unsafe-inline'" not in said
    assert "connect-src" not in said  # falls back to 'none'


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    """No element of the page names a file or an address outside it."""
    loads = re.findall(r'(?:src|href|action|data|poster|srcset)="([^"]*)"', page)
    assert loads
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in loads)
    assert "@import" not in page
    assert "url(" not in page


def test_a_library_cannot_end_its_element() -> None:
    """`</script` in the library's strings is written so that a browser reads on; line ends are LF."""
    page = render_page(example_report(samples=30), 'var a = "</script><b>";\r\nvar b;')
    assert 'var a = "<\\/script><b>";\nvar b;' in page


def test_a_picture_that_is_no_png_is_not_shown(report: Report) -> None:
    """Only real PNG bytes become a picture; anything else is said to be missing."""
    svg = base64.b64encode(b"<svg onload=alert(1)>").decode()
    for bad in (svg, "not base64!", 'x" onerror="alert(1)'):
        rows = tuple(
            r.model_copy(update={"worst": tuple(w.model_copy(update={"image_png_base64": bad}) for w in r.worst)})
            for r in report.rows
        )
        page = render_page(report.model_copy(update={"rows": rows}), LIBRARY)
        assert "<img" not in page
        assert "no picture" in page


def test_everything_of_the_report_is_on_the_page(report: Report, page: str) -> None:
    """Warnings, flags, skipped devices, gates, errors, passports, stages and facts all show."""
    text = re.sub(r"<wbr>", "", page).replace("&#39;", "'")
    wanted = [w.text for w in report.warnings] + [s.reason for s in report.skipped_devices]
    wanted += [f for r in report.rows for f in r.flags] + [g.detail for r in report.rows for g in r.gates]
    wanted += [r.error for r in report.rows if r.error] + [p.sha256 for p in report.artifacts]
    wanted += [s.error for s in report.stages if s.error] + [
        o.reason for p in report.artifacts for o in p.unquantized_ops
    ]
    wanted += [d.serial for d in report.devices] + [report.host.hostname, report.command, report.data.source]
    wanted += [s.summary for s in report.lineage] + list(report.verdict_reasons[1:])
    assert [w for w in wanted if w not in text] == []


def test_emulated_is_said_wherever_its_numbers_are(page: str) -> None:
    """Each emulated row, headline, picture and device card carries the mark."""
    table = page[page.index('id="results-table"') : page.index("</table>", page.index('id="results-table"'))]
    assert table.count("badge emulated") == 7
    assert "Latencies of emulated devices are not hardware latencies" in page
    assert [d["emulated"] for d in json.loads(chart_json(page))["trade_off"]["devices"]] == [False, True]
    assert "board:arm64 (emulated)" in chart_json(page)


def test_an_empty_report_still_renders(report: Report) -> None:
    """A run that measured nothing has a page that says so."""
    empty = report.model_copy(
        update={
            "rows": (),
            "artifacts": (),
            "devices": (),
            "lineage": (),
            "stages": (),
            "warnings": (),
            "baseline": None,
        }
    )
    empty = empty.model_copy(update={"verdict": Verdict.NOT_GATED, "verdict_reasons": (), "skipped_devices": ()})
    page = render_page(empty, LIBRARY)
    assert "Nothing was measured" in page
    assert json.loads(chart_json(page)) == {"trade_off": None, "spread": [], "course": []}


def test_hidden_characters_show() -> None:
    """Terminal escapes and marks that reverse text are written out."""
    assert visible("a\x1b[31mb\u202ec\U000e0001") == "a\\x1b[31mb\\u202ec\\U000e0001"
    assert visible("Größe µs ×\n") == "Größe µs ×\n"
    assert one_line("a\n\n b\tc") == "a b c"
