"""One sentence per device: what the best artifact brought, taken from the rows."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.report import quantities as q
from edgekit.report.model import Report, Row, Verdict
from edgekit.report.results import accuracy_drop, is_measured

__all__ = ["RULE", "Headline", "best_row", "headlines"]

RULE = (
    "The artifact named for a device is the fastest on its Pareto front among those that pass their gates "
    "(among all, where no gate was asked for)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """`figures` are (number, what it is) pairs; `sentence` says the same in words.

    `row` is None where no row qualifies; `sentence` then says why.
    """

    device: str
    emulated: bool
    emulation: str | None
    row: Row | None
    figures: tuple[tuple[str, str], ...]
    sentence: str


def best_row(rows: tuple[Row, ...]) -> Row | None:
    """The fastest row by `RULE` among the rows of one device; None where none qualifies."""
    candidates = [r for r in rows if is_measured(r) and not r.is_baseline]
    gated = any(r.verdict is not Verdict.NOT_GATED for r in candidates)
    if gated:
        candidates = [r for r in candidates if r.verdict is Verdict.PASS]
    front = [r for r in candidates if r.pareto] or candidates
    return min(front, key=_p50, default=None)


def _p50(row: Row) -> int:
    if row.latency is None:
        raise ValueError(f"row {row.id} has no latency")
    return row.latency.p50_ns


def headlines(report: Report) -> tuple[Headline, ...]:
    """One headline for each device that has rows, in the report's order of devices."""
    facts = {d.spec: d for d in report.devices}
    specs = dict.fromkeys([d.spec for d in report.devices] + [r.device for r in report.rows])
    found = []
    for spec in specs:
        rows = tuple(r for r in report.rows if r.device == spec)
        if rows:
            emulated = any(r.emulated for r in rows) or (spec in facts and facts[spec].emulated)
            found.append(_headline(report, spec, rows, emulated, facts[spec].emulation if spec in facts else None))
    return tuple(found)


def _headline(report: Report, spec: str, rows: tuple[Row, ...], emulated: bool, emulation: str | None) -> Headline:
    row = best_row(rows)
    if row is None:
        sentence = _why_none(rows)
        return Headline(device=spec, emulated=emulated, emulation=emulation, row=None, figures=(), sentence=sentence)
    figures = _figures(report, row, rows)
    said = ", ".join(f"{number} {meaning}" for number, meaning in figures)
    caveat = " Emulated: not a hardware latency." if emulated else ""
    return Headline(
        device=spec,
        emulated=emulated,
        emulation=emulation,
        row=row,
        figures=figures,
        sentence=f"{row.artifact} on {spec}: {said}.{caveat}",
    )


def _why_none(rows: tuple[Row, ...]) -> str:
    if not any(is_measured(r) for r in rows):
        return "No artifact could be measured here."
    students = [r for r in rows if is_measured(r) and not r.is_baseline]
    if not students:
        return "Only the teacher was measured here."
    verdicts = sorted({r.verdict.value for r in students})
    return f"No artifact passes its gates here ({', '.join(verdicts)})."


def _figures(report: Report, row: Row, rows: tuple[Row, ...]) -> tuple[tuple[str, str], ...]:
    figures = [(q.time(_p50(row)), "median latency")]
    if row.speedup is not None:
        faster = row.speedup >= 1
        factor = row.speedup if faster else 1 / row.speedup
        figures.append((q.ratio(factor), "faster than the teacher" if faster else "slower than the teacher"))
    teacher_bytes = _teacher_bytes(report, row, rows)
    if teacher_bytes and row.size_bytes:
        smaller = teacher_bytes >= row.size_bytes
        factor = teacher_bytes / row.size_bytes if smaller else row.size_bytes / teacher_bytes
        figures.append((q.ratio(factor), f"{'smaller' if smaller else 'larger'} ({q.size(row.size_bytes)})"))
    drop = accuracy_drop(report, row)
    if drop is not None and row.accuracy is not None:
        figures.append((f"{q.points(drop)} pp", f"accuracy against the teacher ({q.percent(row.accuracy.value)} %)"))
    return tuple(figures)


def _teacher_bytes(report: Report, row: Row, rows: tuple[Row, ...]) -> int | None:
    """Size of the teacher's own file, in the same format where there is one; else of its fp32 weights."""
    own = [r for r in rows if r.is_baseline]
    same = [r for r in own if r.format == row.format] or own
    if same:
        return same[0].size_bytes
    return report.baseline.size_bytes if report.baseline else None
