"""What a pack of 10 MB comes to, by what its weights are like, and how long the device's unpacker takes for it.

The files are made up (seeded), each of one kind of weights alone, so that what a coding brings can be told; the
LeNets are real networks.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.packing import pack_bytes
from edgekit.runtimes.device_scripts.unpack import expand

if TYPE_CHECKING:
    from bench_compression import Settings

TITLE = "Packs by kind of weights"
Raw = dict[str, Any]
LAYERS, WEIGHTS = 5, 500_000
NAME = "weights.safetensors"


def file_of(layer: Callable[[int], np.ndarray]) -> bytes:
    """A .safetensors file of five layers, each 500 rows."""
    from safetensors.numpy import save

    return save({f"l{i}": layer(i).reshape(500, -1) for i in range(LAYERS)})


def shared(seed: int, *, density: float, scale: float = 1.0) -> np.ndarray:
    """float32 of 32 values, some zero."""
    generator = np.random.default_rng(seed)
    book = generator.standard_normal(32).astype(np.float32) * np.float32(scale)
    weights = book[generator.integers(0, 32, WEIGHTS)]
    weights[generator.random(WEIGHTS) > density] = 0
    return weights


def normal(seed: int, *, density: float = 1.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal(WEIGHTS).astype(np.float32) * np.float32(0.05)
    weights[generator.random(WEIGHTS) > density] = 0
    return weights


def int8(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.clip(np.round(generator.standard_normal(4 * WEIGHTS) * 25), -127, 127).astype(np.int8)


def nudged(seed: int) -> np.ndarray:
    """int8, one weight in twenty one step higher."""
    generator = np.random.default_rng(1000 + seed)
    return int8(seed) + (generator.random(4 * WEIGHTS) < 0.05).astype(np.int8)


def trained_on(seed: int) -> np.ndarray:
    """float32 that moved by a five-hundredth of their spread."""
    generator = np.random.default_rng(1000 + seed)
    return normal(seed) + generator.standard_normal(WEIGHTS).astype(np.float32) * np.float32(1e-4)


SPARSE_SHARED = functools.partial(shared, density=0.1)
KINDS: dict[str, tuple[Callable[[int], np.ndarray], Callable[[int], np.ndarray] | None]] = {
    "float32, 90 % zeros, 32 shared values": (SPARSE_SHARED, None),
    "float32, 32 shared values, no zeros": (functools.partial(shared, density=1.0), None),
    "float32, 90 % zeros, the rest all different": (functools.partial(normal, density=0.1), None),
    "float32, normally distributed": (normal, None),
    "int8, normally distributed": (int8, None),
    "difference: the first, its centroids moved": (functools.partial(shared, density=0.1, scale=1.01), SPARSE_SHARED),
    "difference: int8, one weight in twenty changed by one": (nudged, int8),
    "difference: float32, trained on a little": (trained_on, normal),
}


def measure(kind: str) -> Raw:
    """Sizes, and seconds of packing and expanding."""
    new, old = KINDS[kind]
    content = file_of(new)
    bases = {NAME: file_of(old)} if old is not None else {}
    began = time.perf_counter()
    packed = pack_bytes({NAME: content}, bases)
    middle = time.perf_counter()
    files = expand(packed, list(bases.values()))
    ended = time.perf_counter()
    if files != {NAME: content}:
        raise RuntimeError(f"{kind}: other bytes came back")
    return {"bytes": len(content), "pack": len(packed), "pack_s": middle - began, "expand_s": ended - middle}


def cells(settings: Settings) -> Iterator[tuple[str, Callable[[], Raw]]]:
    """One a kind."""
    for kind in KINDS:
        yield kind, functools.partial(measure, kind)


def table(cells: Mapping[str, Raw]) -> list[str]:
    """Size and time a kind."""
    lines = [
        "| weights, 10 MB (seeded, made up) | pack | times smaller | packed in | expanded in |",
        "|---|---|---|---|---|",
    ]
    for kind, cell in cells.items():
        lines.append(
            f"| {kind} | {cell['pack']:,} bytes | {cell['bytes'] / cell['pack']:.1f} | {cell['pack_s']:.1f} s | "
            f"{cell['expand_s']:.1f} s |"
        )
    worst = max(cell["expand_s"] for cell in cells.values())
    verdict = "reached" if worst < 10 else "**missed**"
    return [*lines, f"\nGoal: 10 MB expanded in seconds with numpy alone. Slowest: {worst:.1f} s ({verdict})."]
