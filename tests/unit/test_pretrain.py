"""Pretraining end to end: every method on every kind of model, resumed to the same bits, and bad input."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from support.pretrain_models import (
    PatchTransformer,
    Recurrent,
    TokenModel,
    TwoInputs,
    convnet,
    digits,
    motion,
    sentences,
)
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from edgekit.errors import UserError, WorkloadError
from edgekit.pretrain import Modality, PretrainMethod, PretrainOptions, extract_features, linear_probe, pretrain
from edgekit.pretrain.loop import _objective
from edgekit.pretrain.objectives import TwoViews
from edgekit.pretrain.representation import find_representation
from edgekit.training.batches import BatchSource
from edgekit.training.fitting import TrainProgress, weights_digest


def options(method: str, **more: object) -> PretrainOptions:
    plain: dict[str, object] = {"epochs": 2, "batch_size": 32, "hidden": 16, "projection": 8, "learning_rate": 3e-3}
    plain |= {"threads": 1, "logger": "none", "accelerator": "cpu"}
    return PretrainOptions.model_validate({"method": method, **plain, **more})


def seeded(make: type[nn.Module] | object = convnet, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()  # type: ignore[operator,no-any-return]


CROP = ({"random_resized_crop": {"scale": (0.5, 1.0)}}, "random_affine")


@pytest.mark.parametrize("method", ["simclr", "simsiam", "byol"])
def test_views_teach_a_representation(method: str) -> None:
    """Without a label the loss falls and nothing collapses; SimCLR's representation beats the random one by a margin.

    Those without negatives need longer than a unit test for that margin (docs/pretraining.md).
    """
    net = seeded()
    before = linear_probe(net, digits(0, 640), digits(640, 1000), labels=50).accuracy
    losses: list[float] = []
    chosen = options(method, epochs=8, batch_size=64, augmentations=CROP)
    result = pretrain(net, digits(0, 640), chosen, on_progress=lambda p: losses.append(p.loss))
    after = linear_probe(net, digits(0, 640), digits(640, 1000), labels=50, features=result.features).accuracy
    assert result.module is net
    assert not net.training
    assert result.features == "9:input"
    assert result.untouched == ("9.weight", "9.bias")
    assert result.steps == len(losses) == 80
    assert losses[-1] < losses[0] - 0.05
    assert after > before + (0.05 if method == "simclr" else -0.15)
    assert not result.spread.is_collapsed


CASES = [
    (convnet, digits(0, 64).tensors[0], "masked", {}),
    (PatchTransformer, digits(0, 64).tensors[0], "masked", {"patch": 2}),
    (PatchTransformer, digits(0, 64).tensors[0], "simclr", {"augmentations": CROP}),
    (Recurrent, motion().transpose(1, 2), "masked", {}),
    (Recurrent, motion().transpose(1, 2), "simclr", {}),
    (Recurrent, motion().transpose(1, 2), "byol", {"features": "gru"}),
    (TokenModel, sentences(), "masked", {}),
    (TokenModel, sentences(), "masked", {"mask_token": 19}),
]


@pytest.mark.parametrize(
    ("make", "x", "method", "more"), CASES, ids=[f"{c[0].__name__}-{c[2]}-{i}" for i, c in enumerate(CASES)]
)
def test_any_model_can_be_pretrained(make: type[nn.Module], x: Tensor, method: str, more: dict[str, object]) -> None:
    """Convolutional, attention and recurrent models, on images, sensor data and tokens: the loss falls."""
    net = seeded(make)
    losses: list[float] = []
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    result = pretrain(
        net, TensorDataset(x), options(method, epochs=20, learning_rate=1e-2, **more),
        on_progress=lambda p: losses.append(p.loss),
    )  # fmt: skip
    assert losses[-1] < 0.95 * losses[0]
    changed = {n for n, p in net.named_parameters() if not torch.equal(p, start[n])}
    assert changed
    assert changed.isdisjoint(result.untouched)
    assert all(p.requires_grad for p in net.parameters())


def test_masked_tokens_are_learned_from_their_neighbours() -> None:
    """In runs of consecutive numbers a hidden token follows from its neighbours: the loss ends far under chance."""
    net = seeded(TokenModel)
    result = pretrain(net, TensorDataset(sentences(256)), options("masked", epochs=30, learning_rate=2e-2, hidden=32))
    assert result.modality is Modality.TOKENS
    assert result.loss < 0.5 * math.log(20)


def test_several_inputs_go_with_the_first() -> None:
    """The first input is augmented, the second goes with it; items are ((image, facts), label)."""

    class Pairs(Dataset[object]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> object:
            return (digits().tensors[0][index], torch.ones(3)), index % 10

    net = seeded(TwoInputs)
    for method in ("simclr", "masked"):
        assert pretrain(net, Pairs(), options(method, augmentations=CROP)).steps == 2


def test_labels_are_not_looked_at(tmp_path: Path) -> None:
    """Right labels, wrong labels and none give the same weights."""
    images, targets = digits(0, 64).tensors
    nets = []
    for data in (TensorDataset(images, targets), TensorDataset(images, targets.flip(0)), TensorDataset(images)):
        nets.append(pretrain(seeded(), data, options("simclr", augmentations=CROP)).module)
    assert len({weights_digest(net) for net in nets}) == 1


class Interrupting:
    """An on_progress that raises KeyboardInterrupt at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress: TrainProgress) -> None:
        if progress.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", list(PretrainMethod))
@pytest.mark.parametrize("at", ["within an epoch", "at its end"])
def test_an_interrupted_pretraining_resumes_to_the_same_bits(tmp_path: Path, method: str, at: str) -> None:
    """Stopped and called again, dropout, augmentation, masks and BYOL's target included, the weights are the same."""
    data, chosen = digits(0, 128), options(method, augmentations=CROP)
    whole = pretrain(seeded(), data, chosen, seed=3, work_dir=tmp_path / "a")
    step = 4 if at == "at its end" else 6
    with pytest.raises(KeyboardInterrupt):
        pretrain(
            seeded(), data, chosen, seed=3, work_dir=tmp_path / "b",
            checkpoint_seconds=0, on_progress=Interrupting(step),
        )  # fmt: skip
    torch.manual_seed(99)  # the process's own generator must not matter
    net = seeded()
    torch.manual_seed(98)
    again = pretrain(net, data, chosen, seed=3, work_dir=tmp_path / "b")
    assert 0 < again.resumed_from <= step
    assert weights_digest(again.module) == weights_digest(whole.module)
    other = pretrain(seeded(), data, chosen, seed=4, work_dir=tmp_path / "c")
    assert weights_digest(other.module) != weights_digest(whole.module)


def test_a_target_network_follows_the_online_one() -> None:
    """BYOL's target is the online network's moving average at tau = 1 - (1 - tau0)(cos(pi k / K) + 1) / 2."""
    net, chosen = seeded(), options("byol", augmentations=CROP, target_momentum=0.5)
    example = BatchSource(digits(0, 32), "x", labelled=False).fetch(torch.arange(32))
    place = find_representation(net, example.inputs)
    made = _objective(net, example, place, Modality.IMAGE, chosen, None, 320).objective
    assert isinstance(made, TwoViews)
    assert made.total_steps == 20
    weight = net[0].weight
    target = made.parts["target"]["model"][0].weight  # type: ignore[index]
    expected = weight.detach().clone()
    for k in range(3):
        with torch.no_grad():
            weight.add_(1.0)  # an optimizer step
        made.step(net, example)
        # The first call finds no step of the optimizer's behind it.
        tau = 1.0 if k == 0 else 1 - 0.5 * (math.cos(math.pi * (k - 1) / 20) + 1) / 2
        expected = tau * expected + (1 - tau) * weight.detach()
        assert torch.allclose(target, expected, atol=1e-6)
    assert not target.requires_grad
    made.parts.eval()
    before = target.clone()
    made.step(net, example)
    assert torch.equal(target, before)


def test_the_head_is_thrown_away(tmp_path: Path) -> None:
    """The module keeps its own parameters by name and shape, and nothing of the projection."""
    net = seeded()
    names = {k: v.shape for k, v in net.state_dict().items()}
    pretrain(net, digits(0, 64), options("byol", augmentations=CROP))
    assert {k: v.shape for k, v in net.state_dict().items()} == names
    assert all(not m._forward_hooks for m in net.modules())


def test_named_features_are_trained_and_no_further() -> None:
    """With features '2' the later layers keep their weights, and the probe reads the same place."""
    net = seeded()
    later = net[3].weight.detach().clone()
    result = pretrain(net, digits(0, 64), options("simclr", features="2", augmentations=CROP))
    assert result.features == "2"
    assert torch.equal(net[3].weight, later)
    assert extract_features(net, digits(0, 20), features=result.features)[0].shape == (20, 16)


def test_a_collapsed_representation_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Data without any variety leave one point, and that is a warning."""
    same = TensorDataset(digits(0, 1).tensors[0].repeat(64, 1, 1, 1))
    with caplog.at_level(logging.WARNING):
        result = pretrain(seeded(), same, options("simsiam", augmentations=CROP))
    assert result.spread.is_collapsed
    assert "simsiam pretraining: the representation collapsed" in caplog.text


def test_an_augmentation_of_ones_own() -> None:
    """A function takes the options' place; one that changes the shape is refused before training."""
    seen: list[torch.Size] = []

    def mine(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return x + 0.1 * torch.randn_like(x)

    pretrain(seeded(), digits(0, 64), options("simclr"), augment=mine)
    assert len(seen) == 1 + 2 * 4  # once to look at it, twice a step
    with pytest.raises(WorkloadError, match=r"must keep both"):
        pretrain(seeded(), digits(0, 64), options("simclr"), augment=lambda x: x[:, :, :4])


# ---- bad input


IMAGES = digits(0, 64).tensors[0]


@pytest.mark.parametrize(("data", "chosen", "says"), [
    (TensorDataset(IMAGES[:1]), {}, "two samples at least, and the data have 1"),
    (TensorDataset(IMAGES), {"batch_size": 1}, "batch_size is 1; simclr needs 2"),
    (TensorDataset((IMAGES * 8).byte()), {}, r"uint8 \[2, 1, 8, 8\] is no image or signal"),
    (TensorDataset((IMAGES * 8).long()), {"modality": "image"}, r"image data is float .*this one is int64"),
    (TensorDataset(sentences()), {}, "no augmentations for tokens"),
    (TensorDataset(sentences()), {"modality": "image", "method": "masked"}, r"image data is float"),
    (TensorDataset(IMAGES), {"modality": "tokens", "method": "masked"}, "tokens data is integers"),
    (TensorDataset(IMAGES), {"modality": "sensor"}, r"sensor data is \[batch, channels, time\]"),
    (TensorDataset(IMAGES.flatten(1)), {}, "cannot be told from its shape"),
    (TensorDataset(IMAGES), {"features": "0:input"}, "depend on no parameter"),
    (TensorDataset(IMAGES), {"features": "nine"}, "no submodule 'nine'"),
    (TensorDataset(IMAGES[:, :, 0]), {}, "cannot take a batch"),
], ids=range(12))  # fmt: skip
def test_what_cannot_be_pretrained_says_why(data: TensorDataset, chosen: dict[str, object], says: str) -> None:
    plain: dict[str, object] = {"method": "simclr", "augmentations": CROP, **chosen}
    with pytest.raises(UserError, match=says):
        pretrain(seeded(), data, options(**plain))  # type: ignore[arg-type]


def test_signals_need_signal_augmentations_and_an_axis_of_time() -> None:
    data = TensorDataset(motion().transpose(1, 2))
    with pytest.raises(UserError, match="time_axis is 3; the batch has"):
        pretrain(seeded(Recurrent), data, options("simclr", time_axis=3))
    with pytest.raises(UserError, match=r"gaussian_blur changes images.*float32 \[2, 48, 3\]"):
        pretrain(seeded(Recurrent), data, options("simclr", augmentations=("gaussian_blur",)))


def test_values_that_are_not_finite_are_found() -> None:
    """NaN in one sample stops the run with its number, whatever the method."""
    images = IMAGES.clone()
    images[37, 0, 2, 2] = float("nan")
    for method in ("simclr", "masked"):
        with pytest.raises(WorkloadError, match="such as samples 37"):
            pretrain(seeded(), TensorDataset(images), options(method, augmentations=CROP))


def test_a_diverging_run_stops(tmp_path: Path) -> None:
    """An absurd learning rate ends in the loop's own error, which names the step."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 2))
    with pytest.raises(UserError, match="diverged: the loss is"):
        pretrain(net, TensorDataset(IMAGES * 1e30), options("masked", learning_rate=1e30, epochs=20))


def test_tokens_need_positions_and_a_vocabulary() -> None:
    """A pooled representation has nothing for each token, a model without embeddings no vocabulary; ids must exist."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.EmbeddingBag(20, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.embedding(x))
            return out

    tokens = TensorDataset(sentences())
    with pytest.raises(WorkloadError, match=r"no nn\.Embedding looks up"):
        pretrain(Bag(), tokens, options("masked"))
    with pytest.raises(UserError, match="mask_token is 20, but 'embedding' has 20"):
        pretrain(TokenModel(), tokens, options("masked", mask_token=20))
    with pytest.raises(WorkloadError, match="one for each of the 12 positions"):
        pretrain(TokenModel(), tokens, options("masked", features="head:input"))
