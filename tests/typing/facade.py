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


def check_first(model: torch.nn.Module) -> list[str]:
    problems = edgekit.check(model, torch.zeros(1, 3, 32, 32), targets=["executorch"], scheme="static_w8a8")
    return [f"{problem.module} {problem.source}: {problem.message}" for problem in problems]


def convert_for_a_camera(model: torch.nn.Module) -> tuple[edgekit.Artifact, ...]:
    return edgekit.convert(
        model,
        torch.zeros(1, 3, 32, 32),
        scheme="static_w8a8",
        calibration=[(torch.zeros(1, 3, 32, 32),)],
        ranges="mse",
        rules={"features.0": "float"},
        input_layout="nhwc",
        dynamic=["0:0=1..8"],
        memory_bytes=2_000_000_000,
    )


def run_a_recipe(path: Path) -> edgekit.Report:
    outcome = edgekit.run(path)
    assert_type(outcome, RunOutcome)
    return outcome.report


def workload() -> edgekit.Workload:
    data = torch.utils.data.TensorDataset(torch.zeros(4, 8), torch.zeros(4, dtype=torch.long))
    return edgekit.Workload(
        name="w", model=lambda: torch.nn.Linear(8, 2), example_inputs=(torch.zeros(1, 8),), evaluation=data
    )
