"""The façade as a user types it; checked by mypy --strict, never run."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import torch

import edgekit
from edgekit.api import BenchmarkResult
from edgekit.pipeline.run import RunOutcome


def convert_and_measure(model: torch.nn.Module) -> int | None:
    artifacts = edgekit.convert(
        model, torch.zeros(1, 3, 32, 32), targets=["tflite"], scheme="static_w8a8", calibration=[(torch.zeros(1),)]
    )
    assert_type(artifacts, tuple[edgekit.Artifact, ...])
    result = edgekit.benchmark(artifacts[0], "local", plan=edgekit.Plan(threads=2))
    assert_type(result, BenchmarkResult)
    return result.latency.p50_ns if result.latency else None


def run_a_recipe(path: Path) -> edgekit.Report:
    outcome = edgekit.run(path)
    assert_type(outcome, RunOutcome)
    return outcome.report


def workload() -> edgekit.Workload:
    data = torch.utils.data.TensorDataset(torch.zeros(4, 8), torch.zeros(4, dtype=torch.long))
    return edgekit.Workload(
        name="w", model=lambda: torch.nn.Linear(8, 2), example_inputs=(torch.zeros(1, 8),), evaluation=data
    )
