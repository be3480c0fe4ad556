"""The measuring stage: every artifact on every device, one device after the other.

Devices that share this host's processor must not be measured at the same time as anything else, so nothing
here runs in parallel. A device that fails does not stop the others; what it had given is kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact
from edgekit.benchmarks.values import DeviceInfo, Run
from edgekit.errors import Blame, DeviceError, EdgekitError, HostError, Interrupted, LeaseLost, UserError
from edgekit.pipeline.conversion import Converted
from edgekit.pipeline.events import StageEvent, StageStatus
from edgekit.recipe import DeviceEntry
from edgekit.report.model import SkippedDevice

if TYPE_CHECKING:
    from edgekit.benchmarks.inputs import InputSet
    from edgekit.benchmarks.session import Session
    from edgekit.pipeline.run import Context
    from edgekit.store import ResultStore
    from edgekit.workload import Workload

__all__ = ["Measured", "Measurement", "layouts_of", "measure_all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One artifact on one device: its run, or why there is none."""

    artifact: Artifact
    device: str
    run: Run | None
    error: EdgekitError | None = None
    was_stored: bool = False
    """True when nothing was measured now: the result was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All measurements of a run."""

    inputs: InputSet
    """The evaluation signals, whatever part of them a student reads."""
    devices: tuple[DeviceInfo, ...]
    skipped: tuple[SkippedDevice, ...]
    measurements: tuple[Measurement, ...]


def measure_all(context: Context, converted: Converted, store: ResultStore) -> Measured:
    """Measure every artifact on every device of the recipe."""
    inputs = _inputs(context.workload)
    student_workload = converted.student_workload
    read = inputs if student_workload is context.workload else _inputs(student_workload)
    fed = {a.passport.sha256: read for a in converted.students} | {
        a.passport.sha256: inputs for a in (converted.baseline,) if a is not None
    }
    devices: list[DeviceInfo] = []
    skipped: list[SkippedDevice] = []
    measurements: list[Measurement] = []
    for entry in context.recipe.devices:
        try:
            info, done = _measure_device(context, entry, converted, fed, store)
        except (DeviceError, HostError, UserError) as e:
            _device_failed(context, entry, e, skipped, measurements, converted)
            continue
        devices.append(info)
        measurements.extend(done)
    return Measured(inputs=inputs, devices=tuple(devices), skipped=tuple(skipped), measurements=tuple(measurements))


def _inputs(workload: Workload) -> InputSet:
    from edgekit.benchmarks.inputs import InputSet
    from edgekit.pipeline.samples import all_inputs

    return InputSet(arrays=all_inputs(workload.evaluation), layouts=layouts_of(workload))


def layouts_of(workload: Workload) -> tuple[str | None, ...]:
    """One layout for each input, None where the workload does not tell."""
    told = workload.input_layouts
    return (*told, *([None] * (len(workload.example_inputs) - len(told))))


def _device_failed(
    context: Context,
    entry: DeviceEntry,
    error: EdgekitError,
    skipped: list[SkippedDevice],
    measurements: list[Measurement],
    converted: Converted,
) -> None:
    """A device that could not be opened: passed over when the recipe allows, else every row of it failed."""
    skipped.append(SkippedDevice(spec=entry.spec, reason=error.message, hint=error.hint))
    status = StageStatus.FAILED if entry.required else StageStatus.SKIPPED
    context.note(f"measure-{entry.spec}", status, text=error.message)
    if entry.required:
        context.errors.append(error)
        measurements.extend(
            Measurement(artifact=artifact, device=entry.spec, run=None, error=error) for artifact in converted.all
        )


def _measure_device(
    context: Context, entry: DeviceEntry, converted: Converted, fed: Mapping[str, InputSet], store: ResultStore
) -> tuple[DeviceInfo, list[Measurement]]:
    from edgekit.benchmarks.session import measuring_on

    name = f"measure-{entry.spec}"
    context.observe(StageEvent(stage=name, status=StageStatus.STARTED, text="connecting"))
    began = time.monotonic()
    with measuring_on(entry.spec, store) as session:
        info = session.info
        done: list[Measurement] = []
        for place, artifact in enumerate(converted.all):
            gone = next((m.error for m in done if m.error is not None and _is_gone(m.error)), None)
            if gone is not None:
                done.append(Measurement(artifact=artifact, device=info.spec, run=None, error=gone))
                continue
            inputs = fed[artifact.passport.sha256]
            done.append(_measure_one(context, name, session, artifact, inputs, place / len(converted.all)))
    failed = [m.error for m in done if m.error is not None]
    status = StageStatus.CACHED if all(m.was_stored for m in done) else StageStatus.DONE
    context.note(
        name,
        StageStatus.FAILED if failed else status,
        seconds=time.monotonic() - began,
        text=failed[0].message if failed else "",
    )
    return info, done


def _is_gone(error: EdgekitError) -> bool:
    """Whether nothing more can be measured on the device that gave this error."""
    return error.blame is Blame.LINK or isinstance(error, LeaseLost)


def _measure_one(
    context: Context,
    stage: str,
    session: Session,
    artifact: Artifact,
    inputs: InputSet,
    fraction: float,
) -> Measurement:
    from edgekit.benchmarks.harness import measure

    shown, info = artifact.passport.name, session.info

    def tell(phase: str, _part: float) -> None:
        context.observe(
            StageEvent(stage=stage, status=StageStatus.PROGRESS, fraction=fraction, text=f"{shown} · {phase}")
        )

    tell("", 0.0)
    started = time.monotonic_ns()
    try:
        run = measure(
            session.device,
            info,
            artifact,
            inputs,
            context.recipe.plan,
            store=session.store,
            work_dir=context.workspace.root / "inputs",
            fresh=context.options.is_fresh,
            on_progress=tell,
        )
    except Interrupted:
        raise
    except EdgekitError as e:
        context.errors.append(e)
        context.warn(f"{shown} on {info.spec}", e.message)
        return Measurement(artifact=artifact, device=info.spec, run=None, error=e)
    was_stored = run.host_ns.get("total", 0) == 0 or run.host_ns["total"] > time.monotonic_ns() - started
    return Measurement(artifact=artifact, device=info.spec, run=run, was_stored=was_stored)
