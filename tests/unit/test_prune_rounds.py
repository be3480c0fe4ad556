"""Pruning in rounds: trained in between, and after a kill the very same student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from edgekit.compress import prune as pruning
from edgekit.compress.cost import count_macs
from edgekit.compress.effects import TeacherReference
from edgekit.compress.steps import first_student, run_step
from edgekit.compress.student import Student, replay
from edgekit.recipe import Step
from edgekit.train import weights_digest
from edgekit.workload import Workload

IMAGE = (torch.zeros(1, 3, 8, 8),)
STEP = Step.model_validate({
    "prune": {
        "macs_ratio": 0.4, "importance": "taylor", "ranking": "global", "round_to": 2, "rounds": 2, "samples": 32,
        "between": {"finetune": {"epochs": 1, "batch_size": 16, "logger": "none", "threads": 1}},
    }
})  # fmt: skip


@pytest.fixture
def workload() -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    data = TensorDataset(torch.randn(48, 3, 8, 8), torch.arange(48) % 3)
    return Workload(name="tiny", model=model, example_inputs=IMAGE, train=data, evaluation=data)


def ran(workload: Workload, work_dir: Path) -> Student:
    teacher = workload.build_model().eval()
    judge = TeacherReference(teacher, workload)
    return run_step(first_student(teacher), judge, STEP, workload, seed=0, work_dir=work_dir)


def test_rounds_reach_the_target_in_the_last(workload: Workload, tmp_path: Path) -> None:
    """Two rounds by the same factor, training in between; the edits of both replay; the lineage says so."""
    student = ran(workload, tmp_path)
    whole = count_macs(workload.build_model(), IMAGE)
    assert count_macs(student.module, IMAGE) / whole == pytest.approx(0.4, abs=0.06)
    between = pruning.replace(student, edits=student.edits)
    assert len([e for e in between.edits if e.module == "2"]) == 2
    replayed = replay(workload.build_model(), student.edits, IMAGE)
    assert [p.shape for p in replayed.parameters()] == [p.shape for p in student.module.parameters()]
    assert student.lineage[-1].summary.startswith(
        "by taylor importance ranked over all layers in 2 rounds, trained in between: removed "
    )
    # training moved what is left: no weight equals the teacher's
    assert not torch.isin(student.module[0].weight, workload.build_model()[0].weight).any()


@pytest.mark.parametrize("killed_in", ["training", "second round"])
def test_a_killed_step_goes_on_to_the_same_weights(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    """Killed between the rounds or in the second, the step resumes and ends with the student of an unbroken run."""
    unbroken = ran(workload, tmp_path / "unbroken")

    calls = []
    name = "_trained" if killed_in == "training" else "_pruned"
    original = getattr(pruning, name)

    def killed(*args: object, **kwargs: object) -> Student:
        calls.append(1)
        if len(calls) == (1 if killed_in == "training" else 2):
            raise KeyboardInterrupt
        made: Student = original(*args, **kwargs)
        return made

    with monkeypatch.context() as patched:
        patched.setattr(pruning, name, killed)
        with pytest.raises(KeyboardInterrupt):
            ran(workload, tmp_path / "killed")
    resumed = ran(workload, tmp_path / "killed")
    assert resumed.edits == unbroken.edits
    assert weights_digest(resumed.module) == weights_digest(unbroken.module)
