"""Comparing two runs: row by row where artifact and device are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.report.model import Report, Row, Verdict
from edgekit.schema import Record

if TYPE_CHECKING:
    from edgekit.benchmarks.values import DeviceInfo

__all__ = ["ReportComparison", "RowComparison", "compare_reports"]


class RowComparison(Record):
    """One row of each run, side by side."""

    artifact: str
    device: str
    p50_before_ns: int | None
    p50_after_ns: int | None
    ratio: float | None
    accuracy_before: float | None
    accuracy_after: float | None
    verdict: Verdict
    reasons: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """The row as a terminal shows it."""
        from edgekit.report import quantities as q

        change = "—" if self.ratio is None else f"{(self.ratio - 1) * 100:+.1f} %"
        before, after = self.accuracy_before, self.accuracy_after
        accuracy = "—" if before is None or after is None else f"{q.points(after - before)} pp"
        return (
            self.artifact,
            self.device,
            q.time(self.p50_before_ns),
            q.time(self.p50_after_ns),
            change,
            accuracy,
            self.verdict.value,
            "; ".join(self.reasons),
        )


class ReportComparison(Record):
    """Two runs compared: every row, and the verdict of all."""

    before: str
    after: str
    verdict: Verdict
    reason: str
    rows: tuple[RowComparison, ...]


def compare_reports(before: Report, after: Report, *, max_regress: float) -> ReportComparison:
    """`after` against `before`: FAIL where a row got slower than allowed, INCOMPARABLE where conditions differ.

    The verdict of all is the worst of the rows' in the order FAIL, INCOMPARABLE, NOISY, PASS. A row that one
    run has and the other lacks is INCOMPARABLE.
    """
    rows_before, rows_after = ({(r.artifact, r.device): r for r in report.rows} for report in (before, after))
    infos_before, infos_after = ({d.spec: d for d in report.devices} for report in (before, after))
    compared = [
        _compare(
            key,
            (rows_before.get(key), infos_before.get(key[1])),
            (rows_after.get(key), infos_after.get(key[1])),
            max_regress,
        )
        for key in dict.fromkeys([*rows_before, *rows_after])
    ]
    verdicts = [row.verdict for row in compared]
    verdict = next(
        (v for v in (Verdict.FAIL, Verdict.INCOMPARABLE, Verdict.NOISY, Verdict.PASS) if v in verdicts),
        Verdict.INCOMPARABLE,
    )
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)) or "no rows"
    return ReportComparison(
        before=before.run_id,
        after=after.run_id,
        verdict=verdict,
        reason=f"{counts}; allowed {max_regress:.1%} slower",
        rows=tuple(compared),
    )


def _compare(
    key: tuple[str, str],
    first: tuple[Row | None, DeviceInfo | None],
    second: tuple[Row | None, DeviceInfo | None],
    max_regress: float,
) -> RowComparison:
    from edgekit.benchmarks.comparison import compare_runs

    (before, info_before), (after, info_after) = first, second
    verdict, ratio = Verdict.INCOMPARABLE, None
    reasons: tuple[str, ...] = (_missing(before, after),)
    if before and after and before.run and after.run and info_before and info_after:
        verdict, told = compare_runs(before.run, after.run, info_before, info_after, max_regress)
        reasons, ratio = told.reasons, told.ratio
    return RowComparison(
        artifact=key[0],
        device=key[1],
        p50_before_ns=before.latency.p50_ns if before and before.latency else None,
        p50_after_ns=after.latency.p50_ns if after and after.latency else None,
        ratio=ratio,
        accuracy_before=before.accuracy.value if before and before.accuracy else None,
        accuracy_after=after.accuracy.value if after and after.accuracy else None,
        verdict=verdict,
        reasons=reasons,
    )


def _missing(before: Row | None, after: Row | None) -> str:
    if before is None:
        return "only in the second run"
    if after is None:
        return "only in the first run"
    return "not measured in both runs"
