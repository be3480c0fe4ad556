"""How one stretch of weights is coded: the cheapest of what the format has, by entropy; and its coding."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.packing.coder import Encoder, edges_of_counts, entropy_bytes, table_of
from edgekit.packing.numbers import varint
from edgekit.packing.stretches import Stretch
from edgekit.runtimes.device_scripts import unpack
from edgekit.runtimes.device_scripts.unpack import HAS_CODEBOOK, HAS_MASK, IS_CONDITIONAL, IS_DIFFERENCE, Span

__all__ = ["Coding", "Old", "best_coding", "write_coding"]

Unsigned = np.ndarray[Any, Any]
LEAST_ZEROS = 0.04
"""Share of zeros from which on they are told by the model of zeros."""
TABLE_SHRINKS = 0.5
"""What the plain stream's compression leaves of a table of 256 bytes, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Old:
    """The same weights in a base: its number, and their offset there."""

    base: int
    offset: int
    values: Unsigned


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """A way to code a stretch, and the bytes it is expected to take; `values` are what is coded."""

    span: Span
    coded_bytes: float
    """In the coded stream."""
    plain_bytes: float
    """In the plain stream."""
    values: Unsigned

    @property
    def cost(self) -> float:
        return self.coded_bytes + self.plain_bytes


def best_coding(stretch: Stretch, content: bytes, old: Old | None) -> Coding | None:
    """The cheapest coding of a stretch; None where the plain stream is cheaper."""
    width = stretch.width
    values = np.frombuffer(content, unpack.DTYPES[width], stretch.length // width, stretch.offset)
    plain = len(zlib.compress(values.tobytes(), 6))
    found = [_of_values(values, width, stretch.columns, flags=0, old=None)]
    if old is not None:
        found.append(_of_values(values - old.values, width, stretch.columns, flags=IS_DIFFERENCE, old=old))
        found += _conditional(values, width, old)
    best = min(found, key=lambda coding: coding.cost)
    return best if best.cost + 16 < plain else None


def _of_values(values: Unsigned, width: int, columns: tuple[int, ...], *, flags: int, old: Old | None) -> Coding:
    """By a codebook, where few values occur, or byte by byte; zeros apart where there are many."""
    is_one = values != 0
    ones = int(np.count_nonzero(is_one))
    coded, rows = 0.0, 1
    rest = values
    if len(values) - ones >= LEAST_ZEROS * len(values):
        flags |= HAS_MASK
        rows, coded = _best_columns(is_one, columns)
        rest = values[is_one]
    different, counts = _different(rest)
    if different is not None:
        flags |= HAS_CODEBOOK
        coded += entropy_bytes(counts)
        plain = float(len(different) * (width + 1))
    else:
        planes = [_plane_counts(rest, plane) for plane in range(width)]
        coded += sum(entropy_bytes(plane) for plane in planes)
        plain = 256 * TABLE_SHRINKS * width
    place = {"base": old.base, "offset": old.offset} if old is not None else {}
    codes = len(different) if different is not None else 0
    span = Span(size=len(values), width=width, flags=flags, columns=rows, codes=codes, **place)
    return Coding(span=span, coded_bytes=coded, plain_bytes=plain, values=values)


def _conditional(values: Unsigned, width: int, old: Old) -> list[Coding]:
    """By a codebook given the base's value in the same place; nothing where either has no codebook."""
    different, _ = _different(values, at_most=unpack.MAX_CODEBOOK)
    before, _ = _different(old.values, at_most=unpack.MAX_CODEBOOK)
    if different is None or before is None or not len(values):
        return []
    joint = _joint_counts(values, old.values, different, before)
    coded = sum(entropy_bytes(row) for row in joint)
    plain = len(different) * width + sum(1 + 2.5 * np.count_nonzero(row) for row in joint)
    span = Span(
        size=len(values), width=width, flags=HAS_CODEBOOK | IS_CONDITIONAL, codes=len(different),
        base=old.base, offset=old.offset,
    )  # fmt: skip
    return [Coding(span=span, coded_bytes=coded, plain_bytes=float(plain), values=values)]


def _different(values: Unsigned, at_most: int = 256) -> tuple[Unsigned | None, np.ndarray[Any, Any]]:
    """The different values, ascending, and how often each occurs; None when they are more than `at_most`."""
    sample = np.unique(values[: 64 * at_most])
    if len(sample) > at_most:
        return None, np.zeros(0, dtype=np.int64)
    different, counts = np.unique(values, return_counts=True)
    return (different, counts) if len(different) <= at_most else (None, counts[:0])


def _joint_counts(values: Unsigned, old: Unsigned, different: Unsigned, before: Unsigned) -> np.ndarray[Any, Any]:
    """How often each of `different` stands where each of `before` stood: `[before, different]`."""
    place = np.searchsorted(before, old) * len(different) + np.searchsorted(different, values)
    return np.bincount(place, minlength=len(before) * len(different)).reshape(len(before), len(different))


def _plane_counts(values: Unsigned, plane: int) -> np.ndarray[Any, Any]:
    return np.bincount(_plane(values, plane), minlength=256)


def _plane(values: Unsigned, plane: int) -> np.ndarray[Any, Any]:
    return np.asarray(values >> np.array(8 * plane, dtype=values.dtype)).astype(np.uint8)


def _best_columns(is_one: np.ndarray[Any, Any], columns: tuple[int, ...]) -> tuple[int, float]:
    """The row length whose columns differ most in density, and the bytes the zeros then take, learning included."""
    count = len(is_one)
    ones = int(np.count_nonzero(is_one))
    best = (1, entropy_bytes(np.array([ones, count - ones])))
    for width in columns:
        if width < min(count, unpack.MAX_COLUMNS) and count % width == 0:
            rows = count // width
            hits = np.count_nonzero(is_one.reshape(rows, width), axis=0)
            learning = 0.25 * width * np.log2(rows + 1) / 8
            cost = sum(entropy_bytes(np.array([k, rows - k])) * n for k, n in zip(*_counted(hits), strict=True))
            best = min(best, (width, cost + learning), key=lambda pair: pair[1])
    return best


def _counted(values: np.ndarray[Any, Any]) -> tuple[list[int], list[int]]:
    different, counts = np.unique(values, return_counts=True)
    return different.tolist(), counts.tolist()


def write_coding(coding: Coding, encoder: Encoder, old: Old | None) -> bytes:
    """Record the symbols of a coding; the bytes it puts into the plain stream. The mirror of `Expander.span`."""
    span, values = coding.span, coding.values
    if span.flags & IS_CONDITIONAL:
        return _write_conditional(span, values, encoder, old)
    if span.flags & HAS_MASK:
        is_one = values != 0
        encoder.mask(is_one, span.columns)
        values = values[is_one]
    if span.flags & HAS_CODEBOOK:
        return _write_codes(values, encoder)
    plain = b""
    for plane in range(span.width):
        if len(values):
            table, edges = edges_of_counts(_plane_counts(values, plane))
            encoder.symbols(edges[np.newaxis], _plane(values, plane).astype(np.int64))
            plain += table.tobytes()
    return plain


def _write_codes(values: Unsigned, encoder: Encoder) -> bytes:
    different, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    if not len(values):
        return b""
    table, edges = edges_of_counts(counts)
    encoder.symbols(edges[np.newaxis], codes.reshape(-1).astype(np.int64))
    return different.tobytes() + table.tobytes()


def _write_conditional(span: Span, values: Unsigned, encoder: Encoder, old: Old | None) -> bytes:
    if old is None:
        raise ValueError("a conditional coding without the weights it depends on")
    different, before = np.unique(values), np.unique(old.values)
    joint = _joint_counts(values, old.values, different, before)
    plain = different.tobytes()
    edges = np.empty((len(before), len(different) + 1), dtype=np.int64)
    for row, counts in enumerate(joint):
        table = table_of(counts)
        present = np.flatnonzero(table)
        plain += varint(len(present)) + b"".join(
            varint(int(code)) + table[code : code + 1].tobytes() for code in present
        )
        edges[row] = unpack.edges_of(table)
    contexts = np.searchsorted(before, old.values).astype(np.int64)
    encoder.symbols(edges, np.searchsorted(different, values).astype(np.int64), contexts)
    return plain
