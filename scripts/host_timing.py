"""Latency of several artifacts on this host, taken in turns in one process, so that what else the machine does hits
all of them alike. A figure of this processor, not of a phone's.

    python scripts/host_timing.py SAMPLES.npz ARTIFACT… > result.json

An artifact is a folder with a passport, or any model file. `SAMPLES.npz` holds one sample's inputs as `0`, `1`, …;
the answer maps each artifact to its raw times in ns.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS, PER_ROUND, WARM_UP, SEED = 40, 5, 3, 0
MAX_SECONDS = 60.0


def measure(artifacts: Sequence[Path], sample: Sequence[np.ndarray]) -> dict[str, list[int]]:
    """Raw times in ns by artifact, in a fresh process with one thread, pinned where the system lets one.

    Raises RuntimeError with the child's last lines when it ends badly.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "sample.npz"
        np.savez(inputs, **{str(index): array for index, array in enumerate(sample)})
        ended = subprocess.run(
            [sys.executable, __file__, str(inputs), *map(str, artifacts)],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    if ended.returncode:
        raise RuntimeError(f"timing ended with {ended.returncode}: {ended.stderr[-1500:]}")
    found: dict[str, list[int]] = json.loads(ended.stdout.splitlines()[-1])
    return found


def summary(times: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """Median and least of each, in ms."""
    return {
        name: {"median_ms": statistics.median(raw) / 1e6, "min_ms": min(raw) / 1e6, "samples": len(raw)}
        for name, raw in times.items()
    }


def disagreement(first: Sequence[int], second: Sequence[int]) -> tuple[float, float, bool]:
    """(ratio of medians, ratio of minima, do they differ by more than 10 %): then the machine was too busy to tell."""
    medians = statistics.median(first) / statistics.median(second)
    least = min(first) / min(second)
    return medians, least, abs(medians / least - 1) > 0.10


def _loaded(path: Path, sample: Sequence[np.ndarray]) -> tuple[Any, list[np.ndarray]]:
    from edgekit.artifact import Artifact
    from edgekit.benchmarks.inputs import quantize
    from edgekit.converters.passports import inspect_file
    from edgekit.runtimes.catalog import runtime_for
    from edgekit.runtimes.runner.backends import make_backend

    if path.is_dir():
        artifact = Artifact.open(path)
        path, passport = artifact.path, artifact.passport
    else:
        passport = inspect_file(path)
    backend = make_backend(runtime_for(passport.format).name, None)
    backend.import_runtime()
    backend.load(str(path), 1, "default")
    taken = []
    for array, spec in zip(sample, passport.inputs, strict=True):
        is_real = array.dtype.kind == "f" and spec.quantization is not None
        taken.append(quantize(array, spec.quantization, spec.dtype) if is_real else array.astype(spec.dtype))
    return backend, taken


def main(arguments: Sequence[str]) -> None:
    """Time the artifacts and print one line of JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with np.load(arguments[0]) as loaded:
        sample = [loaded[str(index)] for index in range(len(loaded.files))]
    ready = {folder: _loaded(Path(folder), sample) for folder in arguments[1:]}
    times: dict[str, list[int]] = {folder: [] for folder in ready}
    for backend, inputs in ready.values():
        for _ in range(WARM_UP):
            backend.invoke(inputs)
    rng, began = random.Random(SEED), time.monotonic()  # noqa: S311 - an order, not a secret
    for _ in range(ROUNDS):
        for folder in rng.sample(list(ready), len(ready)):
            backend, inputs = ready[folder]
            backend.invoke(inputs)
            for _ in range(PER_ROUND):
                started = time.perf_counter_ns()
                backend.invoke(inputs)
                times[folder].append(time.perf_counter_ns() - started)
        if time.monotonic() - began > MAX_SECONDS:
            break
    print(json.dumps(times))


if __name__ == "__main__":
    main(sys.argv[1:])
