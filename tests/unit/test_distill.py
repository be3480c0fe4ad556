"""Response distillation: the loss against numbers worked out by hand, and what training with it brings about."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from edgekit.distill.response import (
    ResponseDistillation,
    distillation_loss,
    response_distillation,
    teacher_responses,
)
from edgekit.errors import WorkloadError
from edgekit.recipe import DistillOptions, TrainOptions
from edgekit.train import Batch, CrossEntropy, evaluate_outputs, fit, weights_digest


def digits(start: int, stop: int) -> TensorDataset:
    """scikit-learn's 8x8 digits, flat: real data that ships in a package."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return TensorDataset(
        torch.tensor(bunch.data[start:stop] / 16.0, dtype=torch.float32), torch.tensor(bunch.target[start:stop])
    )


def mlp(hidden: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def test_the_loss_is_hintons() -> None:
    """Two classes, T=2, weight 0.25: the loss is 0.25·T²·KL + 0.75·CE, worked out with math alone."""
    temperature, weight = 2.0, 0.25
    student, teacher = (1.0, 0.0), (0.0, 3.0)  # the true class is 1

    def softmax(a: float, b: float) -> tuple[float, float]:
        total = math.exp(a) + math.exp(b)
        return math.exp(a) / total, math.exp(b) / total

    p = softmax(*(v / temperature for v in teacher))
    q = softmax(*(v / temperature for v in student))
    kl = sum(pi * math.log(pi / qi) for pi, qi in zip(p, q, strict=True))
    expected = weight * temperature**2 * kl + (1 - weight) * -math.log(softmax(*student)[1])
    loss = distillation_loss(
        torch.tensor([student]), torch.tensor([teacher]), torch.tensor([1]), temperature=temperature, weight=weight
    )
    # A dozen float32 operations on values of order 1, each good to 6e-8.
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_a_mean_over_the_batch() -> None:
    """Twice the same rows give the same loss."""
    torch.manual_seed(0)
    student, teacher, targets = torch.randn(4, 10), torch.randn(4, 10), torch.arange(4)
    once = distillation_loss(student, teacher, targets, temperature=4, weight=0.7)
    twice = distillation_loss(student.repeat(2, 1), teacher.repeat(2, 1), targets.repeat(2), temperature=4, weight=0.7)
    torch.testing.assert_close(once, twice)


def test_temperature_squared_keeps_the_gradient_scale() -> None:
    """With small logits the soft term's gradient is the same at T=10 and T=20 (Hinton et al., eq. 4)."""
    torch.manual_seed(0)
    teacher = 0.1 * torch.randn(8, 10)
    gradients = []
    for temperature in (10.0, 20.0):
        student = torch.zeros(8, 10, requires_grad=True)
        distillation_loss(student, teacher, torch.zeros(8).long(), temperature=temperature, weight=1.0).backward()
        assert student.grad is not None
        gradients.append(student.grad)
    # Eq. 4 is first order: the next term is logits/T, here 0.1·3/10 at most.
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.03, atol=1e-5)


def test_a_perfect_student_has_no_soft_loss() -> None:
    """KL of equal outputs is 0, at weight 1 so is the loss; at weight 0 it is plain cross-entropy."""
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 10), torch.arange(4)
    assert float(distillation_loss(logits, logits, targets, temperature=4, weight=1)) == pytest.approx(0, abs=1e-6)
    hard = distillation_loss(logits, -logits, targets, temperature=4, weight=0)
    torch.testing.assert_close(hard, nn.functional.cross_entropy(logits, targets))


def divergence(student: nn.Module, teacher: nn.Module) -> float:
    """Mean KL(teacher ‖ student) on held-out digits."""
    answers = [torch.from_numpy(evaluate_outputs(m, digits(1200, 1797))[0]).log_softmax(1) for m in (student, teacher)]
    return float(nn.functional.kl_div(answers[0], answers[1], reduction="batchmean", log_target=True))


def test_distillation_brings_the_student_nearer_to_the_teacher_than_labels_do(tmp_path: Path) -> None:
    """What distillation optimises: after equal training the student's answers are nearer the teacher's."""
    data = digits(0, 1200)
    options = TrainOptions(epochs=15, batch_size=64, learning_rate=1e-2, threads=1)
    teacher = fit(mlp(128), CrossEntropy(), data, options, seed=1, work_dir=tmp_path / "teacher").module
    distill = DistillOptions(epochs=10, batch_size=64, learning_rate=1e-2, threads=1, temperature=2.0, weight=0.9)
    objective = response_distillation(teacher, data, distill, work_dir=tmp_path, augmented=False)
    distilled = fit(mlp(12, 1), objective, data, distill, seed=1, work_dir=tmp_path / "distilled").module
    plain = fit(mlp(12, 1), CrossEntropy(), data, distill, seed=1, work_dir=tmp_path / "plain").module
    assert divergence(distilled, teacher) < 0.8 * divergence(plain, teacher)


def test_stored_responses_and_running_the_teacher_are_the_same_objective(tmp_path: Path) -> None:
    """Without augmentation the loss by stored responses equals the loss with the teacher run on the batch."""
    data, teacher = digits(0, 100), mlp(32)
    options = DistillOptions()
    stored = response_distillation(teacher, data, options, work_dir=tmp_path, augmented=False)
    live = response_distillation(teacher, data, options, work_dir=tmp_path, augmented=True)
    assert stored.responses is not None
    assert live.responses is None
    indices = torch.tensor([5, 93, 0])
    batch = Batch(inputs=(data.tensors[0][indices],), targets=data.tensors[1][indices], indices=indices)
    outputs = torch.randn(3, 10)
    # Sums of 64 and 32 float32 products in another order: 96 · 6e-8, times T² = 16 in the loss.
    torch.testing.assert_close(stored.loss(outputs, batch), live.loss(outputs, batch), rtol=1e-4, atol=1e-4)
    assert stored.key != live.key


def test_responses_are_kept_and_keyed_by_the_teacher(tmp_path: Path) -> None:
    """The same teacher is not run twice; another teacher does not get the first one's answers."""
    data = digits(0, 50)
    first = teacher_responses(mlp(32), data, work_dir=tmp_path)
    (file,) = tmp_path.glob("teacher-*.npy")
    np.save(file, first + 1)
    np.testing.assert_array_equal(teacher_responses(mlp(32), data, work_dir=tmp_path), first + 1)
    assert not np.array_equal(teacher_responses(mlp(32, seed=9), data, work_dir=tmp_path), first + 1)
    file.write_bytes(file.read_bytes()[:200])
    np.testing.assert_array_equal(teacher_responses(mlp(32), data, work_dir=tmp_path), first)


def test_the_teacher_is_neither_trained_nor_checkpointed(tmp_path: Path) -> None:
    """Distillation leaves the teacher's weights alone and out of the student's checkpoint."""
    data, teacher = digits(0, 200), mlp(64)
    before = weights_digest(teacher)
    options = DistillOptions(epochs=1, batch_size=50, threads=1)
    objective = response_distillation(teacher, data, options, work_dir=tmp_path, augmented=True)
    fit(mlp(8), objective, data, options, seed=0, work_dir=tmp_path / "fit")
    assert weights_digest(teacher) == before
    saved = torch.load(tmp_path / "fit" / "last.ckpt", weights_only=True)["state_dict"]
    assert sum(v.numel() for v in saved.values()) == sum(p.numel() for p in mlp(8).parameters())


def test_a_teacher_of_other_classes_is_an_error() -> None:
    """Teacher and student must have the same classes; the message shows both shapes."""
    objective = ResponseDistillation(
        options=DistillOptions(), teacher=mlp(4), teacher_digest="x", responses=torch.zeros(5, 7)
    )
    batch = Batch(inputs=(torch.zeros(2, 64),), targets=torch.tensor([0, 1]), indices=torch.tensor([3, 4]))
    with pytest.raises(WorkloadError, match=r"\(2, 7\) where the student gives \(2, 10\)"):
        objective.loss(torch.zeros(2, 10), batch)
