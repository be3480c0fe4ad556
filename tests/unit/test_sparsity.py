"""Pruning of single weights and weight sharing: what becomes zero or equal, and that later training keeps it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.utils.data import TensorDataset

from edgekit.compress.codebooks import codebook_of
from edgekit.compress.effects import TeacherReference
from edgekit.compress.prune import prune
from edgekit.compress.share import share
from edgekit.compress.sparsify import cubic_sparsity, sparsify, sparsity_of
from edgekit.compress.steps import run_step
from edgekit.compress.storage import load_student, save_student
from edgekit.compress.student import Student, WeightConstraint
from edgekit.compress.weight_options import ShareOptions, SparsifyOptions
from edgekit.errors import RecipeError, WorkloadError
from edgekit.recipe import PruneOptions, Step
from edgekit.train import CrossEntropy, fit, weights_digest
from edgekit.training.constraints import constrained, kept_constraints
from edgekit.training.fitting import TrainProgress
from edgekit.workload import Workload


def digits(start: int, stop: int) -> TensorDataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return TensorDataset(
        torch.tensor(bunch.data[start:stop] / 16.0, dtype=torch.float32), torch.tensor(bunch.target[start:stop])
    )


def mlp(hidden: int = 32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def workload(module: nn.Module) -> Workload:
    return Workload(
        name="digits",
        model=module,
        example_inputs=(torch.zeros(1, 64),),
        calibration=digits(0, 100),
        evaluation=digits(1500, 1700),
        train=digits(0, 512),
    )


class Mixed(nn.Module):
    """Convolution, recurrent layer, attention, embedding and a bare parameter: what a step takes of each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.rnn = nn.LSTM(16, 12, batch_first=True)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.positions = nn.Parameter(torch.randn(1, 10, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.rnn(self.norm(self.conv(x)).transpose(1, 2))
        y = y + self.positions
        return self.head(self.attention(y, y, y, need_weights=False)[0].mean(1))


def zeros(module: nn.Module, name: str) -> float:
    return float((dict(module.named_parameters())[name] == 0).float().mean())


def test_global_magnitude_takes_the_smallest_of_all_layers() -> None:
    """Exactly the asked share is zero, and no weight that stays is smaller than one that went."""
    model = mlp()
    sparse = sparsify(Student(module=model), SparsifyOptions(sparsity=0.75))
    before = torch.cat([model[0].weight.reshape(-1), model[2].weight.reshape(-1)]).abs()
    after = torch.cat([sparse.module[0].weight.reshape(-1), sparse.module[2].weight.reshape(-1)])
    assert int((after == 0).sum()) == round(0.75 * after.numel())
    assert before[after != 0].min() >= before[after == 0].max()
    assert torch.equal(after[after != 0].abs(), before[after != 0])
    assert sparsity_of(sparse) == pytest.approx(0.75, abs=1 / after.numel())
    assert not any(name.endswith("_orig") for name, _ in sparse.module.named_parameters())
    assert zeros(model, "0.weight") == 0  # the student given is left as it is


def test_each_layer_has_its_share_and_its_own_number() -> None:
    """scope: layer prunes each alike; `layers` and `exclude` make exceptions, by glob; biases only when included."""
    student = Student(module=Mixed())
    options = SparsifyOptions(sparsity=0.5, scope="layer", layers={"rnn.weight_hh*": 0.9}, exclude=("head",))
    module = sparsify(student, options).module
    assert zeros(module, "conv.weight") == pytest.approx(0.5)
    assert zeros(module, "rnn.weight_ih_l0") == pytest.approx(0.5, abs=0.002)
    assert zeros(module, "rnn.weight_hh_l0") == pytest.approx(0.9, abs=0.002)
    assert zeros(module, "attention.in_proj_weight") == pytest.approx(0.5, abs=0.002)
    assert zeros(module, "head.weight") == zeros(module, "positions") == zeros(module, "conv.bias") == 0
    with_bias = sparsify(student, options.model_copy(update={"include": ("conv.bias", "positions")})).module
    assert zeros(with_bias, "conv.bias") == zeros(with_bias, "positions") == pytest.approx(0.5)


def test_no_layer_dies_in_global_ranking() -> None:
    """A layer of weights far smaller than all others keeps one in a hundred."""
    model = mlp()
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    sparse = sparsify(Student(module=model), SparsifyOptions(sparsity=0.9))
    assert 1 - zeros(sparse.module, "2.weight") == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_n_of_m_holds_in_every_group(pattern: str, caplog: pytest.LogCaptureFixture) -> None:
    """Along the inputs, at most N of M are not zero, and they are the largest; a layer it does not fit stays dense."""
    kept, group = map(int, pattern.split(":"))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 10))
    with caplog.at_level(logging.WARNING):
        sparse = sparsify(Student(module=model), SparsifyOptions(pattern=pattern)).module
    assert "0.weight stays dense" in caplog.text
    assert bool((sparse[0].weight != 0).all())
    for layer in (1, 3):
        weight = sparse[layer].weight.movedim(1, -1).reshape(-1, group)
        old = model[layer].weight.movedim(1, -1).reshape(-1, group).abs()
        assert bool(((weight != 0).sum(1) == kept).all())
        assert torch.equal((weight != 0), old >= old.topk(kept, dim=1).values[:, -1:])


def test_a_pattern_that_fits_nothing_is_an_error() -> None:
    with pytest.raises(RecipeError, match="no layer has a multiple of 4"):
        sparsify(Student(module=nn.Conv2d(3, 8, 3)), SparsifyOptions(pattern="2:4"))


def test_the_schedule_is_zhu_and_guptas() -> None:
    """0 at the start, the target at the end, 7/8 of the way at half time, and it never falls."""
    assert cubic_sparsity(0.8, 0) == 0
    assert cubic_sparsity(0.8, 1) == 0.8
    assert cubic_sparsity(0.8, 0.5) == pytest.approx(0.7)
    assert cubic_sparsity(0.8, 0.5, initial=0.4) == pytest.approx(0.75)
    steps = [cubic_sparsity(0.9, i / 10) for i in range(11)]
    assert steps == sorted(steps)


@pytest.mark.parametrize("field", ["exclude", "include"])
def test_a_name_that_matches_nothing_is_an_error_with_the_nearest(field: str) -> None:
    student = Student(module=Mixed())
    with pytest.raises(RecipeError, match=rf"sparsify\.{field}.*'atention'.*did you mean 'attention'"):
        sparsify(student, SparsifyOptions.model_validate({field: ("atention",)}))
    with pytest.raises(RecipeError, match=rf"share\.{field}.*'headd'.*did you mean 'head'"):
        share(student, ShareOptions.model_validate({field: ("headd",)}), seed=0)


def test_a_number_for_a_layer_that_is_not_worked_on_is_an_error() -> None:
    with pytest.raises(RecipeError, match="'norm' names no parameter this step works on"):
        sparsify(Student(module=Mixed()), SparsifyOptions(layers={"norm": 0.5}))
    with pytest.raises(RecipeError, match="no layer of the model is left"):
        share(Student(module=mlp()), ShareOptions(exclude=("*",)), seed=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pattern": "4:2"}, "0 < N < M"),
        ({"pattern": "2:4", "sparsity": 0.5}, "leave 'sparsity'"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"layers": {"a": 1.5}}, "less than 1"),
        ({"rounds": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SparsifyOptions.model_validate(options)
    with pytest.raises(ValidationError, match="less than or equal to 8"):
        ShareOptions(bits=9)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=200),
    bits=st.integers(2, 8),
    init=st.sampled_from(["linear", "density", "random"]),
)
def test_a_codebook_is_small_and_gives_the_nearest(values: list[float], bits: int, init: str) -> None:
    """At most 2^bits values, ascending; each weight goes to its nearest; few different weights are kept as they are."""
    array = np.array(values, dtype=np.float32)
    book, nearest = codebook_of(array, 2**bits, init=init)  # type: ignore[arg-type]
    assert len(book) <= 2**bits
    assert np.all(np.diff(book) > 0)
    gap = np.abs(array.astype(np.float64) - book[nearest])
    best = np.abs(array.astype(np.float64)[:, None] - book.astype(np.float64)).min(axis=1)
    assert np.all(gap == best)
    if len(np.unique(array)) <= 2**bits:
        assert np.array_equal(book[nearest], array)


def test_k_means_is_as_good_as_scikit_learns() -> None:
    """From the same first centroids: the same sum of squared distances, to the stopping tolerance of the two."""
    from sklearn.cluster import KMeans

    values = np.random.default_rng(0).standard_normal(4000)
    book, nearest = codebook_of(values, 16)
    first = np.linspace(values.min(), values.max(), 16)[:, None]
    theirs = KMeans(16, init=first, n_init=1, tol=0, max_iter=300).fit(values[:, None])
    assert float(((values - book[nearest]) ** 2).sum()) == pytest.approx(theirs.inertia_, rel=1e-4)


def test_without_epochs_nothing_is_trained(tmp_path: Path) -> None:
    """epochs: 0 needs no training data, and leaves every weight that stays as it was."""
    given = replace(workload(mlp()), train=None)
    teacher = TeacherReference(given.model.eval(), given)
    step = Step(sparsify={"sparsity": 0.5, "epochs": 0, "rounds": 3})
    sparse = run_step(Student(module=teacher.module), teacher, step, given, seed=0, work_dir=tmp_path)
    kept = sparse.module[0].weight != 0
    assert torch.equal(sparse.module[0].weight[kept], given.model[0].weight[kept])
    shared = run_step(sparse, teacher, Step(share={"bits": 3, "epochs": 0}), given, seed=0, work_dir=tmp_path)
    assert len(shared.module[0].weight.unique()) <= 9


def test_shared_weights_are_codebooks_and_zeros_stay() -> None:
    """Each layer has at most 2^bits values, zeros of a sparse layer besides; a weight that is NaN is an error."""
    sparse = sparsify(Student(module=mlp()), SparsifyOptions(sparsity=0.6, scope="layer"))
    shared = share(sparse, ShareOptions(bits=4, layers={"2": 2}), seed=0)
    for name, limit in (("0.weight", 16), ("2.weight", 4)):
        weight = dict(shared.module.named_parameters())[name]
        assert 2 <= len(weight[weight != 0].unique()) <= limit
        assert torch.equal(weight == 0, dict(sparse.module.named_parameters())[name] == 0)
    assert {c.kind for c in shared.constraints if c.parameter == "0.weight"} == {"sparse", "shared"}
    broken = mlp()
    with torch.no_grad():
        broken[0].weight[0, 0] = torch.nan
    with pytest.raises(WorkloadError, match=r"0\.weight.*not finite"):
        share(Student(module=broken), ShareOptions(), seed=0)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.5),
}


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_any_optimizer_keeps_zeros_and_shared_values(optimizer: str) -> None:
    """After training: the same zeros, the same groups, equal to the bit, and the centroids have moved."""
    student = share(sparsify(Student(module=mlp()), SparsifyOptions(sparsity=0.7)), ShareOptions(bits=3), seed=0)
    module = student.module
    before = {c.parameter: dict(module.named_parameters())[c.parameter].detach().clone() for c in student.constraints}
    inputs, targets = digits(0, 256).tensors
    steps = OPTIMIZERS[optimizer](module.parameters())
    with constrained(module, student.constraints):
        for _ in range(20):
            steps.zero_grad()
            nn.functional.cross_entropy(module(inputs), targets).backward()
            steps.step()
    for name, old in before.items():
        new = dict(module.named_parameters())[name].detach()
        assert torch.equal(new == 0, old == 0)
        for value in old.unique():
            assert len(new[old == value].unique()) == 1
        assert not torch.equal(new, old)
    assert not module[0].weight._backward_hooks  # nothing is left of it
    steps.zero_grad()
    nn.functional.cross_entropy(module(inputs), targets).backward()
    steps.step()
    assert len(module[0].weight.unique()) > 9


def test_a_centroids_gradient_is_the_mean_of_its_members() -> None:
    """SGD without momentum moves each shared value by the rate times its members' mean gradient."""
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0.5, -1.0, 0.0]]))
    kinds = [WeightConstraint(parameter="weight", kind=kind) for kind in ("sparse", "shared")]
    with constrained(layer, kinds):
        layer(torch.tensor([[1.0, 3.0, 5.0, 7.0]])).sum().backward()
        torch.optim.SGD(layer.parameters(), lr=0.125).step()
    assert layer.weight.tolist() == [[0.25, 0.25, -1.625, 0.0]]


def test_constraints_that_say_nothing_any_more_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """A parameter that vanished, one without zeros, one whose values went apart: each is told once."""
    module = mlp(hidden=64)
    constraints = [
        WeightConstraint(parameter="gone.weight", kind="sparse"),
        WeightConstraint(parameter="0.weight", kind="sparse"),
        WeightConstraint(parameter="0.weight", kind="shared"),
    ]
    with caplog.at_level(logging.WARNING):
        assert kept_constraints(module, constraints) == ()
    assert [m.split(" is no longer")[0] for m in caplog.messages] == ["gone.weight", "0.weight", "0.weight"]


def test_zeros_survive_structured_pruning() -> None:
    """Channels that go take their zeros along; the zeros of what stays are kept by the training after it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    sparse = sparsify(Student(module=model), SparsifyOptions(sparsity=0.5))
    pruned = prune(sparse, (torch.zeros(1, 64),), PruneOptions(macs_ratio=0.5), seed=0)
    assert pruned.module[0].weight.shape[0] < 64
    assert kept_constraints(pruned.module, pruned.constraints) == sparse.constraints


def test_steps_of_a_recipe_and_a_student_on_disk(tmp_path: Path) -> None:
    """sparsify, share, finetune: the lineage says what was done, and zeros and codebooks are still there."""
    given = workload(mlp())
    result = fit(
        given.model,
        CrossEntropy(),
        given.train,
        Step(finetune={"epochs": 6, "batch_size": 16}).options,
        seed=0,
        work_dir=tmp_path,
    )
    teacher = TeacherReference(result.module.eval(), given)
    student = Student(module=teacher.module)
    steps = (
        Step(sparsify={"sparsity": 0.8, "rounds": 2, "epochs": 1, "batch_size": 16}),
        Step(share={"bits": 4, "epochs": 1, "batch_size": 16}),
        Step(finetune={"epochs": 1, "batch_size": 16}),
    )
    for number, step in enumerate(steps):
        student = run_step(student, teacher, step, given, seed=0, work_dir=tmp_path / str(number))
    assert "80.0 % of the weights of its layers zero, in 2 rounds of 1 epochs each" in student.lineage[0].summary
    assert "2 parameters share codebooks of 4 bits" in student.lineage[1].summary
    assert sparsity_of(student) == pytest.approx(0.8, abs=0.002)
    for layer in (0, 2):
        assert len(student.module[layer].weight.unique()) <= 17
    assert student.lineage[2].after.accuracy > 0.7
    save_student(student, tmp_path / "student")
    loaded = load_student(tmp_path / "student", mlp(), given.example_inputs)
    assert weights_digest(loaded.module) == weights_digest(student.module)
    assert loaded.constraints == student.constraints


class _StopError(Exception):
    """Stands for the kill."""


def test_a_killed_sparsify_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Stopped in the second of three rounds and started again: the very weights of the run that was never stopped."""
    given = workload(mlp())
    step = Step(sparsify={"sparsity": 0.8, "rounds": 3, "epochs": 2})
    teacher = TeacherReference(given.model.eval(), given)

    def made(folder: Path, stop_at: int | None = None) -> Student:
        seen = 0

        def watch(_: TrainProgress) -> None:
            nonlocal seen
            seen += 1
            if seen == stop_at:
                raise _StopError

        return run_step(
            Student(module=teacher.module), teacher, step, given, seed=3, work_dir=folder, on_progress=watch
        )

    whole = made(tmp_path / "whole")
    with pytest.raises(_StopError):
        made(tmp_path / "cut", stop_at=14)  # 4 batches an epoch, 8 a round
    assert weights_digest(made(tmp_path / "cut").module) == weights_digest(whole.module)
    other = replace(whole, module=sparsify(whole, SparsifyOptions(sparsity=0.9)).module)
    assert weights_digest(other.module) != weights_digest(whole.module)
