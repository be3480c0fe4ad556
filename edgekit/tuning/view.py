"""A climb as rows and sentences, which the terminal and the page share."""

from __future__ import annotations

from edgekit.diagnosis.values import Bound
from edgekit.diagnosis.view import Row, Table, decibels
from edgekit.report import quantities as q
from edgekit.tuning.values import RungResult, RungStatus, TuneGate, TuneResult

__all__ = ["gate_text", "rung_table", "sentences"]

_HEADINGS = (
    *("rung", "status", "seconds", "size", "latency", "SQNR dB"),
    *("accuracy (search)", "drop (search)", "drop (evaluation)", "why"),
)


def gate_text(gate: TuneGate) -> str:
    """`at most 1 points under the teacher`."""
    parts = []
    if gate.max_drop_points is not None:
        parts.append(f"accuracy at most {gate.max_drop_points:g} points under the teacher")
    if gate.min_accuracy is not None:
        parts.append(f"accuracy at least {gate.min_accuracy:.2%}")
    return " and ".join(parts)


def rung_table(result: TuneResult) -> Table:
    """Every rung: what it cost and what it bought."""
    rows = tuple(Row(cells=_cells(rung), is_marked=rung.status is RungStatus.PASSED) for rung in result.rungs)
    return Table(
        title=f"{result.workload} to {result.backend} int8: {gate_text(result.gate)}",
        headings=_HEADINGS,
        rows=rows,
        note="seconds are of making the file, training included; the drop is under the teacher, in points",
    )


def _cells(rung: RungResult) -> tuple[str, ...]:
    seconds = "" if rung.seconds is None else f"{rung.seconds:.1f}" + (" (kept)" if rung.was_there else "")
    return (
        rung.name,
        rung.status.value,
        seconds,
        "" if rung.size_bytes is None else q.size(rung.size_bytes),
        "" if rung.latency_p50_ns is None else q.time(rung.latency_p50_ns),
        "" if rung.on_search is None else decibels(rung.sqnr_db, exact=True),
        "" if rung.on_search is None else f"{rung.on_search.value.value:.2%}",
        _drop(rung.on_search),
        _drop(rung.on_evaluation),
        rung.reason,
    )


def _drop(bound: Bound | None) -> str:
    if bound is None:
        return ""
    drop = bound.drop
    return f"{100 * drop.value:.2f} ({100 * drop.low:.2f} to {100 * drop.high:.2f})"


def sentences(result: TuneResult) -> tuple[str, ...]:
    """What a reader should know first."""
    told = [_ending(result)]
    if result.output is not None:
        told.append(f"the file is in {result.output}")
    told.append(
        f"searched on {result.search_data}: the teacher has {result.teacher_accuracy:.2%} there, the float student "
        f"{result.float_accuracy:.2%}"
    )
    told.append(
        f"the verdict is of {result.evaluation_data}, which no rung was made or chosen with; "
        f"{result.evaluations} file{'' if result.evaluations == 1 else 's'} had to be shown them"
    )
    if result.untimed is not None:
        told.append(f"not timed: {result.untimed}")
    if result.stopped is not None:
        told.append(f"{result.stopped}; call it again to go on")
    return tuple(told)


def _ending(result: TuneResult) -> str:
    by_name = {rung.name: rung for rung in result.rungs}
    if result.passed is not None:
        rung = by_name[result.passed]
        return f"{rung.name} passes ({rung.what}): {rung.reason}"
    if result.nearest is not None:
        rung = by_name[result.nearest]
        return f"no rung passes; the nearest is {rung.name}, in {rung.artifact}: {rung.reason}"
    return "no rung could be made"
