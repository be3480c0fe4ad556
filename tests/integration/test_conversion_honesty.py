"""What a backend cannot do is said: ops without a lowering before converting, ops left float afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit.artifact import Scheme  # noqa: E402
from edgekit.converters.conversion import ConversionOptions, convert_model  # noqa: E402
from edgekit.errors import ConversionError, UnsupportedError  # noqa: E402

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]


class Accumulates(torch.nn.Module):
    """logcumsumexp: known to onnxscript, not to litert-torch and executorch."""

    def forward(self, x):
        return torch.logcumsumexp(x, dim=1)  # the line the error must name


class Holds(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Linear(8, 8)
        self.tail = Accumulates()

    def forward(self, x):
        return self.tail(torch.relu(self.stem(x)))


class Mixed(torch.nn.Module):
    """sin between two linear layers: no backend has it in int8."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.last = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.last(torch.sin(self.first(x)))


def rows(count: int, scale: float = 1.0) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(0)
    return [((scale * rng.normal(size=(1, 8))).astype(np.float32),) for _ in range(count)]


def test_an_op_without_lowering_is_named_with_module_line_and_who_has_it(tmp_path: Path) -> None:
    """Before converting: the op, the user's submodule, file and line, and the installed backends that do have it."""
    torch.manual_seed(0)
    outcome = convert_model(
        Holds(),
        (torch.zeros(1, 8),),
        name="holds",
        targets=["tflite"],
        schemes=[Scheme.FP32],
        output_dir=tmp_path,
    )
    error = outcome.failures[0].error
    assert isinstance(error, UnsupportedError)
    (problem,) = error.problems
    lines = Path(__file__).read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "torch.logcumsumexp(x" in text)
    assert problem.op == "aten.logcumsumexp.default"
    assert problem.module == "tail"
    assert problem.source == f"{__file__}:{line}"
    assert problem.available_in == ("onnx",)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("target", "op"), [("tflite", "SIN"), ("executorch", "XNNSin"), ("onnx", "Sin")])
def test_an_op_that_stays_float_is_listed(tmp_path: Path, target: str, op: str) -> None:
    """int8 around it, float inside: the passport lists the op with a place and a reason, and the Q/DQ around it."""
    torch.manual_seed(0)
    outcome = convert_model(
        Mixed(),
        (torch.zeros(1, 8),),
        name="mixed",
        targets=[target],
        schemes=[Scheme.STATIC_W8A8],
        output_dir=tmp_path,
        calibration=rows(32),
    )
    outcome.raise_failures()
    passport = outcome.artifacts[0].passport
    listed = {left.op: left for left in passport.unquantized_ops}
    assert set(listed) == {op}
    assert listed[op].where
    assert listed[op].reason
    assert any(count.dtype == "mixed" for count in passport.ops)
    assert any(count.dtype in ("int8", "uint8") for count in passport.ops)
    assert passport.fidelity is not None
    assert passport.fidelity.source == "calibration"


@pytest.mark.parametrize("is_allowed", [False, True])
def test_an_artifact_too_far_from_its_model_is_refused_or_marked(tmp_path: Path, is_allowed: bool) -> None:
    """Calibrated on inputs 1000 times too small, everything saturates: refused, or kept with a warning when allowed."""
    torch.manual_seed(0)
    outcome = convert_model(
        torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)),
        (torch.zeros(1, 8),),
        name="lossy",
        targets=["onnx"],
        schemes=[Scheme.STATIC_W8A8],
        output_dir=tmp_path,
        calibration=rows(8, scale=0.001),
        verification=rows(8),
        options=ConversionOptions(allow_lossy=is_allowed),
    )
    if is_allowed:
        assert any("below the 15 dB" in warning for warning in outcome.artifacts[0].passport.warnings)
    else:
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ConversionError, match="below the 15 dB"):
            outcome.raise_failures()
