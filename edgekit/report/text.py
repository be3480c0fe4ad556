"""The report in a terminal: the result table and the lines that close it."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from edgekit.artifact import StepVerdict
from edgekit.report import quantities as q
from edgekit.report.model import Report, Verdict
from edgekit.report.results import ColumnKey, Line, ResultTable, result_table, verdict_text
from edgekit.report.sections import judged_text
from edgekit.report.visible import one_line

__all__ = ["closing_lines", "render_table", "step_lines"]

_STYLES = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.NOISY: "yellow",
    Verdict.INCOMPARABLE: "yellow",
    Verdict.NOT_GATED: "dim",
}
_STEP_STYLES = {
    StepVerdict.PAID: "green",
    StepVerdict.SIZE_ONLY: "yellow",
    StepVerdict.NOT_PAID: "bold red",
}
_SHORT = {
    ColumnKey.COLD: "Cold",
    ColumnKey.MEMORY: "Peak",
    ColumnKey.ACCURACY: "Acc.",
    ColumnKey.DROP: "Δ",
    ColumnKey.AGREEMENT: "Agree",
    ColumnKey.SPEEDUP: "Speed",
}
_WIDE = 116
"""Columns of text from which every column of the table is shown."""
_LEFT_OUT_WHEN_NARROW = frozenset(
    {ColumnKey.P90, ColumnKey.COLD, ColumnKey.MEMORY, ColumnKey.DROP, ColumnKey.AGREEMENT, ColumnKey.SQNR}
)


def render_table(report: Report) -> RenderableType:
    """The table, one row an artifact on a device, and below it verdict, reasons, warnings and skipped devices.

    Fits 120 columns; on a narrower terminal the columns that a decision can do without are left out and named.
    """
    return Group(_Results(report), *step_lines(report), *closing_lines(report))


class _Results:
    """The table as rich asks for it: by then the width is known."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = result_table(self._report)
        is_narrow = options.max_width < _WIDE
        keys = [c.key for c in table.columns if not (is_narrow and c.key in _LEFT_OUT_WHEN_NARROW)]
        yield _table(table, keys)
        if any(line.row.emulated for line in table.lines):
            yield Text("* emulated: not a hardware latency", style="magenta")
        for line in table.lines:
            if line.row.error:
                where = one_line(f"{line.row.artifact} on {line.row.device}")
                yield Text(f"! {where}: {one_line(line.row.status)}: {one_line(line.row.error)}", style="red")
        for line in table.lines:
            stability = line.row.stability
            if stability is not None and stability.verdict is Verdict.NOISY:
                where = one_line(f"{line.row.artifact} on {line.row.device}")
                doubts = "; ".join(str(d) for d in stability.doubts if d.decides)
                yield Text(f"~ {where}: NOISY: {one_line(doubts)}", style="yellow")
        if is_narrow:
            missing = [c.title for c in table.columns if c.key in _LEFT_OUT_WHEN_NARROW]
            yield Text(f"Not shown at this width: {', '.join(missing)} (see the report)", style="dim")


def _table(table: ResultTable, keys: list[ColumnKey]) -> Table:
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    for column in table.columns:
        if column.key in keys:
            title = _SHORT.get(column.key, column.title)
            shown.add_column(
                Text(f"{title}\n{column.unit or ''}".rstrip()),
                justify="right" if column.numeric else "left",
                no_wrap=column.numeric or column.key is ColumnKey.VERDICT,
                overflow="fold",
            )
    for line in table.lines:
        shown.add_row(*(_cell(line, key) for key in keys), style="dim" if line.row.is_baseline else None)
    return shown


def _cell(line: Line, key: ColumnKey) -> Text:
    cell = line.cells[key]
    if key is ColumnKey.VERDICT:
        gated = line.row.verdict is not Verdict.NOT_GATED
        return Text(cell.text if gated else q.MISSING, style=_STYLES[line.row.verdict])
    if key is ColumnKey.DEVICE and line.row.emulated:
        return Text.assemble(one_line(cell.text), ("*", "bold magenta"))
    if key is ColumnKey.ARTIFACT:
        mark = " (teacher)" if line.row.is_baseline and not line.row.artifact.startswith("teacher") else ""
        return Text(one_line(cell.text) + mark)
    return Text(one_line(cell.text))


def step_lines(report: Report) -> list[Text]:
    """Each step that was judged, and whether it paid."""
    lines = []
    for step in report.lineage:
        if step.proof is not None:
            style = _STEP_STYLES[step.proof.verdict]
            verdict, _, reason = judged_text(step.proof).partition(": ")
            lines.append(Text.assemble(f"{one_line(step.step)}: ", (verdict, style), f": {one_line(reason)}"))
    return lines


def closing_lines(report: Report) -> list[Text]:
    """Verdict, its reasons, the number of warnings, and each skipped device."""
    lines = [Text.assemble("Verdict: ", (verdict_text(report.verdict), _STYLES[report.verdict]))]
    lines += [Text(f"  - {one_line(reason)}") for reason in report.verdict_reasons]
    flags = sum(len(row.flags) for row in report.rows)
    if report.warnings or flags:
        said = f"{_plural(len(report.warnings), 'warning')}, {_plural(flags, 'flag')} on rows; see the report"
        lines.append(Text(said, style="yellow"))
    for skipped in report.skipped_devices:
        hint = f" (try: {one_line(skipped.hint)})" if skipped.hint else ""
        lines.append(Text(f"Skipped {one_line(skipped.spec)}: {one_line(skipped.reason)}{hint}", style="yellow"))
    if report.seconds is not None:
        lines.append(Text(f"Took {q.duration(report.seconds)}", style="dim"))
    return lines


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
