"""The result table: one line an artifact on a device, the same cells in every view."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edgekit.report import quantities as q
from edgekit.report.model import Proportion, Report, Row, Verdict

__all__ = [
    "Cell",
    "Column",
    "ColumnKey",
    "Line",
    "ResultTable",
    "accuracy_drop",
    "is_measured",
    "result_table",
    "verdict_text",
]


class ColumnKey(StrEnum):
    """The columns, in the order they are shown."""

    ARTIFACT = "artifact"
    DEVICE = "device"
    SIZE = "size"
    P50 = "p50"
    P90 = "p90"
    COLD = "cold"
    MEMORY = "memory"
    ACCURACY = "accuracy"
    DROP = "drop"
    AGREEMENT = "agreement"
    SQNR = "sqnr"
    SPEEDUP = "speedup"
    VERDICT = "verdict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A heading: `title` and `unit` apart, and what the number is in one sentence."""

    key: ColumnKey
    title: str
    unit: str | None = None
    meaning: str
    numeric: bool = True

    @property
    def heading(self) -> str:
        """`p50, ms`."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is shown (`text`, and `detail` in small below it), what it sorts by, and why it is missing."""

    text: str
    detail: str | None = None
    order: float | str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table; `number` names it in the pictures."""

    number: int
    row: Row
    cells: dict[ColumnKey, Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultTable:
    """Columns with their units, and the lines in the report's order."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    time: q.Unit
    cold: q.Unit
    size: q.Unit
    memory: q.Unit


def is_measured(row: Row) -> bool:
    """Whether the row has a latency: the run on the device ended well."""
    return row.status == "ok" and row.latency is not None


def accuracy_drop(report: Report, row: Row) -> float | None:
    """Row's accuracy less the PyTorch teacher's (negative: worse), as a proportion; None where either is unknown."""
    reference = report.baseline.accuracy if report.baseline else None
    if row.accuracy is None or reference is None:
        return None
    return row.accuracy.value - reference.value


def result_table(report: Report) -> ResultTable:
    """The table of `report`, each column in one unit."""
    rows = report.rows
    table = ResultTable(
        columns=(),
        lines=(),
        time=q.time_unit(v for r in rows if r.latency for v in (r.latency.p50_ns, r.latency.p90_ns)),
        cold=q.time_unit(r.cold_load_ns for r in rows),
        size=q.size_unit(r.size_bytes for r in rows),
        memory=q.size_unit(r.peak_rss_bytes for r in rows),
    )
    lines = tuple(Line(number=i, row=r, cells=_cells(report, r, table)) for i, r in enumerate(rows, start=1))
    return ResultTable(
        columns=_columns(table), lines=lines, time=table.time, cold=table.cold, size=table.size, memory=table.memory
    )


def _columns(t: ResultTable) -> tuple[Column, ...]:
    c, k = Column, ColumnKey
    return (
        c(key=k.ARTIFACT, title="Artifact", meaning="Model file: format and quantization scheme.", numeric=False),
        c(key=k.DEVICE, title="Device", meaning="Where it ran.", numeric=False),
        c(key=k.SIZE, title="Size", unit=t.size.name, meaning="Bytes of the model file."),
        c(key=k.P50, title="p50", unit=t.time.name, meaning="Median latency of one inference, warm."),
        c(key=k.P90, title="p90", unit=t.time.name, meaning="90th percentile of latency, warm."),
        c(key=k.COLD, title="Cold load", unit=t.cold.name, meaning="Import, load and first inference; fresh process."),
        c(key=k.MEMORY, title="Peak RSS", unit=t.memory.name, meaning="Peak resident memory of the process."),
        c(key=k.ACCURACY, title="Accuracy", unit="%", meaning="Top-1 on the evaluation set, with 95 % interval."),
        c(key=k.DROP, title="vs teacher", unit="pp", meaning="Accuracy less the PyTorch teacher's."),
        c(key=k.AGREEMENT, title="Agreement", unit="%", meaning="Same top-1 as the PyTorch teacher."),
        c(key=k.SQNR, title="SQNR", unit="dB", meaning="Outputs against the same model in PyTorch fp32."),
        c(key=k.SPEEDUP, title="Speed-up", meaning="Teacher's p50 on the same device over this p50."),
        c(key=k.VERDICT, title="Verdict", meaning="What the gates decided.", numeric=False),
    )


def _cells(report: Report, row: Row, t: ResultTable) -> dict[ColumnKey, Cell]:
    k = ColumnKey
    p50, p90 = (row.latency.p50_ns, row.latency.p90_ns) if row.latency else (None, None)
    drop = accuracy_drop(report, row)
    return {
        k.ARTIFACT: _artifact_cell(row),
        k.DEVICE: Cell(text=row.device, detail="emulated" if row.emulated else None, order=row.device),
        k.SIZE: Cell(text=t.size.text(row.size_bytes), order=row.size_bytes),
        k.P50: _measured(row, t.time.text(p50), p50, "latency_ns"),
        k.P90: _measured(row, t.time.text(p90), p90, "latency_ns"),
        k.COLD: _measured(row, t.cold.text(row.cold_load_ns), row.cold_load_ns, "cold_starts"),
        k.MEMORY: _memory_cell(row, t),
        k.ACCURACY: _proportion_cell(row, row.accuracy, with_interval=True),
        k.DROP: _measured(row, q.points(drop), drop, "outputs_sha256"),
        k.AGREEMENT: _proportion_cell(row, row.agreement, with_interval=False),
        k.SQNR: _sqnr_cell(row),
        k.SPEEDUP: Cell(
            text=q.ratio(row.speedup),
            order=row.speedup,
            reason=None if row.speedup is not None else row.speedup_unstated or _reason(row, "latency_ns"),
        ),
        k.VERDICT: Cell(text=verdict_text(row.verdict), order=row.verdict.value),
    }


def verdict_text(verdict: Verdict) -> str:
    """`PASS`, `FAIL`, …; `not gated` where no gate was asked for."""
    return "not gated" if verdict is Verdict.NOT_GATED else verdict.value


def _artifact_cell(row: Row) -> Cell:
    kind = " · ".join(part for part in (row.format, row.scheme) if part)
    return Cell(text=row.artifact, detail=f"teacher · {kind}" if row.is_baseline else kind, order=row.artifact)


def _measured(row: Row, text: str, value: float | None, field: str) -> Cell:
    """A cell of a number; where there is none, with the reason it was not measured."""
    return Cell(text=text, order=value, reason=None if value is not None else _reason(row, field))


def _reason(row: Row, field: str) -> str:
    if row.error:
        return f"{row.status}: {row.error}"
    said = row.run.unmeasured.get(field) if row.run else None
    return said or "not measured"


def _memory_cell(row: Row, t: ResultTable) -> Cell:
    cell = _measured(row, t.memory.text(row.peak_rss_bytes), row.peak_rss_bytes, "memory")
    if row.model_rss_bytes is None:
        return cell
    return Cell(text=cell.text, order=cell.order, detail=f"model {t.memory.text(row.model_rss_bytes)}")


def _proportion_cell(row: Row, p: Proportion | None, *, with_interval: bool) -> Cell:
    if p is None:
        return Cell(text=q.MISSING, reason=_reason(row, "outputs_sha256"))
    interval = f"{q.percent(p.low)}–{q.percent(p.high)}" if with_interval else None
    return Cell(text=q.percent(p.value), detail=interval, order=p.value)


def _sqnr_cell(row: Row) -> Cell:
    if row.sqnr_exact:
        return Cell(text=q.decibels(None, exact=True), order=1e9)  # above every ratio that has a number
    return _measured(row, q.decibels(row.sqnr_db), row.sqnr_db, "outputs_sha256")
