"""The report in a terminal, as Markdown, as JUnit, and on disk."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console
from support.report_fixture import example_report, with_every_text

from edgekit.errors import HostError, UserError
from edgekit.report.junit import render_junit
from edgekit.report.markdown import render_markdown
from edgekit.report.model import Report
from edgekit.report.text import render_table
from edgekit.report.write import read_report, write_report

HOSTILE = "[bold red]x[/] \x1b[2J | `y` <b>z</b> & ]]> \ufffe\n# heading"


@pytest.fixture(scope="module")
def report() -> Report:
    return example_report(samples=60)


def printed(report: Report, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(render_table(report))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_terminal_never_overflows(report: Report, width: int) -> None:
    """No line is longer than the terminal, and each row's file name and verdict are there."""
    text = printed(report, width)
    assert max(len(line) for line in text.splitlines()) <= width
    for verdict, times in (("PASS", 8), ("NOISY", 2)):
        assert text.count(verdict) == times


def test_terminal_shows_all_columns_at_120(report: Report) -> None:
    """At 120 columns nothing is left out and no name is cut; at 80 what is left out is named."""
    wide, narrow = printed(report, 120), printed(report, 80)
    assert "student.static_w8a8.tflite" in wide
    for column in ("p90", "Cold", "Peak", "Agree", "SQNR"):
        assert column in wide.splitlines()[1] + wide.splitlines()[2]
    assert "Not shown" not in wide
    assert "Not shown at this width: p90, Cold load" in narrow


def test_terminal_closes_with_what_matters(report: Report) -> None:
    """Verdict, reasons, errors, warnings, skipped devices and the meaning of the mark follow the table."""
    text = printed(report, 120)
    assert "Verdict: FAIL" in text
    assert "accuracy_drop <= 1.0 pp failed (1.36 pp)" in text
    assert "2 warnings, 2 flags" in text
    assert "Skipped adb:R58M12ABCDE: unauthorized" in text
    assert "crashed: killed by SIGSEGV" in text
    assert "* emulated: not a hardware latency" in text
    assert text.count("board:arm64*") == 7


def test_terminal_obeys_no_device(report: Report) -> None:
    """Text from a device is neither markup nor a terminal escape."""
    text = printed(with_every_text(report, HOSTILE), 160)
    assert "\x1b" not in text
    assert "[bold red]x[/]" in text


def test_markdown_has_every_row_and_says_emulated(report: Report) -> None:
    """One line a row with as many cells as headings."""
    text = render_markdown(report)
    section = text[text.index("## Results") : text.index("## Gates")]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 14
    assert len({line.count("|") for line in lines}) == 1
    assert "(emulated)" in text
    assert "not a hardware latency" in text


def test_markdown_text_stays_text(report: Report) -> None:
    """Hostile text breaks no table, opens no heading and holds no HTML."""
    clean, text = render_markdown(report), render_markdown(with_every_text(report, HOSTILE))

    def headings(markdown: str) -> int:
        return sum(line.startswith("#") for line in markdown.splitlines())

    assert headings(text) == headings(clean)
    assert "<b>" not in text
    assert "\x1b" not in text
    section = text[text.index("## Results") : text.index("## Gates")]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1


def test_junit_counts_each_gate(report: Report) -> None:
    """A failed gate is a failure, an undecided one or a crash an error, a row without gates is skipped."""
    root = ET.fromstring(render_junit(report))
    cases = list(root.iter("testcase"))
    assert len(cases) == 12 * 2 + 2 + 1  # six students on two devices, two gates each; two teachers; one crash
    assert int(root.get("tests", "")) == len(cases)
    assert int(root.get("failures", "")) == 2
    assert int(root.get("errors", "")) == 3
    assert int(root.get("skipped", "")) == 2
    assert [s.get("name") for s in root.iter("testsuite")] == ["local", "board:arm64"]


def test_junit_is_xml_whatever_is_said(report: Report) -> None:
    """Markup, control characters and non-characters leave the file well formed."""
    root = ET.fromstring(render_junit(with_every_text(report, HOSTILE)))
    assert "<b>z</b>" in (root.get("name") or "")


def test_written_report_reads_back_equal(report: Report, tmp_path: Path) -> None:
    """report.json holds the whole report, raw samples included; no partial file stays behind."""
    files = write_report(report, tmp_path / "new" / "folder")
    assert read_report(files.json) == report
    assert read_report(files.json.parent) == report
    assert files.html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert files.markdown.read_text(encoding="utf-8") == render_markdown(report)
    assert sorted(p.name for p in files.json.parent.iterdir()) == ["report.html", "report.json", "report.md"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such report"),
        ("{", "not a readable report"),
        ('{"schema_version": 99}', "not a readable report"),
        ('{"titel": "x"}', "did you mean 'title'"),
    ],
)
def test_a_bad_report_file_is_a_user_error(tmp_path: Path, content: str | None, said: str) -> None:
    """Missing, cut short, of another version or misspelt: one sentence that says which."""
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_report(path)


def test_a_folder_that_cannot_be_written_is_a_host_error(report: Report, tmp_path: Path) -> None:
    """A file where the folder should be: an edgekit error, no traceback."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(HostError, match="cannot be written"):
        write_report(report, tmp_path / "taken")
