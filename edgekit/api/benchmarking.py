"""`benchmark`: artifacts measured on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.api.files import open_artifact
from edgekit.artifact import Artifact
from edgekit.benchmarks.failures import failure_of
from edgekit.benchmarks.values import DeviceInfo, Plan, Run
from edgekit.errors import EdgekitError
from edgekit.report.model import LatencySummary

if TYPE_CHECKING:
    from edgekit.benchmarks.inputs import InputSet
    from edgekit.benchmarks.session import Session

__all__ = ["BenchmarkResult", "benchmark", "benchmark_all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """One artifact measured on one device."""

    artifact: Artifact
    device: DeviceInfo
    run: Run
    """The raw record: every sample in ns."""
    latency: LatencySummary | None
    cold_load_ns: int | None
    """Median over fresh processes of import + load + first inference."""
    harness_ns: int | None
    """Wall time of the whole benchmark less the time inside inferences; None when the result was stored, or
    the job was another call's that had been broken off."""

    def as_error(self) -> EdgekitError:
        """The failure of a run that did not end well."""
        error = failure_of(self.run, device=self.device.spec, what=self.artifact.passport.name)
        return error or EdgekitError(f"{self.artifact.passport.name}: a run that ended well has no failure")


def benchmark(
    artifact: Artifact | Path | str,
    device: str = "local",
    *,
    plan: Plan | None = None,
    workspace: Path | str = "runs",
    fresh: bool = False,
) -> BenchmarkResult:
    """`artifact` measured on `device` (`local`, `adb:SERIAL`, `board:amd64`); accuracy is not measured here.

    A result that is stored for the same artifact, plan and device is returned unless `fresh`.
    Raises ArtifactError, DeviceError and its kin; a model that crashes gives a result whose run says so.
    """
    plan = (plan or Plan()).model_copy(update={"accuracy": False})
    item = artifact if isinstance(artifact, Artifact) else Path(artifact)
    return benchmark_all([item], device, plan=plan, workspace=Path(workspace), fresh=fresh)[0]


def benchmark_all(
    artifacts: Sequence[Artifact | Path],
    device: str,
    *,
    plan: Plan,
    workload: str | None = None,
    workspace: Path = Path("runs"),
    fresh: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> tuple[BenchmarkResult, ...]:
    """Several artifacts on one device, which is opened once; see `benchmark`."""
    from edgekit.benchmarks.session import measuring_on
    from edgekit.disk import disk_errors_explained
    from edgekit.store import ResultStore

    opened = [item if isinstance(item, Artifact) else open_artifact(item) for item in artifacts]
    inputs = [_inputs_for(artifact, workload) for artifact in opened]
    tell = on_progress or (lambda _text: None)
    results = []
    with disk_errors_explained(workspace), ResultStore(workspace) as store, measuring_on(device, store) as session:
        for artifact, values in zip(opened, inputs, strict=True):
            tell(f"{artifact.passport.name} on {session.info.spec}")
            results.append(_measure(session, artifact, values, plan=plan, workspace=workspace, fresh=fresh))
    return tuple(results)


def _inputs_for(artifact: Artifact, workload: str | None) -> InputSet:
    from edgekit.benchmarks.inputs import InputSet, random_inputs

    if workload is None:
        return random_inputs(artifact.passport, seed=0)
    from edgekit.pipeline.measurement import layouts_of
    from edgekit.pipeline.samples import all_inputs
    from edgekit.workload import load_workload

    loaded = load_workload(workload).workload
    return InputSet(arrays=all_inputs(loaded.evaluation), layouts=layouts_of(loaded))


def _measure(
    session: Session, artifact: Artifact, inputs: InputSet, *, plan: Plan, workspace: Path, fresh: bool
) -> BenchmarkResult:
    import time

    from edgekit.benchmarks.harness import measure
    from edgekit.benchmarks.stats import cold_load_ns, inferring_ns, summarize

    began = time.monotonic_ns()
    work_dir = workspace / "inputs"
    run = measure(
        session.device, session.info, artifact, inputs, plan, store=session.store, work_dir=work_dir, fresh=fresh
    )
    wall = time.monotonic_ns() - began
    was_stored = run.host_ns.get("total", 0) > wall or not run.host_ns
    inside = inferring_ns(run)
    return BenchmarkResult(
        artifact=artifact,
        device=session.info,
        run=run,
        latency=summarize(run.latency_ns) if run.latency_ns else None,
        cold_load_ns=cold_load_ns(run),
        harness_ns=None if was_stored or inside > wall else wall - inside,
    )
