"""`check`: every obstacle at once, with the user's line and what to change, and nothing converted."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from edgekit.artifact import Scheme  # noqa: E402
from edgekit.converters.checking import check_model  # noqa: E402

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]


class Obstacles(torch.nn.Module):
    """Two things torch.export refuses, and an op that one backend of two has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Linear(8, 8)

    def forward(self, x):
        y = self.stem(x)
        if y.mean() > 0:  # first refusal
            y = y * 2
        rows = bool(y.max() > 100.0)  # second refusal
        return torch.logcumsumexp(y, dim=1) + (1 if rows else 0)  # no lowering


def line_of(text: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    return f"{__file__}:{next(i for i, line in enumerate(lines, 1) if text in line and 'line_of' not in line)}"


def test_every_obstacle_is_named_at_once() -> None:
    """torch.export stops at its first refusal; check goes on past it, and asks the backends as well."""
    model = Obstacles()
    report = check_model(
        model, (torch.randn(2, 8),), name="m", targets=["executorch", "onnx"], schemes=[Scheme.FP32, Scheme.STATIC_W8A8]
    )
    refusals = [problem for problem in report.problems if problem.backend == "torch.export"]
    assert [problem.source for problem in refusals] == [line_of("# first refusal"), line_of("# second refusal")]
    assert "torch.where" in (refusals[0].hint or "")
    assert "keep it a tensor" in (refusals[1].hint or "")
    missing = [problem for problem in report.problems if problem.op == "aten.logcumsumexp.default"]
    assert [(problem.backend, problem.available_in) for problem in missing] == [("executorch", ("onnx",))]
    assert missing[0].source == line_of("# no lowering")
    assert report.clear == ()
    assert model.training  # as it was


def test_a_model_without_obstacles_is_clear_for_each_pair() -> None:
    """Nothing is converted, and a pair that the backend cannot write is a problem that names the nearest."""
    report = check_model(
        torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()),
        (torch.randn(1, 8),),
        name="m",
        targets=["executorch"],
        schemes=[Scheme.FP32, Scheme.STATIC_W8A16],
    )
    assert report.clear == (("executorch", Scheme.FP32),)
    (problem,) = report.problems
    assert "static_w8a16" in problem.message
    assert "nearest" in problem.message
