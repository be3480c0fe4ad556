"""Every runtime keeps one contract: right outputs, threads honoured, delegates as asked for, faults as results."""

from pathlib import Path

import numpy as np
import pytest
from support.tiny_models import TinyModels, make_tiny_models

from edgekit.artifact import Artifact, Format
from edgekit.benchmarks.accuracy import sqnr_db
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board import BoardDevice
from edgekit.benchmarks.devices.local import LocalDevice
from edgekit.benchmarks.harness import measure
from edgekit.benchmarks.inputs import read_outputs
from edgekit.benchmarks.journal import MemoryStore
from edgekit.benchmarks.values import Plan, Run, RunStatus
from edgekit.schema import sha256_of

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]

PLAN = Plan(cold_starts=1, warmup_max_seconds=1, min_samples=50, min_seconds=0.05)
RUNTIME = {Format.TFLITE: "litert", Format.ONNX: "onnxruntime", Format.EXECUTORCH: "executorch"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return make_tiny_models(tmp_path_factory.mktemp("tiny"))


def run_on(
    device: LocalDevice | BoardDevice, artifact: Artifact, tiny: TinyModels, tmp_path: Path, plan: Plan = PLAN
) -> Run:
    info = device.probe(Deadline.after(30))
    store = MemoryStore(tmp_path / "outputs")
    return measure(device, info, artifact, tiny.inputs, plan, store=store, work_dir=tmp_path / "work")


def outputs_of(run: Run, artifact: Artifact, tmp_path: Path) -> np.ndarray:
    path = MemoryStore(tmp_path / "outputs").outputs_path(run.outputs_sha256 or "")
    return read_outputs(path, artifact.passport, 40, device="d")[0]


def check_whole(run: Run, artifact: Artifact, tiny: TinyModels, tmp_path: Path) -> None:
    assert run.status is RunStatus.OK, run.error
    assert run.runtime is not None
    assert (run.runtime.name, run.runtime.threads) == (RUNTIME[artifact.passport.format], 1)
    assert run.memory is not None
    assert run.memory.peak_rss_bytes is not None
    # float32 kernels that sum in another order: 144 terms, each rounded to 2^-24, is 2^-17 at worst, 102 dB.
    measured, exact = sqnr_db(tiny.reference, outputs_of(run, artifact, tmp_path))
    assert exact or (measured or 0) > 100


@pytest.mark.parametrize("format", list(Format))
def test_outputs_are_pytorchs_on_this_host(
    local_device: LocalDevice, tiny: TinyModels, tmp_path: Path, format: Format
) -> None:
    """A float model gives PyTorch's numbers to rounding, by the runtime and with the one thread asked for."""
    artifact = tiny.artifacts[format]
    run = run_on(local_device, artifact, tiny, tmp_path)
    check_whole(run, artifact, tiny, tmp_path)
    if format is Format.TFLITE:
        assert run.runtime is not None
        assert run.runtime.delegate == "XNNPACK"
        assert run.runtime.delegate_nodes == run.runtime.total_nodes


@pytest.mark.board
@pytest.mark.needs_root
@pytest.mark.parametrize("format", list(Format))
def test_outputs_are_pytorchs_on_the_board(
    board: BoardDevice, tiny: TinyModels, tmp_path: Path, format: Format
) -> None:
    """The same behind a real adbd, with runtimes that were provisioned from wheels."""
    artifact = tiny.artifacts[format]
    check_whole(run_on(board, artifact, tiny, tmp_path), artifact, tiny, tmp_path)


@pytest.mark.parametrize(
    ("format", "delegate", "status"),
    [
        (Format.TFLITE, "none", RunStatus.OK),
        (Format.TFLITE, "xnnpack", RunStatus.OK),
        (Format.EXECUTORCH, "none", RunStatus.FAILED),
        (Format.ONNX, "xnnpack", RunStatus.FAILED),
    ],
)
def test_a_delegate_is_had_or_the_run_fails(
    local_device: LocalDevice, tiny: TinyModels, tmp_path: Path, format: Format, delegate: str, status: RunStatus
) -> None:
    """What was asked for is what ran: never another delegate in silence."""
    plan = PLAN.model_copy(update={"delegate": delegate, "cold_starts": 0, "memory": False, "accuracy": False})
    run = run_on(local_device, tiny.artifacts[format], tiny, tmp_path, plan)
    assert run.status is status, run.error
    if run.runtime is not None:
        assert run.runtime.delegate == (None if delegate == "none" else "XNNPACK")


@pytest.mark.parametrize("format", list(Format))
def test_a_truncated_model_is_a_failed_run(
    local_device: LocalDevice, tiny: TinyModels, tmp_path: Path, format: Format
) -> None:
    """Half a file is refused or crashes its own process; either way it is a row, and the host goes on."""
    whole = tiny.artifacts[format]
    half = tmp_path / whole.path.name
    half.write_bytes(whole.path.read_bytes()[: whole.passport.size_bytes // 2])
    passport = whole.passport.model_copy(update={"sha256": sha256_of(half), "size_bytes": half.stat().st_size})
    run = run_on(local_device, Artifact(path=half, passport=passport), tiny, tmp_path)
    assert run.status in (RunStatus.FAILED, RunStatus.CRASHED)
    assert run.error
    assert run.latency_ns == ()
