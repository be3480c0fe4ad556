"""What an objective may be: without targets, with parts of its own, looking inside the model, with two views."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgekit.compress.options import TrainOptions
from edgekit.errors import WorkloadError
from edgekit.train import (
    NO_TARGET,
    Batch,
    CrossEntropy,
    Objective,
    StepOutcome,
    TrainProgress,
    captured_features,
    collect_outputs,
    fit,
    joined,
    weights_digest,
)
from edgekit.training.objective import labelled_rows

OPTIONS = TrainOptions(epochs=2, batch_size=32, learning_rate=1e-2, threads=1)


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.tensor(bunch.data[:256] / 16.0, dtype=torch.float32), torch.tensor(bunch.target[:256])


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 16))


@dataclass(frozen=True, kw_only=True)
class TwoViews(Objective):
    """Two noisy views of a batch, encoded and projected, must agree; a momentum copy is updated after each step."""

    head: nn.Module
    heard: list[int]

    @classmethod
    def make(cls) -> TwoViews:
        torch.manual_seed(3)
        parts = nn.ModuleDict({"head": nn.Linear(32, 8), "momentum": nn.Linear(32, 8).requires_grad_(False)})
        return cls(head=parts, heard=[])

    @property
    def key(self) -> str:
        return "two views"

    @property
    def needs_targets(self) -> bool:
        return False

    @property
    def parts(self) -> nn.Module:
        return self.head

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError

    def step(self, model: nn.Module, batch: Batch) -> StepOutcome:
        assert batch.targets is None
        x = batch.inputs[0]
        with captured_features(model, ["1"]) as features:
            model(x + 0.1 * torch.randn_like(x))
            first = self.head["head"](features["1"])
            model(x + 0.1 * torch.randn_like(x))
            second = self.head["momentum"](features["1"])
        return StepOutcome(loss=2 - 2 * F.cosine_similarity(first, second, dim=1).mean())

    def after_step(self, model: nn.Module, step: int, total_steps: int) -> None:
        self.heard.append(step)
        for slow, fast in zip(self.head["momentum"].parameters(), self.head["head"].parameters(), strict=True):
            slow.lerp_(fast, 0.1)


@pytest.mark.parametrize("unlabelled", ["tensors", "items", "labelled", "column"])
def test_data_without_targets_train_in_every_shape_they_may_have(tmp_path: Path, unlabelled: str) -> None:
    """A list of tensors, one column, (input, anything): the same training; progress shows no accuracy."""
    x, y = digits()
    data = {
        "tensors": list(x),
        "items": [(row,) for row in x],
        "labelled": TensorDataset(x, y),
        "column": TensorDataset(x),
    }[unlabelled]
    seen: list[TrainProgress] = []
    objective = TwoViews.make()
    before = weights_digest(objective.head)
    result = fit(encoder(), objective, data, OPTIONS, seed=1, work_dir=tmp_path, on_progress=seen.append)
    reference = fit(encoder(), TwoViews.make(), list(x), OPTIONS, seed=1, work_dir=tmp_path / "b")
    assert weights_digest(result.module) == weights_digest(reference.module)
    assert result.accuracy is None
    assert seen[-1].accuracy is None
    assert seen[-1].loss < seen[0].loss
    assert objective.heard == list(range(1, 17))
    assert weights_digest(objective.head) != before


def test_parts_of_an_objective_resume_to_the_same_bits(tmp_path: Path) -> None:
    """Cut in the second epoch and resumed: the model's weights and the momentum copy's are those of a whole run."""
    x, _ = digits()
    whole = TwoViews.make()
    result = fit(encoder(), whole, list(x), OPTIONS, seed=1, work_dir=tmp_path / "a")

    def cut(progress: TrainProgress) -> None:
        if progress.step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            encoder(), TwoViews.make(), list(x), OPTIONS,
            seed=1, work_dir=tmp_path / "b", checkpoint_seconds=0, on_progress=cut,
        )  # fmt: skip
    resumed = TwoViews.make()
    again = fit(encoder(), resumed, list(x), OPTIONS, seed=1, work_dir=tmp_path / "b")
    assert again.resumed_from == 11
    assert weights_digest(again.module) == weights_digest(result.module)
    assert weights_digest(resumed.head) == weights_digest(whole.head)


def test_what_holds_of_the_weights_is_put_back_after_each_step(tmp_path: Path) -> None:
    """`after_step` keeps a weight's zeros through momentum and weight decay."""
    x, y = digits()
    module = encoder()
    mask = torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) < 0.5

    def keep_zeros(model: nn.Module) -> None:
        model.get_parameter("0.weight").mul_(mask)

    keep_zeros_of = module.get_parameter("0.weight")
    with torch.no_grad():
        keep_zeros_of.mul_(mask)
    result = fit(module, CrossEntropy(), TensorDataset(x, y), OPTIONS, seed=1, work_dir=tmp_path, after_step=keep_zeros)
    assert torch.equal(result.module.get_parameter("0.weight") != 0, mask)


@dataclass(frozen=True, kw_only=True)
class SomeLabelled(Objective):
    """Cross-entropy where there are labels, and small logits everywhere."""

    @property
    def key(self) -> str:
        return "some"

    @property
    def takes_missing_targets(self) -> bool:
        return True

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        rows = labelled_rows(batch)
        loss = 1e-3 * outputs.square().mean()
        return loss + F.cross_entropy(outputs[rows], batch.known_targets()[rows]) if rows.any() else loss


@pytest.mark.parametrize("fast", [True, False], ids=["tensor data", "item data"])
def test_labelled_and_unlabelled_data_in_one_run(tmp_path: Path, fast: bool) -> None:
    """Joined data train in one run; accuracy is over the labelled rows, and a plain objective refuses them."""
    x, y = digits()
    labelled = TensorDataset(x[:128], y[:128])
    unlabelled = TensorDataset(x[128:]) if fast else list(x[128:])
    data = joined(labelled, unlabelled)
    assert len(data) == 256
    assert data[200][1] == NO_TARGET
    assert torch.equal(data[200][0], x[200])
    assert isinstance(data, TensorDataset) is fast
    options = OPTIONS.model_copy(update={"epochs": 8})
    result = fit(encoder(), SomeLabelled(), data, options, seed=1, work_dir=tmp_path)
    assert result.accuracy is not None
    assert result.accuracy > 0.6
    with pytest.raises(WorkloadError, match="targets from -100 to"):
        fit(encoder(), CrossEntropy(), data, OPTIONS, seed=1, work_dir=tmp_path / "plain")


def test_labels_outside_the_classes_are_refused_among_missing_ones(tmp_path: Path) -> None:
    """NO_TARGET is allowed where the objective takes it; any other number outside the classes is not."""
    x, y = digits()
    data = joined(TensorDataset(x[:128], y[:128] + 10), TensorDataset(x[128:]))
    with pytest.raises(WorkloadError, match=r"targets from 1. to .*, but the model gives 16 classes"):
        fit(encoder(), SomeLabelled(), data, OPTIONS, seed=1, work_dir=tmp_path)


def test_outputs_of_unlabelled_data() -> None:
    """Outputs come in the data's order, whether the items have targets or not."""
    x, y = digits()
    module = encoder().eval()
    with torch.no_grad():
        expected = module(x).numpy()
    for data in (list(x), TensorDataset(x), TensorDataset(x, y)):
        # 64 products of magnitude below 1; batches of other sizes may sum in another order.
        assert abs(collect_outputs(module, data, batch_size=100) - expected).max() < 64 * 6e-8


def test_features_by_a_name_that_does_not_exist() -> None:
    """A misspelt submodule is named together with the nearest that exists; hooks are gone afterwards."""
    model = nn.Sequential()
    model.add_module("encoder", nn.LSTM(4, 8, batch_first=True))
    with pytest.raises(WorkloadError, match=r"no submodule 'encodr'.*encoder"), captured_features(model, ["encodr"]):
        pass
    with captured_features(model, ["encoder"]) as found:
        model(torch.zeros(2, 3, 4))
    assert found["encoder"].shape == (2, 3, 8)
    assert not model.get_submodule("encoder")._forward_hooks


def test_empty_data_are_refused(tmp_path: Path) -> None:
    """No items: said as such, in training and in evaluation."""
    x, y = digits()
    with pytest.raises(WorkloadError, match="no items"):
        fit(encoder(), CrossEntropy(), TensorDataset(x[:0], y[:0]), OPTIONS, seed=1, work_dir=tmp_path)
    with pytest.raises(WorkloadError, match="no items"):
        collect_outputs(encoder(), [])
