"""`measure_latency_table`: the layers of a model timed on a device, for pruning to a latency target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.compress.latency import LatencyTable, Timer

__all__ = ["device_timer", "measure_latency_table"]


def measure_latency_table(
    model: nn.Module, example_inputs: Sequence[Tensor], device: str = "local", *, workspace: Path | str = "runs"
) -> LatencyTable:
    """The table of `model`'s layers, each timed as an ONNX file on `device` (`local`, `adb:SERIAL`, `board:amd64`).

    A layer takes about a second, a ResNet-18 has some 200 points; what `workspace` holds of the same files and device
    is not timed again. Save it, and name the file in `prune: {latency_ratio: …, latency_table: …}`. Raises DeviceError
    and its kin, MissingDependencyError without onnx.
    """
    from edgekit.compress.latency import LatencyTable

    timer = device_timer(device, workspace=workspace)
    return LatencyTable.measure(model, example_inputs, timer=timer, runtime=f"onnxruntime on {device}, 1 thread")


def device_timer(device: str, *, workspace: Path | str = "runs") -> Timer:
    """A `timer` for `LatencyTable.measure`: the least of at least 15 runs of each file on `device`, in ns."""
    from edgekit.api.benchmarking import benchmark_all
    from edgekit.benchmarks.values import Plan

    plan = Plan(
        cold_starts=0, warmup_min_runs=3, warmup_max_seconds=0.2, min_samples=15, min_seconds=0.0, max_seconds=5.0,
        memory=False, accuracy=False,
    )  # fmt: skip

    def timed(files: Sequence[Path]) -> list[float]:
        results = benchmark_all(files, device, plan=plan, workspace=Path(workspace))
        for result in results:
            if not result.run.latency_ns:
                raise result.as_error()
        return [float(min(result.run.latency_ns)) for result in results]

    return timed
