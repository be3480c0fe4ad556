"""k-means on one axis: the codebook of a layer's weights.

Lloyd's algorithm over sorted values, where a cluster is a stretch: one iteration is k binary searches and k differences
of running sums, whatever the size of the layer. Deterministic to the bit, which scikit-learn's threaded sums are not.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

__all__ = ["codebook_of"]

Values = np.ndarray[Any, np.dtype[np.float64]]
MAX_ITERATIONS = 300


def codebook_of(
    values: np.ndarray[Any, Any], count: int, *, init: Literal["linear", "density", "random"] = "linear", seed: int = 0
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.int64]]]:
    """At most `count` centroids (ascending, `float32 [K]`) and each value's nearest (`int64`, shaped like `values`).

    First centroids as in Han et al. 2016, section 3.2: `linear` between the extremes, `density` at quantiles, `random`
    values drawn by `seed` (Forgy). Values that are fewer than `count` different ones are their own codebook.
    Raises ValueError when a value is not finite.
    """
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(flat).all():
        raise ValueError("some weights are not finite")
    ordered = np.sort(flat)
    different = ordered[np.concatenate(([True], np.diff(ordered) > 0))]
    centroids = different if len(different) <= count else _lloyd(ordered, _first(different, ordered, count, init, seed))
    book = np.unique(centroids.astype(np.float32))
    middles = (book[1:].astype(np.float64) + book[:-1]) / 2
    return book, np.searchsorted(middles, flat, side="left").reshape(np.shape(values))


def _first(different: Values, ordered: Values, count: int, init: str, seed: int) -> Values:
    if init == "linear":
        return np.linspace(ordered[0], ordered[-1], count)
    if init == "density":
        return np.unique(np.quantile(ordered, (np.arange(count) + 0.5) / count))
    return np.sort(np.random.default_rng(seed).choice(different, count, replace=False))


def _lloyd(ordered: Values, centroids: Values) -> Values:
    """Centroids that no longer move; those that lost all their values are dropped."""
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    for _ in range(MAX_ITERATIONS):
        middles = (centroids[1:] + centroids[:-1]) / 2
        edges = np.concatenate(([0], np.searchsorted(ordered, middles, side="left"), [len(ordered)]))
        counts = np.diff(edges)
        moved = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centroids)
        moved = np.sort(moved)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids[counts > 0]
