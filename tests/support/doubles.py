"""Artifacts, inputs and the runtime of `double_backend`, for tests of the runner and the harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact, Format, Passport, Scheme, TensorSpec
from edgekit.benchmarks.inputs import InputSet
from edgekit.benchmarks.values import Plan
from edgekit.runtimes.catalog import RuntimeSpec
from edgekit.schema import sha256_of

BACKEND = Path(__file__).parent / "double_backend.py"
DOUBLE = RuntimeSpec(
    name="double",
    formats=(Format.TFLITE,),
    imports=(),
    wheels=(),
    check="pass",
    extra="none",
    backend_file=BACKEND,
)
QUICK = Plan(cold_starts=2, warmup_min_runs=4, warmup_max_seconds=1, min_samples=20, min_seconds=0.01, max_seconds=5)
"""As little measuring as exercises every phase."""


def weights() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((4, 3)).astype(np.float32)


def inputs(count: int = 10) -> InputSet:
    return InputSet(arrays=(np.random.default_rng(8).standard_normal((count, 4)).astype(np.float32),))


def artifact(folder: Path, **behaviour: Any) -> Artifact:
    """A double's model file with its passport; `log` is `folder/loads`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.tflite"
    path.write_text(json.dumps({"weights": weights().tolist(), "log": str(folder / "loads"), **behaviour}))
    passport = Passport(
        name="double",
        format=Format.TFLITE,
        scheme=Scheme.FP32,
        file=path.name,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        inputs=(TensorSpec(name="x", shape=(1, 4), dtype="float32"),),
        outputs=(TensorSpec(name="y", shape=(1, 3), dtype="float32"),),
        ops=(),
    )
    return Artifact(path=path, passport=passport)


def loads(folder: Path) -> list[str]:
    """The pid of each process that loaded the model, in order."""
    log = folder / "loads"
    return log.read_text().split() if log.exists() else []
