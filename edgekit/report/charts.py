"""The pictures as data: what `report.js` draws, small and with every text ready.

Raw samples never reach the page: a distribution is a histogram of `BINS` bins between the 1st and the 99th
percentile, a course over the run is `SEGMENTS` medians. Texts are escaped for plotly, which reads a small
HTML of its own in labels. Shapes are `report.js`'s business; every number shown is formatted here.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from edgekit.report import quantities as q
from edgekit.report.model import Report, Row
from edgekit.report.results import Line, ResultTable, accuracy_drop, is_measured
from edgekit.report.visible import one_line

__all__ = ["BINS", "SEGMENTS", "charts", "front", "histogram", "number_places", "segment_medians"]

BINS = 48
SEGMENTS = 60
LOG_SPAN = 4.0
"""Latencies that span more than this factor are drawn on a logarithmic axis."""
LABEL_LENGTH = 44


def charts(report: Report, table: ResultTable) -> dict[str, Any]:
    """Every picture of `report` as JSON values; `trade_off` is None where there is nothing to set against latency."""
    devices = list(dict.fromkeys(line.row.device for line in table.lines))
    measured = [line for line in table.lines if is_measured(line.row)]
    return {
        "trade_off": _trade_off(report, table, measured, devices),
        "spread": [_spread(d, [m for m in measured if m.row.device == d]) for d in devices],
        "course": [_course(d, [m for m in measured if m.row.device == d]) for d in devices],
    }


def label(text: str, length: int = LABEL_LENGTH) -> str:
    """`text` for a plotly label: one line, cut in the middle when long, its markup escaped."""
    text = one_line(text)
    if len(text) > length:
        half = (length - 1) // 2
        text = f"{text[: length - 1 - half]}…{text[-half:]}"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# ---- accuracy against latency


def _quality(lines: Sequence[Line]) -> tuple[str, str] | None:
    """(field, axis title) of the first measure of quality that any row has."""
    known = {
        "accuracy": "Accuracy, %",
        "agreement": "Agreement with the teacher, %",
        "sqnr_db": "SQNR against PyTorch fp32, dB",
    }
    for field, title in known.items():
        if any(getattr(line.row, field) is not None for line in lines):
            return field, title
    return None


def _quality_of(row: Row, field: str) -> float | None:
    value = getattr(row, field)
    if value is None:
        return None
    return float(value) if field == "sqnr_db" else float(value.value) * 100


def _trade_off(
    report: Report, table: ResultTable, measured: Sequence[Line], devices: Sequence[str]
) -> dict[str, Any] | None:
    quality = _quality(measured)
    if quality is None:
        return None
    field, title = quality
    lines = [m for m in measured if _quality_of(m.row, field) is not None]
    unit = table.time
    times = [m.row.latency.p50_ns / unit.base for m in lines if m.row.latency]
    teacher = report.baseline.accuracy if report.baseline and field == "accuracy" else None
    log = min(times) > 0 and max(times) / min(times) > LOG_SPAN
    panels = [_device_points(report, table, d, [m for m in lines if m.row.device == d], field) for d in devices]
    _place_numbers(panels, log)
    return {
        "x_title": f"Median latency, {unit.name}",
        "y_title": title,
        "log": log,
        "ticks": _log_ticks(min(times), max(times)) if log else None,
        "teacher": teacher and {"y": teacher.value * 100, "text": f"PyTorch teacher {q.percent(teacher.value)} %"},
        "devices": panels,
    }


def _log_ticks(low: float, high: float) -> list[list[Any]]:
    """[value, text] at 1, 2, 5 · 10ⁿ around `low`…`high`; wide spans get the powers of ten only."""
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    steps = (1, 2, 5) if last - first <= 6 else (1,)
    return [[s * 10.0**e, q.significant(s * 10.0**e)] for e in range(first, last + 1) for s in steps]


def _device_points(
    report: Report, table: ResultTable, device: str, lines: Sequence[Line], field: str
) -> dict[str, Any]:
    largest = max((line.row.size_bytes for line in table.lines), default=1) or 1
    points: list[dict[str, Any]] = []
    for line in sorted(lines, key=lambda item: -item.row.size_bytes):  # small bubbles are drawn last, on top
        row, y = line.row, _quality_of(line.row, field)
        if row.latency is None or y is None:
            continue
        interval = row.accuracy if field == "accuracy" else row.agreement if field == "agreement" else None
        points.append(
            {
                "x": row.latency.p50_ns / table.time.base,
                "y": y,
                "error": [interval.high * 100 - y, y - interval.low * 100] if interval else [0, 0],
                "size": math.sqrt(row.size_bytes / largest),
                "number": str(line.number),
                "shape": "teacher" if row.is_baseline else row.format,
                "float": row.scheme in {"fp32", "fp16"},
                "pareto": row.pareto,
                "hover": _hover(report, line),
            }
        )
    emulated = any(line.row.emulated for line in lines)
    best = [(p["x"], p["y"]) for p in points if p["pareto"]]
    name = label(device, 28) + (" (emulated)" if emulated else "")
    return {"name": name, "emulated": emulated, "points": points, "front": front(best)}


def number_places(points: Sequence[tuple[float, float]]) -> list[str]:
    """Where each point's number stands, for points given as shares of the panel (0 to 1 both ways).

    `center` of its bubble where it stands alone; beside, above or below where bubbles overlap, by order from the left.
    """
    places = ["center"] * len(points)
    left = set(range(len(points)))
    while left:
        cluster = {left.pop()}
        growing = True
        while growing:
            near = {i for i in left if any(_overlap(points[i], points[j]) for j in cluster)}
            cluster |= near
            left -= near
            growing = bool(near)
        if len(cluster) > 1:
            ordered = sorted(cluster, key=lambda i: (points[i], i))
            for order, i in enumerate(ordered):
                inner = "top" if order % 2 else "bottom"
                places[i] = "left" if order == 0 else "right" if order == len(ordered) - 1 else inner
    return places


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two bubbles touch on a panel as narrow as a phone's (a bubble is up to a tenth of it)."""
    return abs(a[0] - b[0]) < 0.08 and abs(a[1] - b[1]) < 0.08


def _place_numbers(panels: Sequence[dict[str, Any]], log: bool) -> None:
    """Write `place` into every point of `panels`, which share their quality axis."""
    every = [p for panel in panels for p in panel["points"]]
    low, high = min(p["y"] - p["error"][1] for p in every), max(p["y"] + p["error"][0] for p in every)
    for points in (panel["points"] for panel in panels if panel["points"]):
        x = [math.log(p["x"]) if log else p["x"] for p in points]
        x_span, y_span = (max(x) - min(x)) or 1.0, (high - low) or 1.0
        shares = [((v - min(x)) / x_span, (p["y"] - low) / y_span) for v, p in zip(x, points, strict=True)]
        for point, place in zip(points, number_places(shares), strict=True):
            point["place"] = place


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (latency, quality) `points`, those that no other beats in both, by latency: the line that is drawn.

    A row may be on the Pareto front for its size alone; it is marked, but the line leaves it out.
    """
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def _hover(report: Report, line: Line) -> str:
    row = line.row
    latency = row.latency
    facts = [
        f"<b>{line.number} · {label(row.artifact, 60)}</b>",
        f"{label(row.device)}{' (emulated)' if row.emulated else ''}",
        f"p50 {q.time(latency.p50_ns if latency else None)}, p90 {q.time(latency.p90_ns if latency else None)}",
        f"cold load {q.time(row.cold_load_ns)}",
        f"file {q.size(row.size_bytes)}, peak memory {q.size(row.peak_rss_bytes)}",
    ]
    if row.accuracy:
        interval = f"{q.percent(row.accuracy.low)}–{q.percent(row.accuracy.high)}"
        facts.append(f"accuracy {q.percent(row.accuracy.value)} % ({interval})")
        facts.append(f"against the teacher {q.points(accuracy_drop(report, row))} pp")
    if row.agreement:
        facts.append(f"agreement {q.percent(row.agreement.value)} %")
    facts.append(f"SQNR {q.decibels(row.sqnr_db, exact=row.sqnr_exact)}{'' if row.sqnr_db is None else ' dB'}")
    facts.append(f"speed-up {q.ratio(row.speedup)}")
    facts.append("on the Pareto front" if row.pareto else "not on the Pareto front")
    return "<br>".join(facts)


# ---- distributions and courses


def _rank(ordered: Sequence[int], proportion: float) -> int:
    """Nearest-rank quantile of sorted samples."""
    return ordered[max(0, math.ceil(proportion * len(ordered)) - 1)]


def histogram(samples: Sequence[int], bins: int = BINS) -> tuple[list[float], list[float]]:
    """(bin middles as multiples of the median, heights 0 to 1) over the 1st to 99th percentile of `samples`."""
    ordered = sorted(samples)
    middle = median(ordered)
    low, high = _rank(ordered, 0.01), _rank(ordered, 0.99)
    if middle <= 0:
        return [], []
    if low == high:
        return [low / middle], [1.0]
    width = (high - low) / bins
    edges = [low + width * i for i in range(bins)] + [math.nextafter(float(high), math.inf)]
    places = [bisect.bisect_left(ordered, edge) for edge in edges]
    counts = [b - a for a, b in itertools.pairwise(places)]
    tallest = max(counts)
    return [(low + width * (i + 0.5)) / middle for i in range(bins)], [c / tallest for c in counts]


def segment_medians(samples: Sequence[int], segments: int = SEGMENTS) -> list[float]:
    """Medians of up to `segments` equal stretches of the run, in order, as multiples of the whole median."""
    middle = median(samples)
    segments = min(segments, len(samples))
    if middle <= 0:
        return []
    cuts = [round(i * len(samples) / segments) for i in range(segments + 1)]
    return [median(samples[a:b]) / middle for a, b in itertools.pairwise(cuts)]


def _samples(row: Row) -> tuple[int, ...]:
    return row.run.latency_ns if row.run else ()


def _spread(device: str, lines: Sequence[Line]) -> dict[str, Any]:
    bands = []
    for line in lines:
        samples, latency = _samples(line.row), line.row.latency
        if not samples or latency is None or latency.p50_ns <= 0:
            continue
        x, height = histogram(samples)
        bands.append(
            {
                "label": f"{line.number} · {label(line.row.artifact, 34)}",
                "value": q.time(latency.p50_ns),
                "x": _short(x),
                "height": _short(height),
                "p10": round(latency.p10_ns / latency.p50_ns, 4),
                "p90": round(latency.p90_ns / latency.p50_ns, 4),
                "hover": _spread_hover(line),
            }
        )
    return {"device": device, "bands": bands}


def _spread_hover(line: Line) -> str:
    s = line.row.latency
    if s is None:
        return ""
    return "<br>".join(
        [
            f"<b>{line.number} · {label(line.row.artifact, 60)}</b>",
            f"min {q.time(s.min_ns)}, p10 {q.time(s.p10_ns)}",
            f"p50 {q.time(s.p50_ns)} (95 %: {q.time(s.p50_low_ns)} to {q.time(s.p50_high_ns)})",
            f"p90 {q.time(s.p90_ns)}, p99 {q.time(s.p99_ns)}",
            f"mean {q.time(s.mean_ns)} ± {q.time(s.stdev_ns)}",
            f"{q.grouped_count(s.samples)} samples",
        ]
    )


def _course(device: str, lines: Sequence[Line]) -> dict[str, Any]:
    bands = []
    for line in lines:
        samples = _samples(line.row)
        course = segment_medians(samples) if samples else []
        if not course:
            continue
        furthest = max(course, key=lambda v: abs(v - 1))
        bands.append(
            {
                "label": f"{line.number} · {label(line.row.artifact, 34)}",
                "value": f"{q.points(furthest - 1)} %",
                "y": _short(course),
                "hover": [f"{q.points(v - 1)} % against the median of the run" for v in course],
            }
        )
    return {"device": device, "bands": bands}


def _short(values: Sequence[float]) -> list[float]:
    return [round(v, 4) for v in values]
