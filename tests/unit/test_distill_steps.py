"""Distillation as a recipe and as functions: what may be combined, what is resumed, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from edgekit.compress.options import TrainOptions
from edgekit.compress.steps import first_student, run_step
from edgekit.compress.storage import load_student, save_student
from edgekit.compress.student import Student, WeightConstraint
from edgekit.distill import (
    BornAgainOptions,
    DistillOptions,
    SelfDistillOptions,
    born_again,
    distill,
    reinitialised,
    self_distill,
)
from edgekit.distill.lesson import LessonData, plain_lesson
from edgekit.distill.objective import distillation
from edgekit.distill.response import distillation_loss
from edgekit.errors import ArtifactError, RecipeError, UserError, WorkloadError
from edgekit.recipe import Recipe, Step, load_recipe
from edgekit.train import NO_TARGET, Batch, CrossEntropy, collect_outputs, evaluate_outputs, fit, weights_digest
from edgekit.workload import Workload

FAST: dict[str, Any] = {"batch_size": 32, "threads": 1, "logger": "none"}


def cnn(width: int, seed: int = 0, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))


def digits(start: int, stop: int) -> TensorDataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images[start:stop, None] / 16.0, dtype=torch.float32)
    return TensorDataset(images, torch.tensor(bunch.target[start:stop]))


def workload(**changes: Any) -> Workload:
    given: dict[str, Any] = {
        "name": "digits",
        "model": cnn(8),
        "student": small,
        "example_inputs": (torch.zeros(1, 1, 8, 8),),
        "train": digits(0, 128),
        "evaluation": digits(1500, 1600),
    }
    return Workload(**(given | changes))


# ---- what is learned from ---------------------------------------------------------------------------------------


def test_samples_without_labels_have_no_cross_entropy() -> None:
    """In a mixed batch the hard term is the mean over the labelled, the soft one over all; with none it is gone."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    targets = torch.tensor([1, NO_TARGET, 2, NO_TARGET])
    mixed = distillation_loss(student, teacher, targets, temperature=2.0, weight=0.5)
    soft = distillation_loss(student, teacher, None, temperature=2.0, weight=0.5)
    hard = 0.5 * nn.functional.cross_entropy(student[[0, 2]], targets[[0, 2]])
    torch.testing.assert_close(mixed, soft + hard)
    nothing = distillation_loss(student, teacher, torch.full((4,), NO_TARGET), temperature=2.0, weight=0.5)
    torch.testing.assert_close(nothing, soft)


def test_unlabelled_samples_are_learned_from(tmp_path: Path) -> None:
    """With nothing but inputs the student comes to agree with the teacher, also where the inputs are bare tensors."""

    class Bare(torch.utils.data.Dataset[torch.Tensor]):
        images = digits(0, 400).tensors[0]

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self.images[index]

    teacher, student = cnn(8), small()
    fit(teacher, CrossEntropy(), digits(0, 400), TrainOptions(epochs=12, **FAST | {"learning_rate": 0.02}), seed=0,
        work_dir=tmp_path)  # fmt: skip
    taught = distill(student, teacher, None, DistillOptions(epochs=8, learning_rate=0.02, **FAST), unlabelled=Bare())
    reference = collect_outputs(teacher, Bare()).argmax(1)
    before, after = (float(np.mean(collect_outputs(m, Bare()).argmax(1) == reference)) for m in (student, taught))
    assert after > max(0.7, before + 0.3)


def test_every_kind_of_loss_at_once_and_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    """Responses, hints, attention and relations together, with unlabelled data; cut off, it ends with the same bits."""
    options = DistillOptions(
        epochs=2, features={"3": "3"}, attention={"2": "2"}, relations={"pairs": {"5": "5"}}, **FAST
    )  # fmt: skip
    student, teacher = cnn(4), cnn(8, seed=1)
    given: dict[str, Any] = {"unlabelled": digits(64, 128), "seed": 3}
    whole = distill(student, teacher, digits(0, 64), options, work_dir=tmp_path / "a", **given)

    def stop(progress: Any) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(student, teacher, digits(0, 64), options, work_dir=tmp_path / "b", on_progress=stop, **given)
    again = distill(student, teacher, digits(0, 64), options, work_dir=tmp_path / "b", **given)
    assert weights_digest(again) == weights_digest(whole) != weights_digest(student)
    assert again.state_dict().keys() == student.state_dict().keys()
    assert not any(module._forward_hooks for module in (*again.modules(), *teacher.modules()))


def test_features_alone_may_come_from_a_teacher_of_other_classes() -> None:
    """weight: 0 asks for no responses: a teacher of another task will do."""
    for terms in ({"features": {"3": "3"}}, {"relations": {}}):
        options = DistillOptions(epochs=1, weight=0, **terms, **FAST)
        taught = distill(cnn(4), cnn(8, classes=3), digits(0, 64), options)
        assert weights_digest(taught) != weights_digest(cnn(4))


def test_a_model_of_two_inputs_is_distilled() -> None:
    """Inputs are a tuple; features of a sequence have their channels last."""

    class Two(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, width, batch_first=True)
            self.out = nn.Linear(width + 2, 4)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            value: torch.Tensor = self.out(torch.cat([self.rnn(a)[0][:, -1], b], dim=1))
            return value

    class Pairs(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: int) -> Any:
            generator = torch.Generator().manual_seed(index)
            return (torch.randn(5, 3, generator=generator), torch.randn(2, generator=generator)), index % 4

    options = DistillOptions(epochs=1, features={"rnn": "rnn"}, attention={"rnn": "rnn"}, relations={}, **FAST)
    student = Two(4)
    assert weights_digest(distill(student, Two(8), Pairs(), options)) != weights_digest(student)


# ---- stored outputs ---------------------------------------------------------------------------------------------


def test_stored_outputs_teach_what_the_teacher_does(tmp_path: Path) -> None:
    """The teacher's own outputs, stored, give the very student that the teacher gives."""
    teacher, student, train, extra = cnn(8), small(), digits(0, 64), digits(64, 128)
    options = DistillOptions(epochs=1, relations={}, **FAST)
    rows = np.concatenate([collect_outputs(teacher, train), collect_outputs(teacher, extra)])
    by_teacher = distill(student, teacher, train, options, unlabelled=extra)
    by_rows = distill(student, rows, train, options, unlabelled=extra)
    assert weights_digest(by_rows) == weights_digest(by_teacher)


@pytest.mark.parametrize(
    ("name", "stored", "said"),
    [
        ("a.npy", np.zeros((100, 10), np.float32), r"has outputs \(100, 10\), but the data have 128 samples"),
        ("a.npy", np.zeros((128, 7), np.float32), r"gives \(2, 7\) where the student gives \(2, 10\)"),
        ("a.npy", np.zeros(128, np.float32), r"float32\(128,\); a teacher's outputs are floats \[samples, classes\]"),
        ("a.npy", np.zeros((128, 10), np.int64), "outputs are floats"),
        ("a.npy", np.full((128, 10), np.nan, np.float32), "128 rows are not finite, the first of them row 0"),
        ("a.npz", {"unlabelled": np.zeros((5, 10), np.float32)}, "no array 'train', and there are 128 train samples"),
        ("a.npz", {"trian": np.zeros((128, 10), np.float32)}, "unknown array 'trian'; did you mean 'train'"),
        ("a.npy", b"no array", "cannot be read as outputs"),
        ("a.pt", b"", r"read from \.npy or \.npz"),
    ],
)
def test_outputs_of_something_else_are_refused(tmp_path: Path, name: str, stored: Any, said: str) -> None:
    """Another number of samples or classes, another type, values that are not finite, and files that are no arrays."""
    path = tmp_path / name
    if isinstance(stored, bytes):
        path.write_bytes(stored)
    elif isinstance(stored, dict):
        np.savez(path, **stored)
    else:
        np.save(path, stored)
    step = Step(distill=DistillOptions(epochs=1, teacher_outputs=name, **FAST))
    with pytest.raises(WorkloadError, match=said):
        run_step(first_student(cnn(8)), cnn(8), step, workload(), seed=0, work_dir=tmp_path / "w", base=tmp_path)


def test_stored_outputs_and_augmentation_do_not_go_together(tmp_path: Path) -> None:
    """An augmented sample is not the one the teacher has seen; a missing file is an error too."""
    np.save(tmp_path / "a.npy", np.zeros((128, 10), np.float32))
    augmented = workload(augment=lambda x: x + 0.1)
    for name, said in (("a.npy", "the workload augments them"), ("b.npy", "no such file")):
        step = Step(distill=DistillOptions(epochs=1, teacher_outputs=name, **FAST))
        with pytest.raises(WorkloadError, match=said):
            run_step(first_student(cnn(8)), cnn(8), step, augmented, seed=0, work_dir=tmp_path / "w", base=tmp_path)


# ---- a student of the user's own ---------------------------------------------------------------------------------


def test_the_workloads_student_takes_over_and_is_stored(tmp_path: Path) -> None:
    """After `architecture` the student is the workload's, seeded, and a stored one is rebuilt from it."""
    given = workload()
    teacher = given.build_model()
    step = Step.model_validate({"architecture": {}})
    made = run_step(first_student(teacher), teacher, step, given, seed=0, work_dir=tmp_path)
    assert made.base == "student"
    assert made.module.state_dict().keys() == small().state_dict().keys()
    assert "takes over" in made.lineage[0].summary
    same = run_step(first_student(teacher), teacher, step, given, seed=0, work_dir=tmp_path)
    other = run_step(first_student(teacher), teacher, step, given, seed=1, work_dir=tmp_path)
    assert weights_digest(same.module) == weights_digest(made.module) != weights_digest(other.module)
    pruned = run_step(
        made, teacher, Step.model_validate({"distill": {"epochs": 1, **FAST}}), given, seed=0, work_dir=tmp_path / "d"
    )
    save_student(pruned, tmp_path / "s")
    loaded = load_student(tmp_path / "s", given.build_base, given.example_inputs)
    assert (loaded.base, weights_digest(loaded.module)) == ("student", weights_digest(pruned.module))
    with pytest.raises(ArtifactError, match="does not fit"):
        load_student(tmp_path / "s", workload(student=None).build_base, given.example_inputs)


def test_a_students_own_weights_are_kept_unless_told(tmp_path: Path) -> None:
    """An instance brings its weights; `weights: fresh` draws new ones."""
    own = small()
    given = workload(student=own)
    made = {
        weights: run_step(
            first_student(cnn(8)), cnn(8), Step.model_validate({"architecture": {"weights": weights}}), given,
            seed=0, work_dir=tmp_path,
        )
        for weights in ("own", "fresh")
    }  # fmt: skip
    assert weights_digest(made["own"].module) == weights_digest(own) != weights_digest(made["fresh"].module)


def test_a_file_of_weights_may_be_the_students(tmp_path: Path) -> None:
    """`edgekit why --weights` takes a .safetensors file of either architecture, and refuses that of neither."""
    from safetensors.torch import save_model

    from edgekit.diagnosis.subject import _with_weights

    given, own = workload(), small()
    for name, module in (("student", own), ("model", cnn(8, seed=5)), ("neither", cnn(3))):
        save_model(module, str(tmp_path / f"{name}.safetensors"))
    assert weights_digest(_with_weights(given, tmp_path / "student.safetensors")) == weights_digest(own)
    assert weights_digest(_with_weights(given, tmp_path / "model.safetensors")) == weights_digest(cnn(8, seed=5))
    with pytest.raises(WorkloadError):
        _with_weights(given, tmp_path / "neither.safetensors")


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (None, "has no student"),
        (lambda: cnn(4, classes=7), r"gives \(1, 7\) where its model gives \(1, 10\)"),
        (lambda: nn.Linear(3, 10), "the student cannot take the workload's example_inputs"),
        (lambda: "net", r"student\(\) returned str"),
    ],
)
def test_a_student_that_cannot_take_over_is_an_error(tmp_path: Path, student: Any, said: str) -> None:
    """None there, other outputs than the teacher's, other inputs, no module."""
    step = Step.model_validate({"architecture": {}})
    with pytest.raises(WorkloadError, match=said):
        run_step(first_student(cnn(8)), cnn(8), step, workload(student=student), seed=0, work_dir=tmp_path)


def test_a_student_field_of_another_type_is_an_error() -> None:
    """The workload says at once what it was given."""
    with pytest.raises(WorkloadError, match="student is int; give a"):
        workload(student=3)


def test_the_pipeline_caches_and_resumes_a_students_steps(tmp_path: Path) -> None:
    """architecture, weight_distill and distill by a recipe: cut off and run again, then found done; same weights."""
    from edgekit.pipeline.events import StageEvent
    from edgekit.pipeline.learning import WorkloadIdentity, learn
    from edgekit.pipeline.run import Context, RunOptions
    from edgekit.pipeline.workspace import Workspace

    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(128, 10)).astype(np.float32))
    recipe = Recipe.model_validate({
        "name": "r", "workload": "w", "student": [
            {"architecture": {}},
            {"weight_distill": {"generator_epochs": 1, "epochs": 1, **FAST}},
            {"distill": {"epochs": 2, "teacher_outputs": "a.npy", **FAST}},
        ],
    })  # fmt: skip

    def run(folder: str, stop_at: str | None = None) -> Any:
        def observe(event: StageEvent) -> None:
            if event.stage == stop_at and event.status == "progress" and "epoch 2" in event.text:
                raise KeyboardInterrupt

        context = Context(
            recipe=recipe, workload=workload(), workspace=Workspace(tmp_path / folder),
            identity=WorkloadIdentity(source="s", params={}, train="t", calibration=None, evaluation="e"),
            options=RunOptions(workspace=tmp_path / folder, base=tmp_path, observe=observe),
        )  # fmt: skip
        return learn(context), [stage.status for stage in context.stages]

    whole, _ = run("a")
    with pytest.raises(KeyboardInterrupt):
        run("b", stop_at="3-distill")
    again, states = run("b")
    assert states == ["cached", "cached", "cached", "done"]
    assert weights_digest(again.student.module) == weights_digest(whole.student.module)
    assert (again.student.base, [s.step for s in again.student.lineage]) == (
        "student", ["architecture", "weight_distill", "distill"],
    )  # fmt: skip
    assert run("b")[1] == ["cached"] * 4
    np.save(tmp_path / "a.npy", np.ones((128, 10), np.float32))
    assert run("b")[1] == ["cached", "cached", "cached", "done"]


# ---- generations and exits ---------------------------------------------------------------------------------------


def test_each_generation_is_new_and_taught_by_the_last(tmp_path: Path) -> None:
    """Other weights each time, the same for the same seed; a finished run is found done."""
    options = BornAgainOptions(generations=2, epochs=1, **FAST)
    model = cnn(4)
    first, second = born_again(model, digits(0, 64), options, work_dir=tmp_path)
    assert len({weights_digest(m) for m in (model, first, second)}) == 3
    steps: list[Any] = []
    again = born_again(model, digits(0, 64), options, work_dir=tmp_path, on_progress=steps.append)
    assert [weights_digest(m) for m in again] == [weights_digest(m) for m in (first, second)]
    assert not steps


def test_new_weights_are_drawn_by_the_layers_themselves() -> None:
    """Every parameter and statistic is new; a parameter that no layer can draw is an error that names it."""
    old = cnn(4)
    with torch.no_grad():
        for value in old.state_dict().values():
            value.fill_(7)
    fresh = reinitialised(old, seed=0)
    assert not any(bool((value == 7).any()) for value in fresh.state_dict().values())
    assert weights_digest(fresh) == weights_digest(reinitialised(old, seed=0))
    assert weights_digest(fresh) != weights_digest(reinitialised(old, seed=1))

    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))

    with pytest.raises(WorkloadError, match=r"'1' holds parameters \(token\).*Token has no reset_parameters"):
        reinitialised(nn.Sequential(nn.Linear(2, 2), Token()), seed=0)


@pytest.mark.parametrize("method", ["born_again", "weight_distill"])
def test_zeros_are_not_lost_without_a_word(tmp_path: Path, method: str) -> None:
    """Steps that make all weights anew refuse a student whose zeros are to be kept."""
    sparse = Student(module=cnn(8), constraints=(WeightConstraint(parameter="0.weight", kind="sparse"),))
    with pytest.raises(UserError, match="zeros or shared values would be lost"):
        run_step(sparse, cnn(8), Step.model_validate({method: {}}), workload(), seed=0, work_dir=tmp_path)


def test_exits_teach_and_are_gone(tmp_path: Path) -> None:
    """The trained model has the modules it had, other weights than by its labels alone, and no hooks."""
    options = SelfDistillOptions(exits=("0", "3"), deepest="4", epochs=1, **FAST)
    model = cnn(4)
    taught = self_distill(model, digits(0, 64), options, work_dir=tmp_path / "a")
    assert taught.state_dict().keys() == model.state_dict().keys()
    assert not any(module._forward_hooks for module in taught.modules())
    alone = cnn(4)
    fit(alone, CrossEntropy(), digits(0, 64), TrainOptions(epochs=1, **FAST), seed=0, work_dir=tmp_path / "b")
    assert weights_digest(taught) != weights_digest(alone)
    saved = torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)["state_dict"]
    assert any("classifier" in name for name in saved)


def test_an_exits_loss_reaches_what_is_before_it_only() -> None:
    """An exit's gradient goes to the layers in front of it; the output and the deepest feature are not its to move."""
    from edgekit.distill.exits import deep_supervision

    options = SelfDistillOptions(exits=("0",), deepest="4", weight=0.5, **FAST)
    model, batch = cnn(4), digits(0, 8).tensors
    objective = deep_supervision(model, batch[:1], options, seed=0)
    whole = objective.step(model, Batch(inputs=batch[:1], targets=batch[1], indices=torch.arange(8))).loss
    own = objective.loss(model(batch[0]), Batch(inputs=batch[:1], targets=batch[1], indices=torch.arange(8)))
    parameters = [model[0].weight, model[3].weight, model[7].weight]
    early, late, last = torch.autograd.grad(whole - own, parameters)
    # The two cross-entropies of the output cancel: what is left of them is rounding.
    assert float(early.abs().max()) > 1e-4
    assert float(late.abs().max()) < 1e-6
    assert float(last.abs().max()) < 1e-6


def test_exits_fit_sequences_and_vectors() -> None:
    """A transformer's `[B, L, C]` and a flat feature get heads too."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 16),
        nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip
    inputs = torch.randn(32, 5, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, (inputs[:, 0, 0] > 0).long())
    options = SelfDistillOptions(exits=("1.layers.0", "3"), deepest="1.layers.1", epochs=1, **FAST)
    assert weights_digest(self_distill(model, data, options)) != weights_digest(model)


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"features": {"33": "3"}}, "the student has no submodule '33'"),
        ({"features": {"3": "l3"}}, "the teacher has no submodule 'l3'"),
        ({"attention": {"6": "6"}}, r"attention: '6' of the student and '6' of the teacher do not fit: .*positions"),
        ({"relations": {"pairs": {"0": "conv"}}}, "the teacher has no submodule 'conv'"),
    ],
)
def test_pairs_that_do_not_exist_or_fit_are_errors(options: dict[str, Any], said: str) -> None:
    """Before anything is trained, by name."""
    with pytest.raises(WorkloadError, match=said):
        distill(cnn(4), cnn(8), digits(0, 64), DistillOptions(**options, **FAST))


def test_outputs_of_other_shapes_are_an_error_at_once() -> None:
    """Both shapes are told, and no step is made."""
    steps: list[Any] = []
    with pytest.raises(WorkloadError, match=r"teacher gives \(2, 7\) where the student gives \(2, 10\)"):
        distill(cnn(4), cnn(8, classes=7), digits(0, 64), DistillOptions(**FAST), on_progress=steps.append)
    assert not steps


@pytest.mark.parametrize("with_unlabelled", [False, True])
def test_labels_outside_the_classes_are_an_error(with_unlabelled: bool) -> None:
    """A label 10 of ten classes, also among samples that have none."""
    images, labels = digits(0, 32).tensors
    wrong = TensorDataset(images, torch.where(labels == 9, 10, labels))
    extra = digits(32, 64) if with_unlabelled else None
    with pytest.raises(WorkloadError, match="targets from 0 to 10, but the model gives 10 classes"):
        distill(cnn(4), cnn(8), wrong, DistillOptions(**FAST | {"batch_size": 64}), unlabelled=extra)


def test_a_loss_that_is_not_finite_stops_and_says_the_step(tmp_path: Path) -> None:
    """A teacher that goes to NaN in the second epoch: the run stops there, and the first epoch's checkpoint stays."""

    class Sick(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.healthy = cnn(8)
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            value: torch.Tensor = self.healthy(x)
            return value if self.calls <= 4 else value * torch.nan

    # One call to compare shapes, then two batches an epoch: the fifth call is the fourth step's.
    with pytest.raises(UserError, match=r"the loss is nan at step 4 of 4 .*"):
        distill(cnn(4), Sick(), digits(0, 64), DistillOptions(epochs=2, **FAST), work_dir=tmp_path, augment=lambda x: x)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in kept["state_dict"].values())


def test_nothing_to_learn_from_is_an_error() -> None:
    """No data at all; unlabelled data with weight 0; an exit named twice."""
    with pytest.raises(WorkloadError, match="neither train nor unlabelled"):
        distill(cnn(4), cnn(8), None, DistillOptions(**FAST))
    with pytest.raises(WorkloadError, match="nothing to learn from samples without labels"):
        distill(cnn(4), cnn(8), None, DistillOptions(weight=0, **FAST), unlabelled=digits(0, 32))
    with pytest.raises(UserError, match="name a module twice"):
        self_distill(cnn(4), digits(0, 32), SelfDistillOptions(exits=("0", "0"), **FAST))


def test_recipes_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    """The short form of pairs; features of stored outputs; a misspelt option, each at its line."""

    def read(step: str) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(f"schema_version: 1\nname: r\nworkload: w.py\nstudent:\n  - {step}\n")
        return load_recipe(path)

    options = read("distill: {features: {layer1: layer2}, relations: {angle: 0}}").student[0].distill
    assert options is not None
    assert options.features is not None
    assert options.features.pairs == {"layer1": "layer2"}
    for step, said in (
        ("distill: {teacher_outputs: a.npy, features: {a: b}}", "teacher_outputs holds no features"),
        ("distill: {relations: {angle: 0, distance: 0}}", "nothing is distilled"),
        ("distill: {featurs: {a: b}}", "did you mean 'features'"),
        ("born_again: {teacher_outputs: a.npy}", "taught by the one before"),
        ("self_distill: {}", "exits"),
        ("weight_distill: {epochs: 5, warmup_epochs: 2, generator_epochs: 2}", "less than generator_epochs"),
        ("architecture: {weights: old}", "weights"),
    ):
        with pytest.raises(RecipeError, match=said) as caught:
            read(step)
        assert "recipe.yaml:5" in str(caught.value)


def test_the_plain_options_are_still_what_they_were(tmp_path: Path) -> None:
    """`distill: {epochs, temperature, weight}` alone gives Hinton's loss and no terms."""
    with plain_lesson(train=digits(0, 32), work_dir=tmp_path) as lesson:
        material = lesson.data(with_unlabelled=True, what="distillation")
        objective = distillation(cnn(4), cnn(8), material, DistillOptions(temperature=2.0, weight=0.3), lesson)
    assert isinstance(material, LessonData)
    assert objective.terms == ()
    images, labels = digits(0, 32).tensors
    outputs = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    expected = distillation_loss(
        outputs, torch.from_numpy(evaluate_outputs(cnn(8), digits(0, 32))[0]), labels, temperature=2.0, weight=0.3
    )
    batch = Batch(inputs=(images,), targets=labels, indices=torch.arange(32))
    torch.testing.assert_close(objective.loss(outputs, batch), expected)
    assert dataclasses.replace(objective, responses=None).key != objective.key
