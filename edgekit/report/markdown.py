"""The report as Markdown: for a pull request or a ticket. The page has more."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgekit.report import quantities as q
from edgekit.report.headline import headlines
from edgekit.report.model import Report
from edgekit.report.results import ColumnKey, Line, result_table, verdict_text
from edgekit.report.sections import comparisons, proportion_text, steps
from edgekit.report.visible import one_line

__all__ = ["render_markdown"]

_SPECIAL = re.compile(r"([\\`*_\[\]|~]|^[#+-]|^\d+(?=[.)](?:\s|$)))")


def _escape(match: re.Match[str]) -> str:
    """A special character behind a backslash; a number that would start a list, with its dot no longer next to it."""
    found = match.group(1)
    return f"{found}&#8203;" if found.isdigit() else f"\\{found}"


def _plain(text: str) -> str:
    """`text` on one line, so that Markdown shows it as it is: nothing of it becomes markup, HTML or a link."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = _SPECIAL.sub(_escape, text)
    return re.sub(r"(?i)\b(https?|ftp|mailto|www)(?=[:.])", r"\1&#8203;", escaped)  # no autolinks either


def render_markdown(report: Report) -> str:
    """The report's verdict, headlines, table, gates, comparison, lineage and warnings as GitHub-flavoured Markdown."""
    parts = [
        f"# {_plain(report.title)}",
        f"**{verdict_text(report.verdict)}**",
        _bullets(_plain(reason) for reason in report.verdict_reasons),
        _ran(report),
        "## In short",
        _bullets(_plain(h.sentence if h.row else f"{h.device}: {h.sentence}") for h in headlines(report)),
        "## Results",
        _results(report),
        _gates(report),
        "## Teacher and students",
        _comparison(report),
        _lineage(report),
        _doubts(report),
        f"Made by edgekit {_plain(report.edgekit_version)}; run {_plain(report.run_id)}, {_plain(report.created)}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(headings: list[str], rows: list[list[str]], numeric: range) -> str:
    rule = ["---:" if i in numeric else "---" for i in range(len(headings))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headings, rule, *rows])


def _ran(report: Report) -> str:
    data = report.data
    lines = [
        f"Data: {_plain(data.name)} from {_plain(data.source)}; {q.grouped_count(data.evaluation)} evaluated",
        f"Command: {_plain(report.command)}",
        f"Took: {q.duration(report.seconds)}",
    ]
    if report.baseline:
        lines.insert(0, f"Teacher: {_plain(report.baseline.name)}, {proportion_text(report.baseline.accuracy)}")
    return _bullets(lines)


def _results(report: Report) -> str:
    table = result_table(report)
    headings = ["#", *(c.heading for c in table.columns)]
    rows = [[str(line.number), *(_cell(line, c.key) for c in table.columns)] for line in table.lines]
    text = _table(headings, rows, range(3, len(headings) - 1))
    if any(line.row.emulated for line in table.lines):
        text += "\n\nEmulated: a latency measured there is not a hardware latency."
    return text


def _cell(line: Line, key: ColumnKey) -> str:
    cell = line.cells[key]
    text = _plain(cell.text)
    if key is ColumnKey.ARTIFACT:
        text += (" (teacher)" if line.row.is_baseline else "") + (" (Pareto)" if line.row.pareto else "")
        text += f" ({_plain(line.row.status)}: {_plain(line.row.error)})" if line.row.error else ""
    elif cell.detail:
        text += f" ({_plain(cell.detail)})"
    return text


def _gates(report: Report) -> str:
    rows = [
        [_plain(f"{r.artifact} on {r.device}"), _plain(g.gate), verdict_text(g.verdict), _plain(g.detail)]
        for r in report.rows
        for g in r.gates
    ]
    return "## Gates\n\n" + _table(["Row", "Gate", "Verdict", "Numbers"], rows, range(0)) if rows else ""


def _comparison(report: Report) -> str:
    headings = ["Model", "Kind", "Parameters", "MACs", "Size", "Accuracy, %", "Agreement, %", "KL, nats", "SQNR, dB"]
    rows = [
        [_plain(c.name), _plain(c.kind), c.parameters, c.macs, c.size, c.accuracy, c.agreement, c.kl, c.sqnr]
        for c in comparisons(report)
    ]
    return _table(headings, rows, range(2, len(headings)))


def _lineage(report: Report) -> str:
    lines = []
    for step in steps(report.lineage):
        changes = "; ".join(f"{c.name} {c.before} → {c.after} {c.effect}".rstrip() for c in step.changes)
        line = f"{_plain(step.name)}: {_plain(step.summary)}" + (f" ({_plain(changes)})" if changes else "")
        lines.append(line + (f". {_plain(step.judged)}" if step.judged else ""))
    return "## From teacher to student\n\n" + _bullets(lines) if lines else ""


def _doubts(report: Report) -> str:
    lines = [f"Skipped {_plain(s.spec)}: {_plain(s.reason)}" for s in report.skipped_devices]
    lines += [f"{_plain(w.where)}: {_plain(w.text)}" for w in report.warnings]
    lines += [f"{_plain(r.artifact)} on {_plain(r.device)}: {_plain(f)}" for r in report.rows for f in r.flags]
    return "## Warnings and doubts\n\n" + _bullets(lines) if lines else ""
