"""Packs of real model files of every format: the bytes come back, and zeros and codebooks make them small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import edgekit  # noqa: E402
from edgekit.artifact import Format  # noqa: E402
from edgekit.compress.share import share  # noqa: E402
from edgekit.compress.sparsify import sparsify  # noqa: E402
from edgekit.compress.student import Student  # noqa: E402
from edgekit.compress.weight_options import ShareOptions, SparsifyOptions  # noqa: E402
from edgekit.converters.host_runtimes import load_runtime  # noqa: E402
from edgekit.packing import files  # noqa: E402
from edgekit.runtimes.device_scripts import unpack as device_unpack  # noqa: E402

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]

FORMATS = {"tflite": Format.TFLITE, "executorch": Format.EXECUTORCH, "onnx": Format.ONNX}


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A convolution and two linear layers, 9 of 10 weights zero, the rest of 16 values a layer."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 196, 64),
        torch.nn.ReLU(), torch.nn.Linear(64, 10),
    )  # fmt: skip
    sparse = sparsify(Student(module=module.eval()), SparsifyOptions(sparsity=0.9))
    return share(sparse, ShareOptions(bits=4), seed=0).module.eval()


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("scheme", ["fp32", "static_w8a8"])
def test_an_artifact_comes_back_bit_for_bit(network: torch.nn.Module, target: str, scheme: str, tmp_path: Path) -> None:
    """By the command line's function and by the file that runs on a board; what comes out answers the same."""
    samples = [(torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(i)),) for i in range(16)]
    (artifact,) = edgekit.convert(
        network, samples[0], targets=[target], scheme=scheme, output_dir=tmp_path / "made",
        calibration=samples if scheme != "fp32" else (),
    )  # fmt: skip
    report = files.pack(artifact.path, tmp_path / "model.ekpack")
    assert report.size_bytes < report.original_bytes / (4 if scheme == "fp32" else 2)

    files.unpack(report.path, tmp_path / "out")
    board = [sys.executable, device_unpack.__file__, str(report.path), "-o", str(tmp_path / "board")]
    subprocess.run(board, check=True, timeout=60)
    for folder in ("out", "board"):
        for file in report.files:
            assert (tmp_path / folder / file.name).read_bytes() == (artifact.path.parent / file.name).read_bytes()
    assert {"passport.json", artifact.path.name} <= {Path(file.name).name for file in report.files}

    given = [samples[3][0].numpy()]
    before, after = (
        load_runtime(path, FORMATS[target])(given)
        for path in (artifact.path, tmp_path / "out" / artifact.path.relative_to(artifact.path.parent))
    )
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
