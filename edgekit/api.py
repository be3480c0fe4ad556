"""The façade: what the command line does, as functions.

>>> artifacts = edgekit.convert(model, (torch.zeros(1, 3, 32, 32),), targets=["tflite", "onnx"],
...                             scheme="static_w8a8", calibration=[(x,) for x in batches])
>>> result = edgekit.benchmark(artifacts[0], "local")
>>> result.latency.p50_ns
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import PASSPORT_NAME, Artifact, Format, Passport, Scheme
from edgekit.benchmarks.values import DeviceInfo, Plan, Run
from edgekit.errors import EdgekitError, ModelCrashError, UserError
from edgekit.report.model import LatencySummary
from edgekit.schema import near_miss

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from edgekit.benchmarks.inputs import InputSet
    from edgekit.converters.conversion import ConversionOptions, ConversionOutcome, ConversionProgress
    from edgekit.pipeline.events import Observer
    from edgekit.pipeline.run import RunOutcome
    from edgekit.recipe import Recipe

__all__ = [
    "BenchmarkResult",
    "benchmark",
    "benchmark_all",
    "convert",
    "convert_workload",
    "inspect",
    "run",
]

Batch = Sequence["np.ndarray | Tensor"]


def run(
    recipe: Recipe | Path | str,
    *,
    workspace: Path | str = "runs",
    fresh: bool = False,
    observe: Observer | None = None,
) -> RunOutcome:
    """The outcome of running a recipe (a value, or the path of a YAML file): its report and where it lies.

    Raises RecipeError, WorkloadError and whatever stops the run as a whole; a conversion or device that
    failed is in the outcome's `error` and `report`.
    """
    from edgekit.pipeline.events import silent
    from edgekit.pipeline.run import RunOptions, run_recipe
    from edgekit.recipe import load_recipe

    base, command = Path(), "edgekit.run(recipe)"
    if not hasattr(recipe, "model_dump"):
        path = Path(str(recipe))
        base, command = path.resolve().parent, f"edgekit run {path}"
        recipe = load_recipe(path)
    options = RunOptions(
        workspace=Path(workspace), base=base, is_fresh=fresh, observe=observe or silent, command=command
    )
    return run_recipe(recipe, options)  # type: ignore[arg-type]


def convert(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...] | Tensor,
    *,
    targets: Sequence[Format | str] = ("tflite", "executorch", "onnx"),
    scheme: Scheme | str = "fp32",
    calibration: Sequence[Batch] = (),
    output_dir: Path | str = "artifacts",
    name: str = "model",
    io_dtype: str = "int8",
    jobs: int = 1,
    timeout_seconds: float = 900.0,
    allow_lossy: bool = False,
) -> tuple[Artifact, ...]:
    """`model` as one artifact per target, each checked against PyTorch in its real runtime.

    `example_inputs` fixes the shapes, batch included. `calibration` holds batches shaped like them (a
    sequence of tuples of arrays or tensors); static schemes need it. The user's module is not changed.
    Raises ExportError, UnsupportedError, ConversionError; the artifacts that were finished stay on disk.
    """
    from edgekit.converters.base import QuantizationOptions
    from edgekit.converters.conversion import ConversionOptions, convert_model

    outcome = convert_model(
        model,
        example_inputs if isinstance(example_inputs, tuple) else (example_inputs,),
        name=name,
        targets=_members(Format, targets, "target"),
        schemes=_members(Scheme, [scheme], "scheme"),
        calibration=_arrays(calibration),
        output_dir=Path(output_dir),
        options=ConversionOptions(
            quantization=QuantizationOptions(io_dtype=io_dtype),
            jobs=jobs,
            timeout_seconds=timeout_seconds,
            allow_lossy=allow_lossy,
        ),
    )
    outcome.raise_failures()
    return outcome.artifacts


def convert_workload(
    workload: str,
    *,
    params: Mapping[str, Any],
    targets: Sequence[str],
    schemes: Sequence[str],
    output_dir: Path,
    options: ConversionOptions,
    calibration: int = 200,
    on_progress: Callable[[ConversionProgress], None] | None = None,
) -> ConversionOutcome:
    """The artifacts of a workload's model as it is, and what failed; see `convert`."""
    from edgekit.converters.conversion import convert_model
    from edgekit.pipeline.samples import calibration_batches, held_out_batches
    from edgekit.workload import load_workload

    formats, wanted = _members(Format, targets, "target"), _members(Scheme, schemes, "scheme")
    loaded = load_workload(workload, params).workload
    is_float = all(scheme in (Scheme.FP32, Scheme.FP16) for scheme in wanted)
    return convert_model(
        loaded.build_model(),
        loaded.example_inputs,
        name="model",
        targets=formats,
        schemes=wanted,
        calibration=() if is_float else calibration_batches(loaded, calibration, seed=0),
        verification=held_out_batches(loaded, 100, seed=0),
        output_dir=output_dir,
        options=dataclasses.replace(options, input_layouts=loaded.input_layouts),
        on_progress=on_progress,
    )


def _members(kind: type[Any], names: Sequence[Any], what: str) -> list[Any]:
    known = [member.value for member in kind]
    for name in names:
        if name not in known:
            raise UserError(f"unknown {what} '{name}'; {near_miss(str(name), known)}")
    return [kind(name) for name in names]


def _arrays(batches: Sequence[Batch]) -> tuple[tuple[np.ndarray, ...], ...]:
    import numpy as np

    return tuple(
        tuple(np.asarray(value) for value in (batch if isinstance(batch, tuple | list) else (batch,)))
        for batch in batches
    )


def inspect(path: Path | str) -> Passport:
    """The passport of an artifact, or one read from a bare .tflite, .pte or .onnx file.

    Raises ArtifactError when the file is missing, corrupt, truncated or not the one its passport names.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or (folder / PASSPORT_NAME).is_file():
        return Artifact.open(path).passport
    return _bare_artifact(path).passport


def _bare_artifact(path: Path) -> Artifact:
    from edgekit.converters.passports import inspect_file

    Format.of(path)
    return Artifact(path=path, passport=inspect_file(path))


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
    """Wall time of the whole benchmark less the time inside inferences; None when the result was stored."""

    def as_error(self) -> EdgekitError:
        """The failure of a run that did not end well."""
        shown = f"{self.artifact.passport.name}: {self.run.status}: {self.run.error or 'no reason given'}"
        return ModelCrashError(shown, device=self.device.spec)


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
    from edgekit.benchmarks.devices.base import Deadline
    from edgekit.benchmarks.devices.registry import device_lock, open_device
    from edgekit.pipeline.workspace import disk_errors_explained
    from edgekit.store import ResultStore

    opened = [item if isinstance(item, Artifact) else open_artifact(item) for item in artifacts]
    inputs = [_inputs_for(artifact, workload) for artifact in opened]
    tell = on_progress or (lambda _text: None)
    results = []
    with disk_errors_explained(workspace), ResultStore(workspace) as store, open_device(device) as place:
        info = place.probe(Deadline.after(60))
        store.remember_device(info)
        with device_lock(info, Deadline.after(5)):
            for artifact, values in zip(opened, inputs, strict=True):
                tell(f"{artifact.passport.name} on {info.spec}")
                results.append(
                    _measure(place, info, artifact, values, plan=plan, store=store, workspace=workspace, fresh=fresh)
                )
    return tuple(results)


def open_artifact(path: Path) -> Artifact:
    """The artifact in a folder or beside a passport, or a bare model file with the passport read from it."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or not path.exists() or (folder / PASSPORT_NAME).is_file():
        return Artifact.open(path)
    return _bare_artifact(path)


def _inputs_for(artifact: Artifact, workload: str | None) -> InputSet:
    from edgekit.benchmarks.inputs import InputSet, random_inputs

    if workload is None:
        return random_inputs(artifact.passport, seed=0)
    from edgekit.pipeline.samples import all_inputs
    from edgekit.workload import load_workload

    return InputSet(arrays=all_inputs(load_workload(workload).workload.evaluation))


def _measure(
    place: Any,
    info: DeviceInfo,
    artifact: Artifact,
    inputs: InputSet,
    *,
    plan: Plan,
    store: Any,
    workspace: Path,
    fresh: bool,
) -> BenchmarkResult:
    import time

    from edgekit.benchmarks.harness import measure
    from edgekit.benchmarks.stats import cold_load_ns, summarize

    began = time.monotonic_ns()
    run = measure(place, info, artifact, inputs, plan, store=store, work_dir=workspace / "inputs", fresh=fresh)
    wall = time.monotonic_ns() - began
    was_stored = run.host_ns.get("total", 0) > wall or not run.host_ns
    inside = sum(run.latency_ns) + sum(run.warmup_ns)
    return BenchmarkResult(
        artifact=artifact,
        device=info,
        run=run,
        latency=summarize(run.latency_ns) if run.latency_ns else None,
        cold_load_ns=cold_load_ns(run),
        harness_ns=None if was_stored else wall - inside,
    )
