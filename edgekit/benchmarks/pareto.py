"""The Pareto front of accuracy, latency and size on one device."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.report.model import Row

__all__ = ["pareto_front"]


def pareto_front(rows: Sequence[Row]) -> frozenset[str]:
    """Ids of the rows that no other row of the same device beats: as accurate, quick and small, and better in one.

    Rows without a valid run, a latency or an accuracy take no part.
    """
    points = {row.id: (row.device, _point(row)) for row in rows}
    known = {i: (device, point) for i, (device, point) in points.items() if point is not None}
    return frozenset(
        i
        for i, (device, point) in known.items()
        if not any(_beats(other, point) for j, (place, other) in known.items() if j != i and place == device)
    )


def _point(row: Row) -> tuple[float, float, float] | None:
    """(error rate, p50, size), each the less the better."""
    if row.status != "ok" or row.latency is None or row.accuracy is None:
        return None
    return 1 - row.accuracy.value, float(row.latency.p50_ns), float(row.size_bytes)


def _beats(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
