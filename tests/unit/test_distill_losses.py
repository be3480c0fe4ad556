"""The losses between features: against numbers worked out by hand, their invariances, and the features they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekit.distill.features import channels_first, has_channels_last, probed
from edgekit.distill.losses import (
    AttentionTransfer,
    Hint,
    RelationalAngle,
    RelationalDistance,
    attention_map,
    pooled_alike,
)
from edgekit.errors import WorkloadError


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_hint_is_the_squared_distance_behind_the_regressor() -> None:
    """With the regressor set to 2x and no bias: the mean of (2·student − teacher)² over every value."""
    hint = Hint(3, 3)
    with torch.no_grad():
        hint.regressor.weight.copy_(2 * torch.eye(3))
        hint.regressor.bias.zero_()
    student, teacher = rows(4, 3, 5, 5), rows(4, 3, 5, 5, seed=1)
    expected = ((2 * student - teacher) ** 2).mean()
    torch.testing.assert_close(hint(student, teacher), expected, rtol=1e-5, atol=1e-6)


def test_a_hint_meets_other_widths_and_extents() -> None:
    """A student of 3 channels on 8x8 is compared with a teacher of 7 on 4x4, and both regressor and student learn."""
    student = rows(2, 3, 8, 8).requires_grad_()
    hint = Hint(3, 7)
    hint(student, rows(2, 7, 4, 4, seed=1)).backward()
    assert student.grad is not None
    assert float(student.grad.abs().sum()) > 0
    assert hint.regressor.weight.grad is not None
    assert float(hint.regressor.weight.grad.abs().sum()) > 0


def test_pooling_is_a_mean_to_the_smaller_extent() -> None:
    """8x8 against 4x4: each value is the mean of a block of four; the smaller one is left as it is."""
    large, small = rows(1, 2, 8, 8), rows(1, 5, 4, 4)
    pooled, same = pooled_alike(large, small)
    torch.testing.assert_close(pooled[0, 0, 0, 0], large[0, 0, :2, :2].mean())
    assert pooled.shape == (1, 2, 4, 4)
    assert same is small
    vector, other = pooled_alike(large, rows(1, 5))
    torch.testing.assert_close(vector, large.mean(dim=(2, 3)))
    assert other.shape == (1, 5)
    with pytest.raises(WorkloadError, match="other numbers of axes"):
        pooled_alike(large, rows(1, 5, 7))


def test_attention_is_where_not_what() -> None:
    """The map is the mean square over channels, at length 1: a scaled or channel-shuffled feature has the same."""
    feature = rows(2, 4, 3, 3)
    found = attention_map(feature)
    by_hand = (feature[0] ** 2).mean(0).flatten()
    torch.testing.assert_close(found[0], by_hand / by_hand.norm(), rtol=1e-5, atol=1e-6)
    loss = AttentionTransfer()
    assert float(loss(feature, 5 * feature[:, [2, 0, 3, 1]])) == pytest.approx(0.0, abs=1e-10)
    assert float(loss(feature, rows(2, 9, 6, 6, seed=1))) > 0
    with pytest.raises(WorkloadError, match="compares positions"):
        loss(rows(2, 4), rows(2, 4))


def test_distances_are_in_units_of_their_mean() -> None:
    """Three points with distances 3, 4, 5 (mean 4) against an equilateral triangle: Huber of (3/4, 1, 5/4) and 1."""
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    # Six ordered pairs and three zeros on the diagonal; Huber of ±1/4 is 1/32, of 0 is 0.
    expected = (2 * (1 / 32) + 2 * 0.0 + 2 * (1 / 32)) / 9
    assert float(RelationalDistance()(student, teacher)) == pytest.approx(expected, rel=1e-4)


def test_angles_are_those_of_the_triplets() -> None:
    """The cosines from the Gram matrix are those of the edges themselves, as the paper writes them."""
    feature = rows(6, 5)
    edges = feature[None, :, :] - feature[:, None, :]  # [j, i]: from j to i
    unit = nn.functional.normalize(edges, dim=2)
    from edgekit.distill.losses import _cosines, _gram

    torch.testing.assert_close(_cosines(_gram(feature)), torch.bmm(unit, unit.transpose(1, 2)), rtol=1e-3, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 9), st.integers(1, 6), st.floats(0.1, 10), st.integers(0, 10_000))
def test_relations_do_not_see_scale_shift_or_rotation(count: int, width: int, scale: float, seed: int) -> None:
    """RKD compares shapes of point sets: a similar one costs nothing, and its gradient is finite."""
    points = rows(count, width, seed=seed)
    turned = torch.linalg.qr(rows(width, width, seed=seed + 1)).Q
    similar = (scale * points @ turned + rows(1, width, seed=seed + 2)).requires_grad_()
    for loss in (RelationalDistance(), RelationalAngle()):
        value = loss(similar, points)
        # float32 with cancellation in the Gram matrix: a thousandth of a unit distance, squared and halved.
        assert float(value) < 1e-4
        (gradient,) = torch.autograd.grad(value, similar)
        assert bool(torch.isfinite(gradient).all())


def test_equal_samples_do_not_make_the_gradient_infinite() -> None:
    """Two samples in one place have no direction between them; the square root at 0 must not give NaN."""
    points = rows(4, 3).clone()
    points[1] = points[0]
    points.requires_grad_()
    (RelationalDistance()(points, rows(4, 3, seed=1)) + RelationalAngle()(points, rows(4, 3, seed=1))).backward()
    assert points.grad is not None
    assert bool(torch.isfinite(points.grad).all())


def test_small_batches_have_no_relations() -> None:
    """One sample has no distances, two no angles; both are 0 with a gradient of 0, not NaN."""
    one, two = rows(1, 3).requires_grad_(), rows(2, 3).requires_grad_()
    (RelationalDistance()(one, one.detach()) + RelationalAngle()(two, two.detach())).backward()
    assert one.grad is not None
    assert not one.grad.any()
    assert two.grad is not None
    assert not two.grad.any()


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 6, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.out(self.rnn(x)[0][:, -1])
        return value


def test_channels_are_found_where_the_layers_keep_them() -> None:
    """A Conv1d's `[B, C, L]` has them on axis 1, an LSTM's and a transformer's `[B, L, C]` on the last."""
    convolutional = nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    found = probed(convolutional, ["0", "1"], (rows(2, 4, 9),), who="model")
    assert not has_channels_last(convolutional, "0", found["0"])
    assert not has_channels_last(convolutional, "1", found["1"])  # a ReLU says nothing; the model does
    recurrent = Sequences()
    states = probed(recurrent, ["rnn"], (rows(2, 9, 4),), who="model")["rnn"]
    assert states.shape == (2, 9, 6)
    assert has_channels_last(recurrent, "rnn", states)
    assert channels_first(states, is_last=True).shape == (2, 6, 9)
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    assert has_channels_last(encoder, "linear1", rows(2, 9, 8))
    images = nn.Sequential(nn.Conv2d(1, 2, 3))
    assert not has_channels_last(images, "0", rows(2, 2, 5, 5))


def test_a_module_that_does_not_run_has_no_feature() -> None:
    """A head that the forward pass leaves out is an error that says so."""

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(2, 2)
            self.spare = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value: torch.Tensor = self.used(x)
            return value

    with pytest.raises(WorkloadError, match="'spare' did not run"):
        probed(Unused(), ["spare"], (rows(1, 2),), who="student")
