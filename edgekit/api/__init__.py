"""The façade: what the command line does, as functions.

>>> artifacts = edgekit.convert(model, (torch.zeros(1, 3, 32, 32),), targets=["tflite", "onnx"],
...                             scheme="static_w8a8", calibration=[(x,) for x in batches])
>>> result = edgekit.benchmark(artifacts[0], "local")
>>> result.latency.p50_ns
"""

from __future__ import annotations

from edgekit.api.benchmarking import BenchmarkResult, benchmark, benchmark_all
from edgekit.api.converting import check, check_workload, convert, convert_workload, quantization_options
from edgekit.api.files import inspect, open_artifact
from edgekit.api.running import run

__all__ = [
    "BenchmarkResult",
    "benchmark",
    "benchmark_all",
    "check",
    "check_workload",
    "convert",
    "convert_workload",
    "inspect",
    "open_artifact",
    "quantization_options",
    "run",
]
