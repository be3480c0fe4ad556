"""Real jobs on emulated ARM: each runtime gives PyTorch's answers on the ABI and the wheels a board has."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.board_arches import require_arch
from support.tiny_models import TinyModels, make_tiny_models

from edgekit.artifact import Format
from edgekit.benchmarks.accuracy import sqnr_db
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board import BoardDevice
from edgekit.benchmarks.harness import measure
from edgekit.benchmarks.inputs import read_outputs
from edgekit.benchmarks.journal import MemoryStore
from edgekit.benchmarks.values import Plan, RunStatus
from edgekit.errors import DeviceUnusable

pytestmark = [pytest.mark.needs_root, pytest.mark.board, pytest.mark.toolchain, pytest.mark.slow]

PLAN = Plan(cold_starts=0, warmup_min_runs=0, warmup_max_seconds=0.1, min_samples=2, min_seconds=0.01)
"""Times mean nothing here."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return make_tiny_models(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("arch", "format"),
    [*(("arm64", format) for format in Format), ("armhf", Format.TFLITE)],
    ids=lambda value: str(value),
)
def test_an_arm_boards_answers_are_pytorchs(arch: str, format: Format, tiny: TinyModels, tmp_path: Path) -> None:
    """Provisioned from wheels of its ABI, behind a real adbd; the result says that it was emulated."""
    require_arch(arch)
    artifact, store = tiny.artifacts[format], MemoryStore(tmp_path / "outputs")
    with BoardDevice(arch) as board:
        info = board.probe(Deadline.after(60))
        run = measure(board, info, artifact, tiny.inputs, PLAN, store=store, work_dir=tmp_path / "work")
    assert run.status is RunStatus.OK, run.error
    assert info.emulated
    outputs = read_outputs(store.outputs_path(run.outputs_sha256 or ""), artifact.passport, 40, device="d")[0]
    # float32 kernels that sum in another order: 144 terms, each rounded to 2^-24, is 2^-17 at worst, 102 dB.
    measured, exact = sqnr_db(tiny.reference, outputs)
    assert exact or (measured or 0) > 100


@pytest.mark.parametrize("format", [Format.ONNX, Format.EXECUTORCH], ids=str)
def test_what_32_bit_boards_lack_is_told_before_anything_is_sent(
    format: Format, tiny: TinyModels, tmp_path: Path
) -> None:
    """onnxruntime and executorch are not published for armv7l: one error, with what runs there."""
    require_arch("armhf")
    store = MemoryStore(tmp_path / "outputs")
    with BoardDevice("armhf") as board:
        info = board.probe(Deadline.after(60))
        with pytest.raises(DeviceUnusable, match="not published for its processor") as caught:
            measure(board, info, tiny.artifacts[format], tiny.inputs, PLAN, store=store, work_dir=tmp_path / "work")
    assert "tflite" in (caught.value.hint or "")
