"""Gates: is this artifact good enough on this device?

Where a number has an interval, the interval decides: PASS when all of it is on the right side, FAIL when none
of it is, NOISY when the limit lies inside. What was not measured fails its gate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgekit.benchmarks.stats import stated_ratio
from edgekit.benchmarks.values import Gates
from edgekit.report.model import GateResult, LatencySummary, Row, Verdict

__all__ = ["judge", "overall", "unstated_speedup"]


def unstated_speedup(row: Row, baseline: Row) -> str | None:
    """Why the ratio of the two latencies is not called a speed-up; None where it may be."""
    if row.latency is None or baseline.latency is None:
        return None
    for which, one in (("this row", row), ("the teacher's row", baseline)):
        if one.invalid:
            return f"no speed-up is stated: the run of {which} is not valid: {one.invalid[0]}"
        if one.stability is not None and one.stability.verdict is Verdict.NOISY:
            told = next(d.told for d in one.stability.doubts if d.decides)
            return f"no speed-up is stated: {which} is NOISY: {told}"
    by_p50 = baseline.latency.p50_ns / row.latency.p50_ns
    by_min = baseline.latency.min_ns / row.latency.min_ns
    if stated_ratio(by_min, by_p50) is None:
        return f"no speed-up is stated: by medians {by_p50:.3g}x, by minima {by_min:.3g}x; load, not only the model"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """A measured value with the interval it may lie in (the value itself where it has none), and how it reads."""

    value: float
    low: float
    high: float
    text: str


def judge(
    row: Row, gates: Gates, *, baseline: LatencySummary | None, unstated: str | None = None
) -> tuple[Verdict, tuple[GateResult, ...]]:
    """The verdict of each gate that was asked for, and of all together.

    `baseline` is the latency of the baseline row on the same device, for `min_speedup`; `unstated` says why that
    ratio may not be stated, which makes its gate NOISY.
    """
    why = row.error.splitlines()[0] if row.error else f"run is {row.status}"
    results = []
    for name, limit, is_maximum, unit, measure in _asked(row, gates, baseline):
        shown = f"{name.removeprefix('max_').removeprefix('min_')} {'<=' if is_maximum else '>='} {limit:g}{unit}"
        if row.status != "ok":
            results.append(GateResult(gate=shown, verdict=Verdict.FAIL, detail=f"no valid measurement: {why}"))
        elif measure is None:
            results.append(GateResult(gate=shown, verdict=Verdict.FAIL, detail="not measured"))
        elif name == "min_speedup" and unstated is not None:
            results.append(GateResult(gate=shown, verdict=Verdict.NOISY, detail=f"{measure.text}; {unstated}"))
        else:
            emulated = " (emulated device)" if row.emulated and name in _TIMES else ""
            verdict = _decide(measure, limit, is_maximum)
            results.append(GateResult(gate=shown, verdict=verdict, detail=measure.text + emulated))
    if not results:
        return Verdict.NOT_GATED, ()
    return overall(r.verdict for r in results), tuple(results)


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """FAIL if any fails, else NOISY if any is, else PASS; NOT_GATED where nothing was gated."""
    seen = set(verdicts) - {Verdict.NOT_GATED}
    for verdict in (Verdict.FAIL, Verdict.INCOMPARABLE, Verdict.NOISY, Verdict.PASS):
        if verdict in seen:
            return verdict
    return Verdict.NOT_GATED


_TIMES = ("max_p50_ms", "max_p90_ms", "min_speedup")


def _decide(measure: _Measure, limit: float, is_maximum: bool) -> Verdict:
    best, worst = (measure.low, measure.high) if is_maximum else (-measure.high, -measure.low)
    bound = limit if is_maximum else -limit
    if worst <= bound:
        return Verdict.PASS
    return Verdict.FAIL if best > bound else Verdict.NOISY


def _asked(
    row: Row, gates: Gates, baseline: LatencySummary | None
) -> list[tuple[str, float, bool, str, _Measure | None]]:
    """(gate, limit, whether it is a maximum, unit, what was measured) of each gate that is set."""
    table: list[tuple[str, float | None, bool, str, _Measure | None]] = [
        ("max_accuracy_drop_pp", gates.max_accuracy_drop_pp, True, " pp", _accuracy_drop(row)),
        ("min_agreement", gates.min_agreement, False, "", _agreement(row)),
        ("min_sqnr_db", gates.min_sqnr_db, False, " dB", _sqnr(row)),
        ("max_p50_ms", gates.max_p50_ms, True, " ms", _p50(row)),
        ("max_p90_ms", gates.max_p90_ms, True, " ms", _exact(row.latency.p90_ns / 1e6 if row.latency else None, "ms")),
        ("max_size_bytes", gates.max_size_bytes, True, " bytes", _exact(row.size_bytes, "bytes")),
        ("max_peak_rss_mb", gates.max_peak_rss_mb, True, " MB", _exact(_megabytes(row.peak_rss_bytes), "MB")),
        ("min_speedup", gates.min_speedup, False, " x", _speedup(row, baseline)),
    ]
    return [(name, limit, is_max, unit, m) for name, limit, is_max, unit, m in table if limit is not None]


def _megabytes(size: int | None) -> float | None:
    return None if size is None else size / 1e6


def _exact(value: float | None, unit: str) -> _Measure | None:
    if value is None:
        return None
    shown = f"{value:,.0f}" if unit == "bytes" else f"{value:.4g}"
    return _Measure(value=value, low=value, high=value, text=f"{shown} {unit}")


def _accuracy_drop(row: Row) -> _Measure | None:
    drop = row.accuracy_drop
    if drop is None or row.non_finite:
        return None
    text = f"{drop.value * 100:.2f} pp (95 % paired interval {drop.low * 100:.2f} to {drop.high * 100:.2f})"
    return _Measure(value=drop.value * 100, low=drop.low * 100, high=drop.high * 100, text=text)


def _agreement(row: Row) -> _Measure | None:
    p = row.agreement
    if p is None or row.non_finite:
        return None
    text = f"{p.hits} of {p.total} = {p.value:.4f} (95 % interval {p.low:.4f} to {p.high:.4f})"
    return _Measure(value=p.value, low=p.low, high=p.high, text=text)


def _sqnr(row: Row) -> _Measure | None:
    if row.sqnr_exact:
        return _Measure(value=float("inf"), low=float("inf"), high=float("inf"), text="equal to the bit")
    return _exact(row.sqnr_db, "dB")


def _p50(row: Row) -> _Measure | None:
    s = row.latency
    if s is None:
        return None
    value, low, high = s.p50_ns / 1e6, s.p50_low_ns / 1e6, s.p50_high_ns / 1e6
    return _Measure(value=value, low=low, high=high, text=f"{value:.4g} ms (95 % interval {low:.4g} to {high:.4g})")


def _speedup(row: Row, baseline: LatencySummary | None) -> _Measure | None:
    s = row.latency
    if s is None or baseline is None:
        return None
    value = baseline.p50_ns / s.p50_ns
    low, high = baseline.p50_low_ns / s.p50_high_ns, baseline.p50_high_ns / s.p50_low_ns
    return _Measure(
        value=value, low=low, high=high, text=f"{value:.3g} x (95 % intervals give {low:.3g} to {high:.3g})"
    )
