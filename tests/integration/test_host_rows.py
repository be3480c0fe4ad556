"""Rows of the report from real measurements: a board's answers against this host's, steadiness and validity told."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from support.onnx_stack import onnx_stack

from edgekit.api.files import open_artifact
from edgekit.artifact import Artifact
from edgekit.benchmarks.devices.base import Deadline, Device
from edgekit.benchmarks.devices.board import BoardDevice
from edgekit.benchmarks.devices.local import LocalDevice
from edgekit.benchmarks.harness import measure
from edgekit.benchmarks.inputs import InputSet
from edgekit.benchmarks.values import DeviceInfo, Gates, Plan
from edgekit.pipeline.learning import Reference
from edgekit.pipeline.measurement import Measured, Measurement
from edgekit.pipeline.rows import RowMaker
from edgekit.report.model import Row, Verdict
from edgekit.store import ResultStore

pytestmark = [pytest.mark.toolchain, pytest.mark.board, pytest.mark.needs_root, pytest.mark.slow]

PLAN = Plan(cold_starts=0, min_samples=60, min_seconds=0.2, memory=False)
INPUTS = InputSet(arrays=(np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32),))


def rows_of(artifact: Artifact, local: LocalDevice, board: BoardDevice, tmp_path: Path) -> tuple[Row, ...]:
    with ResultStore(tmp_path / "store") as store:
        devices: list[DeviceInfo] = []
        done: list[Measurement] = []
        places: list[Device] = [local, board]
        for place in places:
            info = place.probe(Deadline.after(60))
            run = measure(place, info, artifact, INPUTS, PLAN, store=store, work_dir=tmp_path / "work")
            assert run.status == "ok", run.error
            devices.append(info)
            done.append(Measurement(artifact=artifact, device=info.spec, run=run))
        outputs = INPUTS.arrays[0] * np.float32(0.25)  # two layers that halve
        reference = Reference(outputs=outputs, targets=outputs.argmax(axis=1), stage=cast(Any, None))
        maker = RowMaker(
            measured=Measured(inputs=INPUTS, devices=tuple(devices), skipped=(), measurements=tuple(done)),
            baseline=None,
            teacher=reference,
            student=reference,
            classes=(),
            gates=Gates(),
            store=store,
        )
        return maker.rows()


def test_the_same_runtime_on_the_same_processor_answers_to_the_bit(
    local_device: LocalDevice, board: BoardDevice, tmp_path: Path
) -> None:
    """The board runs on this host's processor with the same wheel: equal to the bit, and the row says so."""
    artifact = open_artifact(onnx_stack(tmp_path / "stack.onnx", layers=2, width=64))
    here, there = rows_of(artifact, local_device, board, tmp_path)
    assert here.host_verdict is None, "the host is not compared with itself"
    assert (there.host_verdict, there.matches_host, there.host_reason) == (Verdict.PASS, True, "equal to the bit")
    for row in (here, there):
        assert row.stability is not None
        assert row.invalid == ()
        assert row.accuracy is not None
        assert row.accuracy.value == 1.0
        assert (row.agreement.hits, row.agreement.total) == (300, 300) if row.agreement else False
