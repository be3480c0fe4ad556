"""edgekit: from a PyTorch model to measured numbers on the phone or board it will ship on.

    >>> import edgekit
    >>> artifacts = edgekit.convert(model, (example,), targets=["tflite"], scheme="static_w8a8", calibration=batches)
    >>> run = edgekit.benchmark(artifacts[0], "local")

Everything here is loaded on first use: `import edgekit` imports no toolkit.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.api import benchmark, check, convert, inspect, run
    from edgekit.artifact import Artifact, Format, Passport, Scheme
    from edgekit.benchmarks.values import Gates, Plan, Run
    from edgekit.diagnosis.explain import WhyOptions, why
    from edgekit.errors import EdgekitError
    from edgekit.recipe import Recipe, load_recipe
    from edgekit.report.model import Report
    from edgekit.tuning.ladder import tune
    from edgekit.tuning.options import TuneOptions
    from edgekit.workload import Task, Workload, load_workload

__version__ = "0.1.0"

_HOME = {
    "Artifact": "edgekit.artifact",
    "EdgekitError": "edgekit.errors",
    "Format": "edgekit.artifact",
    "Gates": "edgekit.benchmarks.values",
    "Passport": "edgekit.artifact",
    "Plan": "edgekit.benchmarks.values",
    "Recipe": "edgekit.recipe",
    "Report": "edgekit.report.model",
    "Run": "edgekit.benchmarks.values",
    "Scheme": "edgekit.artifact",
    "Task": "edgekit.workload",
    "TuneOptions": "edgekit.tuning.options",
    "WhyOptions": "edgekit.diagnosis.explain",
    "Workload": "edgekit.workload",
    "benchmark": "edgekit.api",
    "check": "edgekit.api",
    "convert": "edgekit.api",
    "inspect": "edgekit.api",
    "load_recipe": "edgekit.recipe",
    "load_workload": "edgekit.workload",
    "run": "edgekit.api",
    "tune": "edgekit.tuning.ladder",
    "why": "edgekit.diagnosis.explain",
}

__all__ = [
    "Artifact",
    "EdgekitError",
    "Format",
    "Gates",
    "Passport",
    "Plan",
    "Recipe",
    "Report",
    "Run",
    "Scheme",
    "Task",
    "TuneOptions",
    "WhyOptions",
    "Workload",
    "__version__",
    "benchmark",
    "check",
    "convert",
    "inspect",
    "load_recipe",
    "load_workload",
    "run",
    "tune",
    "why",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'edgekit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
