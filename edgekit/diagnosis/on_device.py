"""The layers of a file on a device, against the same file on this host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgekit.artifact import Artifact
from edgekit.diagnosis.examination import Examination
from edgekit.diagnosis.probe import real_values
from edgekit.diagnosis.subject import Subject
from edgekit.diagnosis.sums import decibels
from edgekit.diagnosis.values import ArtifactDiagnosis
from edgekit.errors import ModelCrashError

__all__ = ["compared_on_device"]


def compared_on_device(
    subject: Subject, examination: Examination, device: str, workspace: Path, tell: Callable[[str], None]
) -> ArtifactDiagnosis:
    """The examination's diagnosis with each layer's value on the device against this host's.

    The tapped file goes through the harness as any artifact does. Raises DeviceError and its kin, and
    ModelCrashError where the run there did not end well.
    """
    arrays = _run(subject, examination, device, workspace, tell)
    batch = int(subject.samples[0][0].shape[0])
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    equal: dict[str, bool] = {}
    for index in range(len(subject.samples)):
        held = examination.probe.held(index)
        for tap in examination.probe.taps:
            there = real_values(arrays[tap.position][index * batch : (index + 1) * batch], tap)
            here = held[tap.node]
            signal[tap.node] = signal.get(tap.node, 0.0) + float(np.square(here, dtype=np.float64).sum())
            noise[tap.node] = noise.get(tap.node, 0.0) + float(np.square(there.astype(np.float64) - here).sum())
            equal[tap.node] = equal.get(tap.node, True) and np.array_equal(there, here)
    diagnosis = examination.diagnosis
    layers = tuple(
        layer.model_copy(
            update={
                "device_sqnr_db": decibels(signal[layer.node], noise[layer.node]),
                "device_exact": equal[layer.node],
            }
        )
        for layer in diagnosis.layers
    )
    differs = next((layer.node for layer in layers if not layer.device_exact), None)
    return diagnosis.model_copy(update={"layers": layers, "device_differs": differs})


def _run(
    subject: Subject, examination: Examination, device: str, workspace: Path, tell: Callable[[str], None]
) -> tuple[np.ndarray, ...]:
    """Every output of the tapped file on the device, `[N, …]`."""
    from edgekit.benchmarks.harness import measure
    from edgekit.benchmarks.inputs import InputSet, read_outputs
    from edgekit.benchmarks.session import measuring_on
    from edgekit.benchmarks.values import Plan
    from edgekit.converters.passports import inspect_file
    from edgekit.store import ResultStore

    path = examination.probe.tapped_file
    name = f"{examination.artifact.passport.name} (its layers)"
    tapped = Artifact(path=path, passport=inspect_file(path).model_copy(update={"name": name}))
    inputs = InputSet(arrays=tuple(np.concatenate(column) for column in zip(*subject.samples, strict=True)))
    plan = Plan(cold_starts=0, warmup_min_runs=0, min_samples=1, min_seconds=0.0, memory=False, accuracy=True)
    with ResultStore(workspace) as store, measuring_on(device, store) as session:
        tell(f"{name} on {session.info.spec}")
        run = measure(
            session.device, session.info, tapped, inputs, plan, store=session.store, work_dir=workspace / "inputs"
        )
        if run.status != "ok" or run.outputs_sha256 is None:
            raise ModelCrashError(f"{name}: {run.status}: {run.error or 'no reason given'}", device=device)
        return read_outputs(store.outputs_path(run.outputs_sha256), tapped.passport, len(inputs), device=device)
