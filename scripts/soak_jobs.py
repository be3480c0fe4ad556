"""The jobs of the soak: small models whose answers are known, and what is checked of their results at the end."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekit.artifact import Artifact, Format, Passport, Scheme, TensorSpec
from edgekit.benchmarks.inputs import InputSet, read_outputs
from edgekit.benchmarks.values import Plan
from edgekit.errors import EdgekitError
from edgekit.runtimes.catalog import LITERT, RuntimeSpec
from edgekit.schema import sha256_of
from edgekit.store import ResultStore

WIDTH = 16
INPUTS = 2000
PADDING_BYTES = 150_000
"""So that a push takes long enough to be cut in the middle."""

RUNTIME = RuntimeSpec(
    name="soak",
    formats=(Format.TFLITE,),
    imports=(),
    wheels=tuple(wheel for wheel in LITERT.wheels if wheel.name == "numpy"),
    check="import numpy",
    extra="none",
    backend_file=Path(__file__).with_name("soak_backend.py"),
)
PLAN = Plan(
    cold_starts=1,
    warmup_min_runs=2,
    warmup_max_seconds=0.1,
    min_samples=20,
    min_seconds=0.0,
    max_seconds=5.0,
    memory=False,
    accuracy=True,
    timeout_seconds=60.0,
)


def inputs() -> InputSet:
    """What every job is fed with, `[2000, 16] float32`."""
    return InputSet(arrays=(np.random.default_rng(1).standard_normal((INPUTS, WIDTH)).astype(np.float32),))


def weights(seed: int, job: int) -> np.ndarray:
    """The model of job number `job`, `[16, 16] float32`."""
    return np.random.default_rng((seed, job)).standard_normal((WIDTH, WIDTH)).astype(np.float32)


def artifact(folder: Path, seed: int, job: int, ledger: str) -> Artifact:
    """The model file of job number `job`, made anew with the same content each time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{job}.tflite"
    padding = np.random.default_rng((seed, job, 1)).bytes(PADDING_BYTES // 2).hex()
    path.write_text(json.dumps({"weights": weights(seed, job).tolist(), "ledger": ledger, "padding": padding}))
    shape = (1, WIDTH)
    return Artifact(
        path=path,
        passport=Passport(
            name=f"soak-{job}",
            format=Format.TFLITE,
            scheme=Scheme.FP32,
            file=path.name,
            sha256=sha256_of(path),
            size_bytes=path.stat().st_size,
            inputs=(TensorSpec(name="x", shape=shape, dtype="float32"),),
            outputs=(TensorSpec(name="y", shape=shape, dtype="float32"),),
            ops=(),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What went wrong, each a count of jobs, attempts or leases; all zero is what is promised."""

    jobs: int
    lost: int = 0
    """Never told done, or told done and not in the store."""
    duplicated: int = 0
    """With more than one attempt that ended well."""
    corrupt: int = 0
    """With other outputs than the model has."""
    run_twice: int = 0
    """Starts of an attempt that more than one runner process carried out."""
    unrecorded: int = 0
    """Attempts that were begun and have no result."""
    late: int = 0
    leases: int = 0
    processes: int = 0
    mounts: int = 0
    crashes: int = 0
    """Worker processes that ended by themselves with an error."""

    @property
    def problems(self) -> dict[str, int]:
        names = ("lost", "duplicated", "corrupt", "run_twice", "unrecorded", "leases", "processes", "mounts", "crashes")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def with_left(self, *, processes: int, mounts: int, crashes: int) -> Verdict:
        """The same with what was found outside the store."""
        return replace(self, processes=processes, mounts=mounts, crashes=crashes)


def judge(store: ResultStore, seed: int, jobs: int, done: Mapping[int, str], ledger: Iterable[str]) -> Verdict:
    """The store and the devices' ledgers against what is known. `done` has the key of each job that was told done."""
    lost = duplicated = corrupt = unrecorded = late = 0
    passport = None
    for job in range(jobs):
        key = done.get(job)
        run = store.selected(key) if key is not None else None
        if key is None or run is None:
            lost += 1
            continue
        duplicated += sum(attempt.status == "ok" for attempt in store.attempts(key)) > 1
        unrecorded += store.pending(key) is not None
        late += len(store.late(key))
        if passport is None:
            passport = artifact(store.outputs_path("x").parent.parent / "truth", seed, job, "").passport
        corrupt += not _is_right(store, run.outputs_sha256, passport, weights(seed, job))
    return Verdict(
        jobs=jobs,
        lost=lost,
        duplicated=duplicated,
        corrupt=corrupt,
        run_twice=_run_twice(ledger),
        unrecorded=unrecorded,
        late=late,
        leases=len(store.leases.held()),
    )


def _is_right(store: ResultStore, sha256: str | None, passport: Passport, expected: np.ndarray) -> bool:
    if sha256 is None:
        return False
    try:
        (outputs,) = read_outputs(store.outputs_path(sha256), passport, INPUTS, device="soak")
    except (EdgekitError, OSError):
        return False
    # Sixteen products, each below 32, summed in float32: at most sixteen roundings.
    return bool(np.allclose(outputs, inputs().arrays[0] @ expected, rtol=0, atol=16 * 32 * 2**-24))


def _run_twice(ledger: Iterable[str]) -> int:
    """A start's folder names attempt and restart; it was carried out by one runner process, or run twice."""
    runners: defaultdict[str, set[str]] = defaultdict(set)
    for line in ledger:
        name, _, runner = line.strip().partition(" ")
        runners[name].add(runner)
    return sum(len(found) > 1 for found in runners.values())


def read_events(files: Iterable[Path]) -> tuple[dict[int, str], Counter[str]]:
    """The keys of the jobs that workers told done, and how often each other thing happened to them."""
    done: dict[int, str] = {}
    said: Counter[str] = Counter()
    for path in files:
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                event = json.loads(line)
            except ValueError:  # the worker was killed while it wrote
                said["half a line"] += 1
                continue
            if "done" in event:
                done[event["done"]] = event["key"]
            else:
                said[event["error"]] += 1
    return done, said
