"""Quantization-aware training of a student: resumed to the same bits, kept without pickle, refused where it cannot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

pytest.importorskip("torchao")

import edgekit
from edgekit.compress.qat import train_qat, trained_graph, trained_state
from edgekit.compress.qat_options import TRAINED_BACKENDS, QatOptions, backend_trained_for
from edgekit.compress.quantize import QAT_BACKENDS
from edgekit.compress.steps import run_step
from edgekit.compress.storage import load_student, save_student
from edgekit.compress.student import Student, WeightConstraint
from edgekit.errors import ArtifactError, UserError, WorkloadError
from edgekit.recipe import Recipe, Step, TrainOptions
from edgekit.train import TrainProgress, weights_digest

EXAMPLE = (torch.zeros(1, 1, 8, 8),)
OPTIONS = QatOptions(epochs=2, batch_size=40, weight=0, threads=1)
"""200 digits: 5 steps an epoch, 10 in all, ranges fixed for the last 3."""


def digits(count: int = 200) -> TensorDataset:
    from sklearn.datasets import load_digits

    found = load_digits()
    return TensorDataset(
        torch.tensor(found.images[:count] / 16.0, dtype=torch.float32)[:, None], torch.tensor(found.target[:count])
    )


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    return trained_state(train_qat(net(), EXAMPLE, digits(), OPTIONS, backend="onnx", seed=3, work_dir=folder))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stop", [6, 9], ids=["while ranges are observed", "after they were fixed"])
def test_resumed_training_ends_with_the_same_bits(
    uninterrupted: dict[str, Tensor], tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and ranges are those of an uninterrupted run, wherever it was cut off and whatever the observers do."""
    from edgekit.compress import qat

    def checkpointing(*args: object, **kwargs: object) -> object:
        return fit(*args, checkpoint_seconds=0.0, **kwargs)  # type: ignore[arg-type]

    fit = qat.fit
    monkeypatch.setattr(qat, "fit", checkpointing)

    def interrupt(progress: TrainProgress) -> None:
        if progress.step == stop:
            raise KeyboardInterrupt

    def run(on_progress: object) -> dict[str, Tensor]:
        graph = train_qat(
            net(), EXAMPLE, digits(), OPTIONS, backend="onnx", seed=3, work_dir=tmp_path, on_progress=on_progress  # type: ignore[arg-type]
        )  # fmt: skip
        return trained_state(graph)

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    assert (tmp_path / "last.ckpt").is_file()
    steps: list[int] = []
    resumed = run(lambda progress: steps.append(progress.step))
    assert steps[0] > 1  # it did not begin anew
    assert same(uninterrupted, resumed)


def test_ranges_move_until_they_are_fixed(tmp_path: Path) -> None:
    """Fixed nearly from the start, ranges of activations are those of the first batches; else they follow training."""

    def scales(fixed: float) -> Tensor:
        options = OPTIONS.model_copy(update={"fixed_ranges": fixed})
        folder = tmp_path / str(fixed)
        state = trained_state(train_qat(net(), EXAMPLE, digits(), options, backend="onnx", seed=3, work_dir=folder))
        return torch.cat([v for name, v in state.items() if name.endswith(".scale") and v.numel() == 1])

    early, late = scales(0.9), scales(0.0)
    assert early.shape == late.shape
    assert not torch.equal(early, late)


def test_a_graph_is_rebuilt_from_its_state(uninterrupted: dict[str, Tensor]) -> None:
    """Prepared again from the float module and given the state, it answers to the bit; another state is refused."""
    graph = trained_graph(net(), EXAMPLE, "onnx", uninterrupted)
    assert same(trained_state(graph), uninterrupted)
    inputs = digits()[:50][0]
    before = graph(inputs)
    graph.train()  # its ranges stay where they are
    assert torch.equal(graph(5 * inputs).isfinite(), torch.ones(50, 10, dtype=torch.bool))
    assert torch.equal(graph(inputs), before)
    wrong = {**uninterrupted, "nothing.of.it": torch.zeros(1)}
    with pytest.raises(ArtifactError, match="nothing"):
        trained_graph(net(), EXAMPLE, "onnx", wrong)


def test_trained_weights_are_stored_beside_the_student(uninterrupted: dict[str, Tensor], tmp_path: Path) -> None:
    """Safetensors only; a student that lost the file, or names a backend that is none, is refused."""
    save_student(Student(module=net(), trained={"onnx": uninterrupted}), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "student.json", "trained.onnx.safetensors", "weights.safetensors"
    ]  # fmt: skip
    loaded = load_student(tmp_path, net(), EXAMPLE)
    assert same(dict(loaded.trained["onnx"]), uninterrupted)
    record = json.loads((tmp_path / "student.json").read_text())
    (tmp_path / "student.json").write_text(json.dumps(record | {"trained": ["../../etc/passwd"]}))
    with pytest.raises(ArtifactError, match="no backend to train for"):
        load_student(tmp_path, net(), EXAMPLE)
    (tmp_path / "student.json").write_text(json.dumps(record))
    (tmp_path / "trained.onnx.safetensors").write_bytes(b"cut short")
    with pytest.raises(ArtifactError, match=r"trained\.onnx\.safetensors"):
        load_student(tmp_path, net(), EXAMPLE)


def test_zeros_of_a_sparse_student_stay_zero(tmp_path: Path) -> None:
    """A pruned weight is zero in what was trained, batch normalization folded into it or not; the others move."""
    module = net()
    with torch.no_grad():
        module[0].weight[:4] = 0
        module[6].weight[:, ::2] = 0
    constraints = [WeightConstraint(parameter=name, kind="sparse") for name in ("0.weight", "6.weight")]
    graph = train_qat(
        module, EXAMPLE, digits(), OPTIONS, backend="onnx", seed=0, work_dir=tmp_path, constraints=constraints
    )
    trained = dict(graph.named_parameters())
    assert torch.equal(trained["0.weight"] == 0, module[0].weight == 0)
    assert torch.equal(trained["6.weight"] == 0, module[6].weight == 0)
    assert not torch.equal(trained["6.weight"], module[6].weight)


def workload(**changes: object) -> edgekit.Workload:
    given = edgekit.Workload(
        name="digits", model=net(), example_inputs=EXAMPLE, train=digits(), evaluation=digits(100), data_name="digits"
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def test_the_step_leaves_the_float_student_alone(tmp_path: Path) -> None:
    """`qat` trains beside it, towards the teacher; a later step that changes the float weights drops the trained."""
    step = Step(qat=QatOptions(backends=("onnx",), epochs=1, batch_size=40, threads=1))
    first = Student(module=net())
    second = run_step(first, net(), step, workload(), seed=0, work_dir=tmp_path / "1")
    assert weights_digest(second.module) == weights_digest(first.module)
    assert set(second.trained) == {"onnx"}
    assert "towards the teacher with weight 0.7" in second.lineage[-1].summary
    after = second.lineage[-1].after
    assert after is not None
    assert after.samples == 100
    finetune = Step(finetune=TrainOptions(epochs=1, batch_size=40, threads=1))
    third = run_step(second, net(), finetune, workload(), seed=0, work_dir=tmp_path / "2")
    assert third.trained == {}


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    """No training data, no layer that is rounded: told before anything is trained."""
    step = Step(qat=QatOptions(backends=("onnx",)))
    with pytest.raises(WorkloadError, match="quantization-aware training needs training data"):
        run_step(Student(module=net()), net(), step, workload(train=None), seed=0, work_dir=tmp_path)
    with pytest.raises(UserError, match="rounds nothing"):
        train_qat(
            nn.Sequential(nn.Flatten(), nn.Softplus()), EXAMPLE, digits(), OPTIONS, backend="onnx", seed=0,
            work_dir=tmp_path,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("qat", "said"),
    [
        ({"backends": ["tflit"]}, "did you mean 'tflite'"),
        ({"backends": ["onnx", "onnx"]}, "twice"),
        ({"backends": []}, "no backend"),
        ({"weight": 2}, "less than or equal to 1"),
    ],
)
def test_options_that_cannot_be(qat: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        QatOptions.model_validate(qat)


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({"name": "a", "workload": "w", **changes})


def test_a_recipe_trains_last_and_for_what_it_converts_to() -> None:
    assert recipe(student=[{"qat": {}}], convert={"to": ["onnx", "tflite-micro"]}).trained_backends == (
        "onnx", "tflite"
    )  # fmt: skip
    with pytest.raises(ValueError, match="'prune' behind it"):
        recipe(student=[{"qat": {}}, {"prune": {}}])
    with pytest.raises(ValueError, match="can train for none"):
        recipe(student=[{"qat": {}}], convert={"to": ["onnx-tf"]})
    with pytest.raises(ValueError, match="sense"):
        recipe(student=[{"sense": {"ratio": 0.5}}, {"qat": {}}])


def test_backends_are_named_alike_everywhere() -> None:
    assert set(TRAINED_BACKENDS) == set(QAT_BACKENDS)
    assert backend_trained_for("tflite-micro") == "tflite"
    assert backend_trained_for("onnx-tf") is None
