"""The recovery ladder: its data, gate, order and budget. Conversions are in tests/integration/test_tuning.py."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import edgekit
from edgekit.artifact import Artifact, Fidelity, Format, OutputFidelity, Passport, Scheme
from edgekit.benchmarks.accuracy import paired_drop
from edgekit.errors import ConversionError, UserError, WorkloadError
from edgekit.train import TrainProgress
from edgekit.tuning import ladder
from edgekit.tuning.data import split
from edgekit.tuning.exam import Exam, exam_of, holds, refused_gate, verdict
from edgekit.tuning.ladder import tune
from edgekit.tuning.options import RUNGS, TuneOptions, seconds_of
from edgekit.tuning.page import render_page
from edgekit.tuning.rungs import FILE, RUNG_MAKERS, BudgetEnded, Setting, State
from edgekit.tuning.values import RungStatus, TuneGate, TuneResult
from edgekit.tuning.view import rung_table, sentences

CLASSES = 4


def inputs(count: int, seed: int = 0) -> TensorDataset:
    """Points of the plane; the class is the quadrant, which one linear layer tells."""
    points = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(points, (points[:, 0] > 0).long() + 2 * (points[:, 1] > 0).long())


class Quadrants(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[B, 4]` of points `[B, 2]`."""
        a, b = x[:, :1], x[:, 1:]
        return torch.cat([-a - b, a - b, b - a, a + b], dim=1)


def workload(**changes: Any) -> edgekit.Workload:
    given = edgekit.Workload(
        name="quadrants", model=Quadrants(), example_inputs=(torch.zeros(1, 2),), train=inputs(800),
        evaluation=inputs(600, seed=1),
    )  # fmt: skip
    return replace(given, **changes)


# ---- options


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_drop": -1.0}, "is no gate"),
        ({"min_accuracy": 1.5}, "is no gate"),
        ({"budget_seconds": 2.0}, "less than one conversion takes"),
        ({"rungs": ("qatt",)}, "did you mean 'qat'"),
        ({"rungs": ()}, "no rung"),
        ({"epochs": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_asked_for(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TuneOptions(**changes)


def test_an_unknown_backend_and_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'tflite'"):
        tune(workload(), options=TuneOptions(backend="tflit", workspace=tmp_path))
    with pytest.raises(WorkloadError, match="untrained model"):
        tune(workload(model=Quadrants), options=TuneOptions(workspace=tmp_path))
    with pytest.raises(UserError, match="no such weights"):
        tune(workload(), options=TuneOptions(weights=tmp_path / "none.safetensors", workspace=tmp_path))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("20m", 1200), ("1.5h", 5400), (" 2 min ", 120)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "20x", "-3m", "1e9"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(UserError, match="not a length of time"):
        seconds_of(text)


# ---- data


class Items(Dataset):  # type: ignore[type-arg]
    """Items that say which they are."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(index), 0.0]), 0


def indices(data: Any) -> set[int]:
    return {int(data[i][0][0]) for i in range(len(data))}


@settings(max_examples=25, deadline=None)
@given(st.integers(80, 400), st.integers(1, 300), st.integers(0, 5), st.booleans())
def test_search_data_are_kept_from_what_makes_files(count: int, wanted: int, seed: int, is_tensor: bool) -> None:
    """Search, visible and evaluation data share nothing; all of the training data are in one of the first two."""
    data = TensorDataset(torch.arange(count).float()[:, None].repeat(1, 2), torch.zeros(count, dtype=torch.long))
    given_data = data if is_tensor else Items(count)
    try:
        found = split(workload(train=given_data), wanted, seed=seed)
    except WorkloadError:
        assert min(wanted, count // 4) < 20
        return
    searched, visible = indices(found.search), indices(found.visible.train)
    assert not searched & visible
    assert searched | visible == set(range(count))
    assert len(searched) <= count // 4
    assert found.visible.evaluation is found.search  # what a rung may look at instead
    assert found.evaluation is not found.search


def test_without_training_data_the_calibration_data_are_split() -> None:
    found = split(workload(train=None, calibration=inputs(200)), 1000, seed=0)
    assert found.visible.train is None
    assert found.visible.calibration is not None
    assert (len(found.search), len(found.visible.calibration)) == (50, 150)
    with pytest.raises(WorkloadError, match="no training or calibration data"):
        split(workload(train=None), 1000, seed=0)


# ---- gate


def bound(right: int, total: int = 600) -> Any:
    """What an exam says of a file with so many right answers, the teacher's being all right."""
    labels = np.zeros(total, dtype=np.int64)
    logits = np.zeros((total, 2))
    logits[:, 0] = 1
    logits[right:, 1] = 2
    return Exam(name="x", samples=(), labels=labels, teacher=labels).of_outputs(logits)


def test_the_interval_decides() -> None:
    """Holding as measured is not enough: 4 of 600 wrong is 0.67 points, which may be 1.7."""
    gate = TuneGate(max_drop_points=1.0)
    assert holds(gate, bound(596))
    sure, told = verdict(gate, bound(596))
    assert not sure
    assert "too few inputs to be sure" in told
    assert verdict(gate, bound(600))[0]
    assert not holds(gate, bound(590))
    assert "too few" not in verdict(gate, bound(590))[1]


def test_rows_that_are_not_finite_are_wrong() -> None:
    labels = np.zeros(3, dtype=np.int64)
    exam = Exam(name="x", samples=(), labels=labels, teacher=labels)
    assert exam.of_outputs(np.array([[1, 0], [np.nan, 0], [np.inf, 0]])).value.hits == 1


def test_gates_that_no_file_can_pass_are_refused() -> None:
    data = workload()
    exam = exam_of(data.evaluation, "600 inputs", data, Quadrants())
    assert exam.of_outputs(np.eye(CLASSES)[exam.teacher]).value.value == 1.0
    least = 100 * paired_drop(np.ones(600, dtype=bool), np.ones(600, dtype=bool)).high
    refused_gate(TuneGate(max_drop_points=least + 0.01), exam)
    with pytest.raises(UserError, match="cannot be shown on 600 inputs"):
        refused_gate(TuneGate(max_drop_points=least - 0.01), exam)
    worse = replace(exam, labels=(exam.labels + (np.arange(600) < 120)) % CLASSES)
    with pytest.raises(UserError, match=r"the teacher itself has accuracy 80\.00%"):
        refused_gate(TuneGate(min_accuracy=0.9), worse)


# ---- the climb, over rungs that write files of known answers


PASSPORT = Passport(
    name="tuned.static_w8a8.tflite", format=Format.TFLITE, scheme=Scheme.STATIC_W8A8, file="m.tflite", sha256="",
    size_bytes=1, inputs=(), outputs=(), ops=(), backend="tflite",
    fidelity=Fidelity(samples=1, source="held-out", runtime="t", outputs=(
        OutputFidelity(name="y", sqnr_db=30.0, exact=False, cosine=None, max_abs_error=None, non_finite=0),)),
)  # fmt: skip


class Ladder:
    """Doubles in the place of the makers: `wrong` says how many of 1000 answers each rung's file gets wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, int | BaseException]) -> None:
        self.made: list[str] = []
        self.wrong = wrong
        for name, rung in RUNG_MAKERS.items():
            double = replace(rung, make=self._maker(name), refusal=lambda _state: None)
            monkeypatch.setitem(RUNG_MAKERS, name, double)
        monkeypatch.setattr(Exam, "of_file", self._of_file)

    def _maker(self, name: str) -> Callable[[State, Setting, Path, Path], None]:
        def make(state: State, setting: Setting, work: Path, out: Path) -> None:
            del state, setting, work
            wrong = self.wrong[name]
            if isinstance(wrong, BaseException):
                raise wrong
            self.made.append(name)
            (out / FILE).mkdir()
            path = out / FILE / "m.tflite"
            path.write_text(f"{name} {wrong}")
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            Artifact(path=path, passport=PASSPORT.model_copy(update={"sha256": sha})).save_passport()

        return make

    @staticmethod
    def _of_file(exam: Exam, artifact: Artifact, _work: Path, _orders: Any) -> Any:
        wrong = int(artifact.path.read_text().split()[1])
        answers = exam.teacher.copy()
        count = wrong * len(answers) // 1000
        answers[:count] = (answers[:count] + 1) % CLASSES
        return exam.of_outputs(np.eye(CLASSES)[answers])


ALL_BAD: dict[str, int | BaseException] = dict.fromkeys(RUNGS, 100)


def climbed(tmp_path: Path, **changes: Any) -> TuneResult:
    options: dict[str, Any] = {"workspace": tmp_path / "runs", "device": None, "max_drop": 2.0, **changes}
    return tune(workload(), options=TuneOptions(**options))


def test_it_stops_at_the_first_rung_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is above is not tried; the file is put where it was asked for; evaluation data are shown once."""
    double = Ladder(monkeypatch, {**ALL_BAD, "bias-correction": 0, "qat": 0})
    result = climbed(tmp_path, output=tmp_path / "tuned")
    assert double.made == ["minmax", "ranges", "bias-correction"]
    assert result.passed == "bias-correction"
    assert result.evaluations == 1
    statuses = [rung.status for rung in result.rungs]
    assert statuses[:3] == [RungStatus.MISSED, RungStatus.MISSED, RungStatus.PASSED]
    assert set(statuses[3:]) == {RungStatus.NOT_TRIED}
    assert [rung.name for rung in result.rungs] == list(RUNGS)
    assert result.output is not None
    assert Artifact.open(Path(result.output)).path.read_text() == "bias-correction 0"


def test_a_second_call_makes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    double = Ladder(monkeypatch, {**ALL_BAD, "qat": 0})
    first = climbed(tmp_path)
    made, double.made = double.made, []
    second = climbed(tmp_path)
    assert made == list(RUNGS)
    assert double.made == []
    assert all(rung.was_there for rung in second.rungs)
    assert [r.on_search for r in first.rungs] == [r.on_search for r in second.rungs]
    assert second.passed == "qat"
    climbed(tmp_path, calibration=7)  # other samples are other files
    assert "ranges" in double.made


def test_a_killed_climb_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    double = Ladder(monkeypatch, {**ALL_BAD, "keep-float": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        climbed(tmp_path)
    double.wrong, double.made = {**ALL_BAD, "keep-float": 0}, []
    assert climbed(tmp_path).passed == "keep-float"
    assert double.made == ["keep-float"]


def test_what_holds_on_search_data_only_is_refuted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """15 of 1000 wrong is within 2 points as measured; on 600 inputs the interval reaches beyond, so it climbs on."""
    Ladder(monkeypatch, {**ALL_BAD, "minmax": 15, "ranges": 0})
    result = climbed(tmp_path)
    assert result.rungs[0].status is RungStatus.REFUTED
    assert result.rungs[0].on_evaluation is not None
    assert (result.passed, result.evaluations) == ("ranges", 2)


def test_a_rung_that_fails_is_told_and_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = ConversionError("no such op", backend="tflite", stage="convert")
    Ladder(monkeypatch, {**ALL_BAD, "ranges": failure, "bias-correction": 0})
    result = climbed(tmp_path)
    assert result.rungs[1].status is RungStatus.FAILED
    assert "no such op" in result.rungs[1].reason
    assert result.passed == "bias-correction"


def test_nothing_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ladder(monkeypatch, {**ALL_BAD, "int16-activations": 50})
    result = climbed(tmp_path)
    assert (result.passed, result.nearest, result.evaluations) == (None, "int16-activations", 0)
    assert "the nearest is int16-activations" in sentences(result)[0]


def test_a_spent_budget_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rung it ended in is stopped, those above are not tried; a budget that ended before any is an error."""
    double = Ladder(monkeypatch, {**ALL_BAD, "ranges": BudgetEnded("the budget ended in step 3 of 9")})
    result = climbed(tmp_path)
    assert [rung.status for rung in result.rungs[1:3]] == [RungStatus.STOPPED, RungStatus.NOT_TRIED]
    assert result.stopped is not None
    double.wrong = {**ALL_BAD, "minmax": BudgetEnded("over")}
    with pytest.raises(UserError, match="before the first rung was made"):
        climbed(tmp_path / "other")


def test_rungs_that_cannot_help_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A float student under the gate is not brought above it by rounding it otherwise; training may."""
    double = Ladder(monkeypatch, {**ALL_BAD, "distill": 0})

    class Worse(Quadrants):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * torch.tensor([1.0, 1.0, 1.0, 0.0])

    student = workload(model=Worse())
    from edgekit.tuning import start as starting

    monkeypatch.setattr(
        ladder, "start", lambda subject, options: replace(starting.start(subject, options), teacher=Quadrants())
    )
    result = tune(student, options=TuneOptions(workspace=tmp_path, device=None, max_drop=2.0))
    assert double.made == ["distill"]
    assert result.passed == "distill"
    assert "the float student itself is" in result.rungs[0].reason


@pytest.mark.parametrize(
    ("backend", "rung", "said"),
    [
        ("executorch", "int16-activations", "XNNPACK has no int16"),
        ("onnx-tf", "qat", "no quantizer to train with"),
        ("tflite", "per-channel", "one weight scale per channel"),
        ("tflite", "distill", "its own teacher"),
    ],
)
def test_a_backend_without_a_rung_says_why(tmp_path: Path, backend: str, rung: str, said: str) -> None:
    result = tune(
        workload(), options=TuneOptions(backend=backend, rungs=(rung,), workspace=tmp_path, device=None, max_drop=2.0)
    )
    assert result.rungs[0].status is RungStatus.SKIPPED
    assert said in result.rungs[0].reason
    assert result.passed is None


def test_no_training_data_for_the_rungs_that_train(tmp_path: Path) -> None:
    found = tune(
        workload(train=None, calibration=inputs(400)),
        options=TuneOptions(rungs=("distill", "qat"), workspace=tmp_path, device=None, max_drop=2.0),
    )
    assert [rung.reason for rung in found.rungs] == ["the workload has no training data"] * 2


def test_training_ends_with_the_budget() -> None:
    """Within a training step, so that its checkpoint stays."""
    options = TuneOptions(device=None)
    state = State(
        options=options, data=None, teacher=None, best=None, deadline=time.monotonic() - 1  # type: ignore[arg-type]
    )  # fmt: skip
    progress = TrainProgress(epoch=1, epochs=2, step=3, total_steps=9, loss=1.0, accuracy=None)
    with pytest.raises(BudgetEnded, match="step 3 of 9"):
        state.on_training("x")(progress)


def test_the_table_and_the_page_show_every_rung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ladder(monkeypatch, {**ALL_BAD, "ranges": 0})
    result = climbed(tmp_path)
    table = rung_table(result)
    assert [row.cells[0] for row in table.rows] == list(RUNGS)
    assert [row.is_marked for row in table.rows].index(True) == 1
    page = render_page(result)
    assert "A rung passes" in page
    assert all(name in page.replace("<wbr>", "") for name in RUNGS)
    assert TuneResult.model_validate_json(result.model_dump_json()) == result
