"""Numbers as people read them: the one place where base units become text.

Every view (page, terminal, Markdown) takes its strings from here, so that they agree to the digit. A column
of numbers gets one unit (`time_unit`, `size_unit`), so that its cells compare at a glance; the unit stands in
the heading and not in the cells. Not measured is `MISSING`, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "MISSING",
    "Unit",
    "count",
    "decibels",
    "duration",
    "grouped_count",
    "percent",
    "points",
    "ratio",
    "significant",
    "size",
    "size_unit",
    "time",
    "time_unit",
]

MISSING = "—"
"""What stands where nothing was measured."""

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of display and how many base units (ns, bytes) it holds."""

    name: str
    base: int

    def text(self, value: float | None) -> str:
        """`value` (in base units) as a bare number in this unit, three significant digits."""
        return MISSING if value is None else significant(value / self.base)


_TIMES = (Unit("ns", 1), Unit("µs", 1_000), Unit("ms", 1_000_000), Unit("s", 1_000_000_000))
_SIZES = (Unit("B", 1), Unit("KiB", 1 << 10), Unit("MiB", 1 << 20), Unit("GiB", 1 << 30))


def significant(value: float, digits: int = 3) -> str:
    """`value` rounded to `digits` significant digits, thousands grouped, never in exponent form."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # first, so that 9.996 counts as 10.0 and not as 10.00
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}".replace("-", MINUS)


def _one_unit(values: Iterable[float | None], units: Sequence[Unit]) -> Unit:
    """The largest unit in which the smallest positive value is still at least 0.5."""
    measured = [v for v in values if v is not None and v > 0]
    if not measured:
        return units[0]
    smallest = min(measured)
    return next((u for u in reversed(units) if smallest / u.base >= 0.5), units[0])


def time_unit(values_ns: Iterable[float | None]) -> Unit:
    """The unit for a column of times given in nanoseconds."""
    return _one_unit(values_ns, _TIMES)


def size_unit(values_bytes: Iterable[float | None]) -> Unit:
    """The unit for a column of sizes given in bytes."""
    return _one_unit(values_bytes, _SIZES)


def _with_unit(value: float | None, units: Sequence[Unit]) -> str:
    if value is None:
        return MISSING
    unit = next((u for u in reversed(units) if abs(value) >= u.base), units[0])
    return f"{unit.text(value)} {unit.name}"


def time(value_ns: float | None) -> str:
    """One time by itself: `1.53 ms`."""
    return _with_unit(value_ns, _TIMES)


def size(value_bytes: float | None) -> str:
    """One size by itself: `84.1 KiB`; binary units."""
    return _with_unit(value_bytes, _SIZES)


def duration(seconds: float | None) -> str:
    """Wall time for people: `0.42 s`, `38.1 s`, `4 min 12 s`, `2 h 05 min`."""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{significant(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(proportion: float | None) -> str:
    """A proportion (0 to 1) as a bare percentage with one decimal: `91.2`.

    Never `100.0` for less than all and never `0.0` for more than none: those would hide the exceptions.
    """
    if proportion is None:
        return MISSING
    text = f"{proportion * 100:.1f}"
    if text == "100.0" and proportion < 1:
        return f"{min(proportion * 100, 99.99):.2f}"
    if text == "0.0" and proportion > 0:
        return f"{max(proportion * 100, 0.01):.2f}"
    return text


def points(difference: float | None) -> str:
    """A difference of two proportions in percentage points, signed: `−0.8`, `+0.3`, `0.0`."""
    if difference is None:
        return MISSING
    text = f"{abs(difference) * 100:.1f}"
    if text == "0.0":
        return text
    return f"{MINUS if difference < 0 else '+'}{text}"


def decibels(value: float | None, *, exact: bool = False) -> str:
    """A ratio in decibels with one decimal; `exact` where the noise is zero and the ratio has no number."""
    if exact:
        return "exact"
    return MISSING if value is None else f"{value:.1f}".replace("-", MINUS)


def ratio(value: float | None) -> str:
    """A factor: `3.42×`."""
    return MISSING if value is None else f"{significant(value)}×"


def count(value: int | None) -> str:
    """A large count with three significant digits: `102 k`, `14.8 M`; small ones as they are."""
    if value is None:
        return MISSING
    for base, suffix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if abs(value) >= base:
            return f"{significant(value / base)} {suffix}"
    return grouped_count(value)


def grouped_count(value: int | None) -> str:
    """A count in full: `10,000`."""
    return MISSING if value is None else f"{value:,}".replace("-", MINUS)
