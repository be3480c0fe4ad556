"""The writing side of a pack's coded stream: interleaved rANS, the mirror of `unpack.Decoder`.

Duda 2013, "Asymmetric numeral systems", arXiv 1311.2540; interleaved as Giesen 2014, arXiv 1402.3392. Arrays are
recorded in the order in which they will be read; `finish` codes them from the last symbol to the first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.runtimes.device_scripts import unpack

__all__ = ["Encoder", "edges_of_counts", "entropy_bytes", "lanes_for", "table_of"]

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
LANE_BYTES = 512
"""A lane costs about 2 bytes of its 4 (the state carries the rest as information); this keeps that under half a
per cent."""


def lanes_for(payload_bytes: float, symbols: int) -> int:
    """How many lanes a stream gets: as many as it can afford, and enough to be decoded in reasonable time."""
    enough = symbols // (unpack.SYMBOLS_PER_LANE // 2) + 1
    return max(1, min(unpack.MAX_LANES, max(enough, int(payload_bytes) // LANE_BYTES)))


def table_of(counts: Ints) -> Bytes:
    """The bytes of a table for symbols that occur `counts` times `[K]`; at least one occurs."""
    share = np.maximum(counts, 1) * (unpack.ONE / max(int(counts.sum()), 1))
    index = np.clip(1 + np.round(8 * np.log2(np.maximum(share, 1.0))), 1, len(unpack.WEIGHTS) - 1)
    return np.where(counts > 0, index, 0).astype(np.uint8)


def edges_of_counts(counts: Ints) -> tuple[Bytes, Ints]:
    """A table's bytes, and the edges of the frequencies they stand for, `[K + 1]`."""
    table = table_of(counts)
    return table, unpack.edges_of(table).astype(np.int64)


def entropy_bytes(counts: Ints) -> float:
    """What symbols that occur `counts` times take at their entropy."""
    present = counts[counts > 0].astype(np.float64)
    total = present.sum()
    return float((present * np.log2(total / present)).sum() / 8) if len(present) else 0.0


class Encoder:
    """Records arrays of symbols; `finish` gives the states and the words."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.model = unpack.MaskModel()
        self._frequencies: list[np.ndarray[Any, np.dtype[np.uint16]]] = []
        self._bottoms: list[np.ndarray[Any, np.dtype[np.uint16]]] = []

    def symbols(self, edges: Ints, values: Ints, contexts: Ints | None = None) -> None:
        """Record `values` `[N]` with the edges of their frequencies, `[contexts, K + 1]`."""
        place = values if contexts is None else contexts * edges.shape[1] + values
        flat = edges.reshape(-1)
        self._record(flat[place + 1] - flat[place], flat[place])

    def mask(self, is_one: np.ndarray[Any, np.dtype[np.bool_]], columns: int) -> None:
        """Record `is_one` `[N]`, of a matrix with `columns` a row."""
        self.model.begin(columns)
        chances = np.empty(len(is_one), dtype=np.int64)
        for start in range(0, len(is_one), self.lanes):
            bits = is_one[start : start + self.lanes]
            column, context, chances[start : start + self.lanes] = self.model.chances(len(bits))
            self.model.learn(column, context, bits)
        self._record(np.where(is_one, chances, unpack.ONE - chances), np.where(is_one, 0, chances))

    def _record(self, frequency: Ints, bottom: Ints) -> None:
        if np.any(frequency < 1):
            raise ValueError("a symbol that has no frequency was to be coded")
        self._frequencies.append(frequency.astype(np.uint16))
        self._bottoms.append(bottom.astype(np.uint16))

    def finish(self) -> tuple[bytes, bytes]:
        """The lanes' states (4 bytes each) and the words (2 bytes each)."""
        state = np.full(self.lanes, unpack.LOW, dtype=np.int64)
        words: list[Ints] = []
        for frequencies, bottoms in zip(reversed(self._frequencies), reversed(self._bottoms), strict=True):
            last = (len(frequencies) - 1) // self.lanes * self.lanes
            for start in range(last, -1, -self.lanes):
                frequency = frequencies[start : start + self.lanes].astype(np.int64)
                lanes = state[: len(frequency)]
                full = np.flatnonzero(lanes >= frequency << (32 - unpack.PROBABILITY_BITS))
                words.append(lanes[full] & 0xFFFF)
                lanes[full] >>= 16
                lanes[:] = (lanes // frequency << unpack.PROBABILITY_BITS) + lanes % frequency
                lanes += bottoms[start : start + self.lanes]
        words.reverse()
        stream = np.concatenate(words) if words else np.zeros(0, dtype=np.int64)
        return state.astype("<u4").tobytes(), stream.astype("<u2").tobytes()
