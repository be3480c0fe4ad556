"""Losses, masks, representations, probes and collapse, each against what its definition says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.pretrain_models import PatchTransformer, Recurrent, TokenModel, convnet, digits, motion
from torch import nn
from torch.utils.data import TensorDataset

from edgekit.errors import UserError, WorkloadError
from edgekit.pretrain import extract_features, few_labels, knn_accuracy, linear_probe
from edgekit.pretrain.collapse import spread_of
from edgekit.pretrain.evaluation import nearest_classes
from edgekit.pretrain.heads import Reconstruction
from edgekit.pretrain.losses import byol_loss, masked_l1, nt_xent, simsiam_loss
from edgekit.pretrain.masking import corrupted_tokens, hidden_patches
from edgekit.pretrain.representation import dense_representation, find_representation, pooled, trained_by


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- losses


def test_nt_xent_is_equation_1() -> None:
    """The loss is the paper's sum, written out pair by pair."""
    one, other = torch.randn(5, 7, generator=seeded(1)), torch.randn(5, 7, generator=seeded(2))
    views = torch.cat([one, other]).double()
    total = 0.0
    for i in range(10):
        sims = [float(F.cosine_similarity(views[i], views[k], dim=0)) / 0.3 for k in range(10)]
        below = sum(math.exp(sims[k]) for k in range(10) if k != i)
        total -= math.log(math.exp(sims[(i + 5) % 10]) / below)
    assert float(nt_xent(one, other, temperature=0.3)) == pytest.approx(total / 10, rel=1e-5)


def test_nt_xent_at_its_ends() -> None:
    """Views all alike give log(2B - 1); views equal within a pair and opposite else give almost nothing."""
    same = torch.ones(8, 4)
    assert float(nt_xent(same, same, temperature=0.5)) == pytest.approx(math.log(15), rel=1e-6)
    apart = torch.eye(8)
    assert float(nt_xent(apart, apart, temperature=0.01)) < 1e-6


def test_simsiam_stops_the_gradient() -> None:
    """-1 for perfect predictions, and nothing flows into the projections."""
    z1, z2 = (torch.randn(6, 4, generator=seeded(s), requires_grad=True) for s in (1, 2))
    p1, p2 = (torch.randn(6, 4, generator=seeded(s), requires_grad=True) for s in (3, 4))
    simsiam_loss((p1, p2), (z1, z2)).backward()
    assert z1.grad is None
    assert z2.grad is None
    assert p1.grad is not None
    assert float(simsiam_loss((z2, z1), (z1, z2)).detach()) == pytest.approx(-1, abs=1e-6)


def test_byol_is_the_squared_distance() -> None:
    """2 - 2 cos is the squared distance of unit vectors, both ways added."""
    p1, p2, t1, t2 = (torch.randn(6, 4, generator=seeded(s)) for s in range(4))
    expected = sum(
        (F.normalize(p, dim=1) - F.normalize(t, dim=1)).square().sum(1).mean() for p, t in ((p1, t2), (p2, t1))
    )
    assert float(byol_loss((p1, p2), (t1, t2))) == pytest.approx(float(expected), rel=1e-5)


def test_the_masked_error_counts_only_what_was_hidden() -> None:
    true, made = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    hidden = torch.zeros(2, 4, 4, dtype=torch.bool)
    hidden[:, 0] = True
    made[:, :, 0] = 2.0
    made[:, :, 1:] = 100.0
    assert float(masked_l1(made, true, hidden)) == 2.0


# ---- masks


@pytest.mark.parametrize(
    ("axes", "patch", "ratio"), [((8, 8), 2, 0.6), ((7, 10), 3, 0.5), ((48,), 3, 0.5), ((5,), 9, 0.9)]
)
def test_masks_hide_whole_patches(axes: tuple[int, ...], patch: int, ratio: float) -> None:
    """Every sample hides the same share, patch by patch, and not the same patches."""
    mask = hidden_patches(50, axes, patch=patch, ratio=ratio, generator=seeded())
    assert mask.shape == (50, *axes)
    corners = mask[(slice(None), *[slice(None, None, patch)] * len(axes))]
    total = corners[0].numel()
    wanted = min(max(round(ratio * total), 1), max(total - 1, 1))
    assert corners.flatten(1).sum(1).tolist() == [wanted] * 50
    whole = corners
    for axis, size in enumerate(axes, start=1):
        whole = whole.repeat_interleave(patch, axis).narrow(axis, 0, size)
    assert torch.equal(whole, mask)
    assert total <= 2 or len(torch.unique(mask.flatten(1), dim=0)) > 1


def test_tokens_are_corrupted_80_10_10() -> None:
    """Of 15 % chosen, 80 % become the mask token, 10 % are drawn, 10 % stay; padding is never touched."""
    tokens = torch.randint(2, 500, (400, 100), generator=seeded())
    tokens[:, 90:] = 0
    seen, chosen, masked = corrupted_tokens(
        tokens, vocabulary=500, ratio=0.15, mask_token=1, pad_token=0, generator=seeded(1)
    )
    count = int(chosen.sum())
    # Four standard errors of a binomial share each.
    assert abs(count / (400 * 90) - 0.15) < 4 * math.sqrt(0.15 * 0.85 / 36000)
    share = float((seen[chosen] == 1).float().mean())
    assert abs(share - 0.8 - 0.1 / 500) < 4 * math.sqrt(0.16 / count)
    kept = float((seen[chosen] == tokens[chosen]).float().mean())
    assert abs(kept - 0.1 - 0.1 / 500) < 4 * math.sqrt(0.09 / count)
    assert torch.equal(seen[~chosen], tokens[~chosen])
    assert not bool(chosen[:, 90:].any())
    assert bool((masked <= chosen).all())
    assert bool(chosen.any(dim=1).all())


def test_a_short_row_still_has_a_token_to_predict() -> None:
    """At 15 % of three tokens rounding would choose none; a row of padding has none."""
    tokens = torch.tensor([[3, 4, 5, 0]] * 50 + [[0, 0, 0, 0]])
    _, chosen, _ = corrupted_tokens(tokens, vocabulary=9, ratio=0.01, mask_token=1, pad_token=0, generator=seeded())
    assert chosen.sum(1).tolist() == [1] * 50 + [0]


# ---- representations


@pytest.mark.parametrize(("model", "inputs", "name", "width", "dense", "grid"), [
    (convnet, torch.zeros(2, 1, 8, 8), "9:input", 16, "5", (4, 4)),
    (PatchTransformer, torch.zeros(2, 1, 8, 8), "head:input", 16, "norm", (17,)),
    (Recurrent, torch.zeros(2, 48, 3), "head:input", 12, "gru", (48,)),
    (TokenModel, torch.ones(2, 12, dtype=torch.int64), "head:input", 16, "encoder.layers.0.norm2", (12,)),
])  # fmt: skip
def test_the_representation_is_what_the_head_reads(model, inputs, name, width, dense, grid) -> None:  # type: ignore[no-untyped-def]
    """By default the input of the last linear layer; for masked prediction the last output that has a grid."""
    net = model()
    place = find_representation(net, [inputs])
    assert str(place) == name
    assert pooled(place.read(net, [inputs])).shape == (2, width)
    assert str(find_representation(net, [inputs], name)) == name
    spread_out = dense_representation(net, [inputs], place)
    assert spread_out is not None
    assert spread_out.module == dense
    assert spread_out.read(net, [inputs]).shape == (2, width, *grid)


def test_a_hook_leaves_nothing_behind() -> None:
    """Reading a representation leaves no hook, mode, statistics or generator state changed."""
    net, x = convnet(), digits(0, 2).tensors[0]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    before = torch.get_rng_state()
    place = find_representation(net, [x])
    trained_by(net, [x], place)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_models_own_output_can_be_the_representation() -> None:
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU())
    x = torch.randn(2, 1, 8, 8)
    place = find_representation(net, [x], "output")
    assert torch.equal(place.read(net, [x]), net(x))


def test_pooled_features_are_means_over_positions() -> None:
    """A convolution's map and a transformer's tokens are both averaged over positions, not over channels."""
    net, x = convnet().eval(), digits(0, 2).tensors[0]
    place = find_representation(net, [x], "5")
    assert torch.allclose(pooled(place.read(net, [x])), net[:6](x).mean(dim=(2, 3)), atol=1e-6)
    vit = PatchTransformer().eval()
    named = find_representation(vit, [x], "norm")
    tokens: list[torch.Tensor] = []
    vit.norm.register_forward_hook(lambda _m, _i, o: tokens.append(o))
    assert torch.allclose(pooled(named.read(vit, [x])), tokens[-1].mean(dim=1), atol=1e-6)


def test_the_head_is_told_from_the_encoder() -> None:
    """Only parameters that the representation depends on are trained."""
    net, x = convnet(), digits(0, 2).tensors[0]
    names = trained_by(net, [x], find_representation(net, [x]))
    assert names == {n for n, _ in net.named_parameters() if not n.startswith("9.")}


def test_wrong_features_say_so() -> None:
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(WorkloadError, match=r"no submodule 'hed'; did you mean 'head'"):
        find_representation(PatchTransformer(), [x], "hed")
    with pytest.raises(WorkloadError, match="cannot take a batch of float32"):
        find_representation(convnet(), [torch.zeros(2, 3, 8, 8)])
    with pytest.raises(WorkloadError, match="must be named"):
        find_representation(nn.Sequential(nn.Flatten()), [x])
    unbatched = nn.GRU(3, 4)  # time first

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = unbatched, nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.gru(x.transpose(0, 1))[0][-1])
            return out

    net, signal = Turned(), torch.zeros(2, 9, 3)
    with pytest.raises(WorkloadError, match="batch as its first axis"):
        find_representation(net, [signal], "gru").read(net, [signal])


@pytest.mark.parametrize(("grid", "shape"), [
    ((4, 4), (1, 8, 8)), ((3, 3), (2, 8, 8)), ((17,), (1, 8, 8)), ((16,), (3, 8, 8)), ((5,), (1, 8, 8)),
    ((), (1, 8, 8)), ((12,), (3, 48)), ((7,), (3, 48)), ((), (3, 48)), ((1, 1), (1, 6, 10)),
])  # fmt: skip
def test_reconstructions_have_the_signals_shape(grid: tuple[int, ...], shape: tuple[int, ...]) -> None:
    head = Reconstruction(6, grid, shape, hidden=8)
    assert head(torch.randn(2, 6, *grid)).shape == (2, *shape)


@pytest.mark.parametrize("grid", [(4, 4), (17,)])
def test_a_cell_of_the_grid_tells_its_own_part_of_the_signal(grid: tuple[int, ...]) -> None:
    """The feature of row 1, column 2 changes rows 2-3 and columns 4-5 of the image, and nothing else."""
    head = Reconstruction(6, grid, (1, 8, 8), hidden=8)
    features = torch.zeros(1, 6, *grid)
    changed = features.clone()
    changed[(0, slice(None), 1, 2) if grid == (4, 4) else (0, slice(None), 1 + 4 * 1 + 2)] = 1.0
    moved = (head(changed) - head(features))[0, 0].abs() > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(moved, expected)


# ---- probes


class Identity(nn.Module):
    """Features as they come: the last linear layer reads the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x)
        return out


def blobs(count: int, seed: int) -> TensorDataset:
    """Two classes, six standard deviations apart along the first of five axes."""
    targets = torch.arange(count) % 2
    x = torch.randn(count, 5, generator=seeded(seed))
    x[:, 0] += 6.0 * targets - 3
    return TensorDataset(x, targets)


def test_probes_read_what_is_in_the_features() -> None:
    """Separable classes are found with forty labels; scrambled ones are not found with all."""
    train, test = blobs(200, 1), blobs(300, 2)
    found = linear_probe(Identity(5), train, test, labels=40)
    near = knn_accuracy(Identity(5), train, test, labels=40, k=5)
    assert (found.labels, found.samples) == (40, 300)
    assert found.accuracy > 0.95
    assert near.accuracy > 0.95
    scrambled = TensorDataset(train.tensors[0], train.tensors[1][torch.randperm(200, generator=seeded(3))])
    assert abs(linear_probe(Identity(5), scrambled, test).accuracy - 0.5) < 0.25


def test_neighbours_vote_by_similarity() -> None:
    """One near neighbour outweighs two far ones at a low temperature and not at a high one (Wu et al. 2018)."""
    known = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    targets = np.array([1, 0, 0])
    query = np.array([[1.0, 0.3]], dtype=np.float32)
    assert nearest_classes(known, targets, query, k=3, temperature=0.07).tolist() == [1]
    assert nearest_classes(known, targets, query, k=3, temperature=100.0).tolist() == [0]
    assert nearest_classes(known, targets, query, k=1).tolist() == [1]


def test_few_labels_are_balanced_and_seeded() -> None:
    targets = np.array([0] * 500 + [1] * 50 + [2] * 5)
    chosen = few_labels(targets, 30, seed=1)
    assert np.bincount(targets[chosen]).tolist() == [13, 12, 5] or np.bincount(targets[chosen]).tolist() == [12, 13, 5]
    assert np.array_equal(chosen, few_labels(targets, 30, seed=1))
    assert not np.array_equal(chosen, few_labels(targets, 30, seed=2))
    assert len(set(chosen.tolist())) == 30
    with pytest.raises(UserError, match="556 labels of 555"):
        few_labels(targets, 556)


def test_extracting_leaves_the_model_as_it_was() -> None:
    net = convnet().train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    features, targets = extract_features(net, digits(0, 40))
    assert features.shape == (40, 16)
    assert np.array_equal(targets, digits(0, 40).tensors[1].numpy())
    assert net.training
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    again, _ = extract_features(net, digits(0, 40), batch_size=7)
    assert np.allclose(features, again, atol=1e-6)


def test_a_probe_of_one_class_is_refused() -> None:
    one = TensorDataset(torch.randn(10, 5), torch.zeros(10, dtype=torch.int64))
    with pytest.raises(UserError, match="all of one class"):
        linear_probe(Identity(5), one, one)
    with pytest.raises(UserError, match="k is 0"):
        nearest_classes(np.ones((2, 2), np.float32), np.array([0, 1]), np.ones((1, 2), np.float32), k=0)


# ---- collapse


def test_spread_tells_collapse_from_health() -> None:
    """One point and one line are collapse; a cloud is none, whatever its scale."""
    cloud = torch.randn(500, 16, generator=seeded())
    healthy = spread_of(1e-3 * cloud)
    assert healthy.deviation == pytest.approx(1, abs=0.05)
    assert healthy.rank > 14
    assert not healthy.is_collapsed
    point = spread_of(torch.ones(50, 16) + 1e-4 * cloud[:50])
    assert point.is_collapsed
    assert "all samples look alike" in point.told()
    line = spread_of(torch.randn(50, 1, generator=seeded(1)) * torch.ones(1, 16))
    assert line.is_collapsed
    assert "one direction" in line.told()
    assert spread_of(torch.ones(5, 16)).is_collapsed
    assert spread_of(torch.zeros(5, 16)).is_collapsed


def test_the_signals_of_the_support_module_differ() -> None:
    """What later tests rely on: motion has five kinds of sample."""
    assert len(torch.unique(motion(10).flatten(1), dim=0)) == 5
