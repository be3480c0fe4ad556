"""Pretraining as a stage of a recipe: cached, resumed, told in the report, and the head that training starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.pretrain_models import PatchTransformer, TwoInputs, convnet, digits
from torch import nn
from torch.utils.data import TensorDataset

from edgekit.errors import RecipeError, WorkloadError
from edgekit.pipeline.events import StageEvent
from edgekit.pipeline.learning import _teacher, identify
from edgekit.pipeline.run import Context, RunOptions
from edgekit.pipeline.workspace import Workspace
from edgekit.pretrain import extract_features, linear_probe, set_probe_head
from edgekit.pretrain.data import evenly_spaced, without_labels
from edgekit.recipe import Recipe, TeacherOptions, load_recipe
from edgekit.train import evaluate_outputs, top1_accuracy, weights_digest
from edgekit.workload import LoadedWorkload, Workload, WorkloadSource

PRETRAIN = {
    "method": "simclr", "epochs": 2, "batch_size": 32, "hidden": 16, "projection": 8, "threads": 1,
    "augmentations": ["random_affine"], "logger": "none", "accelerator": "cpu",
}  # fmt: skip
TRAIN = {"epochs": 1, "batch_size": 32, "threads": 1, "logger": "none", "accelerator": "cpu"}


class Watching:
    """Every event; raises KeyboardInterrupt at the `stop`th progress of `stage`."""

    def __init__(self, stage: str = "", stop: int = 0) -> None:
        self.events: list[StageEvent] = []
        self.stage, self.stop = stage, stop

    def __call__(self, event: StageEvent) -> None:
        self.events.append(event)
        told = [e for e in self.events if e.stage == self.stage and e.fraction is not None]
        if self.stop and len(told) == self.stop:
            raise KeyboardInterrupt

    def progressed(self) -> set[str]:
        return {event.stage for event in self.events if event.status == "progress"}


def workload(**more: object) -> Workload:
    plain: dict[str, object] = {
        "name": "digits", "model": convnet, "example_inputs": (torch.zeros(1, 1, 8, 8),),
        "train": digits(0, 96), "evaluation": digits(1000, 1100),
    }  # fmt: skip
    return Workload(**{**plain, **more})  # type: ignore[arg-type]


def context(folder: Path, load: Workload, observe: Watching, **teacher: object) -> Context:
    options = TeacherOptions.model_validate({"pretrain": PRETRAIN, "train": TRAIN, **teacher})
    recipe = Recipe(name="digits", workload="w.py", teacher=options)
    source = WorkloadSource(reference="w.py", module=None, file=None, function="workload")
    loaded = LoadedWorkload(workload=load, source=source, source_sha256="0" * 64)
    return Context(
        recipe=recipe, workload=load, identity=identify(loaded, recipe), workspace=Workspace(folder),
        options=RunOptions(workspace=folder, observe=observe),
    )  # fmt: skip


def test_pretraining_is_a_stage_of_its_own(tmp_path: Path) -> None:
    """It runs before the teacher's, is told with what it was worth, and a second run does nothing."""
    watching = Watching()
    first = _teacher(context(tmp_path, workload(), watching))
    assert [s for s in dict.fromkeys(e.stage for e in watching.events)] == [
        "pretrain", "pretrain-worth", "pretrain-head", "teacher",
    ]  # fmt: skip
    (step,) = first.pretraining
    assert step.step == "pretrain"
    assert "pretrained by simclr for 2 epochs on 96 samples without labels" in step.summary
    assert "nearest neighbours among 96 labelled samples" in step.summary
    again = Watching()
    second = _teacher(context(tmp_path, workload(), again))
    assert again.progressed() == set()
    assert weights_digest(second.student.module) == weights_digest(first.student.module)
    other = Watching()
    _teacher(context(tmp_path, workload(), other, train={**TRAIN, "epochs": 2}))
    assert "pretrain" not in other.progressed()
    assert "teacher" in other.progressed()
    plain = _teacher(context(tmp_path, workload(), Watching(), pretrain=None))
    assert plain.pretraining == ()
    assert weights_digest(plain.student.module) != weights_digest(first.student.module)


def test_a_run_cut_off_in_pretraining_ends_with_the_same_teacher(tmp_path: Path) -> None:
    """Interrupted in the second epoch and run again, the teacher has the very weights of an undisturbed run."""
    whole = _teacher(context(tmp_path / "a", workload(), Watching()))
    with pytest.raises(KeyboardInterrupt):
        _teacher(context(tmp_path / "b", workload(), Watching("pretrain", stop=5)))
    rest = Watching()
    again = _teacher(context(tmp_path / "b", workload(), rest))
    steps = len([e for e in rest.events if e.stage == "pretrain" and e.fraction is not None])
    assert 1 <= steps <= 3  # of 6; a checkpoint within the second epoch leaves fewer
    assert weights_digest(again.student.module) == weights_digest(whole.student.module)


def test_unlabelled_data_come_before_the_training_data(tmp_path: Path) -> None:
    """`unlabelled` is what is pretrained on where there is any, and keys the stage."""
    images = digits(200, 420).tensors[0]
    run = _teacher(context(tmp_path, workload(unlabelled=TensorDataset(images)), Watching()))
    assert "on 220 samples without labels" in run.pretraining[0].summary
    more = Watching()
    _teacher(context(tmp_path, workload(unlabelled=TensorDataset(images[:200])), more))
    assert "pretrain" in more.progressed()


def test_a_collapsed_representation_is_a_warning_of_the_report(tmp_path: Path) -> None:
    same = TensorDataset(digits(0, 1).tensors[0].repeat(64, 1, 1, 1))
    made = context(tmp_path, workload(unlabelled=same), Watching())
    _teacher(made)
    assert any(w.where == "pretrain" and "collapsed" in w.text for w in made.warnings)


def test_a_recipe_says_what_goes_together(tmp_path: Path) -> None:
    """Pretraining alone teaches no classes; keys and names are checked with their line before torch is loaded."""
    recipe = tmp_path / "recipe.yaml"

    def read(teacher: str) -> Recipe:
        recipe.write_text(f"schema_version: 1\nname: a\nworkload: w.py\nteacher: {teacher}\n")
        return load_recipe(recipe)

    with pytest.raises(RecipeError, match="'pretrain' teaches no classes"):
        read("{pretrain: {method: simclr}}")
    with pytest.raises(RecipeError, match="teaches no classes"):
        read("{pretrain: {}, weights: a.safetensors}")
    with pytest.raises(RecipeError, match=r":4: teacher.pretrain.method"):
        read("{pretrain: {method: simclear}, train: {}}")
    with pytest.raises(RecipeError, match="did you mean 'gaussian_blur'"):
        read("{pretrain: {augmentations: [gausian_blur]}, train: {}}")
    with pytest.raises(RecipeError, match="did you mean 'temperature'"):
        read("{pretrain: {temprature: 0.1}, train: {}}")
    found = read("{pretrain: {method: byol, augmentations: [jitter, {noise: {snr_db: [5, 20]}}]}, train: {}}")
    assert found.teacher.pretrain is not None
    assert found.teacher.pretrain.augmentations == ("jitter", {"noise": {"snr_db": [5, 20]}})


def test_pretraining_without_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="pretraining needs training data, and train is None"):
        _teacher(context(tmp_path, workload(train=None), Watching()))


def test_the_probes_weights_become_the_head() -> None:
    """The model's own logits then are the probe's: same accuracy, and the representation is untouched."""
    torch.manual_seed(0)
    net = convnet()
    before, _ = extract_features(net, digits(0, 20))
    assert set_probe_head(net, digits(0, 300)) == "9"
    after, _ = extract_features(net, digits(0, 20))
    assert np.array_equal(before, after)
    probe = linear_probe(net, digits(0, 300), digits(300, 600))
    assert top1_accuracy(*evaluate_outputs(net, digits(300, 600))) == pytest.approx(probe.accuracy, abs=0.01)
    assert net.training


def test_a_head_of_more_classes_than_are_labelled_names_none_of_them() -> None:
    """Two labelled classes of ten: the other eight are never the answer."""
    images, targets = digits(0, 600).tensors
    two = TensorDataset(images[targets < 2], targets[targets < 2])
    net = PatchTransformer()
    with pytest.raises(WorkloadError, match="targets from 10 to 11, but 'head' gives 10"):
        set_probe_head(net, TensorDataset(two.tensors[0], two.tensors[1] + 10))
    set_probe_head(net, two)
    outputs, truth = evaluate_outputs(net, two)
    assert set(outputs.argmax(axis=1)) <= {0, 1}
    assert top1_accuracy(outputs, truth) > 0.9


def test_a_head_that_is_no_linear_layer_is_left_alone(tmp_path: Path) -> None:
    """A convolution as head: refused by name in Python, a warning in a recipe, and training goes on."""

    def convolutional() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    with pytest.raises(WorkloadError, match="'2', the model's last layer, is Conv2d over positions"):
        set_probe_head(convolutional(), digits(0, 40))
    made = context(tmp_path, workload(model=convolutional), Watching())
    assert _teacher(made).student.module[0].weight.shape == (8, 1, 3, 3)  # type: ignore[index]
    assert any("the head starts from random weights" in w.text for w in made.warnings)


def test_a_tensor_data_set_of_several_inputs_is_told_apart(tmp_path: Path) -> None:
    """Columns (image, facts, label): both inputs reach the model, the label does not."""
    images, targets = digits(0, 64).tensors
    data = TensorDataset(images, torch.ones(64, 3), targets)
    assert without_labels(digits(0, 64)) is not None
    ((image, facts),) = without_labels(data, inputs=2)[3]
    assert torch.equal(image, images[3])
    assert facts.shape == (3,)
    load = workload(
        model=TwoInputs, train=data, evaluation=data, example_inputs=(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3))
    )
    assert _teacher(context(tmp_path, load, Watching())).pretraining[0].summary.startswith("pretrained by simclr")


def test_evenly_spaced_samples_keep_their_labels() -> None:
    data = digits(0, 100)
    few = evenly_spaced(data, 10)
    assert len(few) == 10
    assert torch.equal(few[9][0], data[99][0])
    assert int(few[9][1]) == int(data[99][1])
    assert evenly_spaced(data, 100) is data
