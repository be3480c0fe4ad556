"""The job as read from `job.json`; see the package docstring for the format.

Named tuples: `dataclasses` would import `inspect`, a good part of the time each process of a job takes to start.
"""

import json
import os
from typing import Any, NamedTuple, Optional

from . import SCHEMA_VERSION


class Plan(NamedTuple):
    """How to measure; the fields are those of `edgekit.benchmarks.values.Plan`."""

    threads: int
    delegate: str
    cores: Optional[list[int]]
    cold_starts: int
    warmup_min_runs: int
    warmup_max_seconds: float
    min_samples: int
    min_seconds: float
    max_seconds: float
    memory: bool
    accuracy: bool
    timeout_seconds: float
    allow_fallback: bool
    profile: bool
    energy: bool
    max_temperature_c: Optional[float]
    min_battery_percent: Optional[int]
    allow_charging: bool
    max_load: Optional[float]
    gate_wait_seconds: float


class Job(NamedTuple):
    """One job: what to run, on what, how."""

    directory: str
    job: str
    runtime: str
    backend_file: Optional[str]
    model: str
    inputs: tuple[tuple[str, str], ...]
    """(name, path of the .npy) per model input."""
    outputs: tuple[str, ...]
    batch: int
    plan: Plan

    def path(self, name: str) -> str:
        """A file in the job's folder."""
        return os.path.join(self.directory, name)


def read_job(directory: str) -> Job:
    """The job in `directory`; raises ValueError for another schema version, KeyError and TypeError for a bad file."""
    with open(os.path.join(directory, "job.json"), encoding="utf-8") as f:
        value: dict[str, Any] = json.load(f)
    if value["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"job.json has schema_version {value['schema_version']}; this runner reads {SCHEMA_VERSION}")
    return Job(
        directory=os.path.abspath(directory),
        job=value["job"],
        runtime=value["runtime"],
        backend_file=value["backend_file"],
        model=value["model"],
        inputs=tuple((i["name"], i["path"]) for i in value["inputs"]),
        outputs=tuple(value["outputs"]),
        batch=value["batch"],
        plan=Plan(**value["plan"]),
    )
