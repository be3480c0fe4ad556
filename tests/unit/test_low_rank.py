"""Low rank: factors that compute what the layer did, ranks by energy and by budget, layers that stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from edgekit.compress.cost import count_macs, count_parameters
from edgekit.compress.factors import factored, spectrum
from edgekit.compress.low_rank import factorize, restore
from edgekit.compress.prune import prune
from edgekit.compress.storage import load_student, save_student
from edgekit.compress.student import LowRankEdit, Student, WeightConstraint, replay
from edgekit.errors import RecipeError, UnsupportedError, UserError
from edgekit.recipe import LowRankOptions, PruneOptions, Step

IMAGE = (torch.zeros(1, 3, 12, 12),)


def decaying(layer: nn.Module, base: float = 0.6) -> nn.Module:
    """The layer with singular values that fall by `base`, as trained ones do."""
    with torch.no_grad():
        for weight in (p for p in layer.parameters() if p.ndim > 1):
            for mode in (0, 1):
                flat = weight.transpose(0, mode).flatten(1)
                u, s, v = torch.linalg.svd(flat, full_matrices=False)
                s = s * base ** torch.arange(len(s))
                weight.copy_((u * s @ v).reshape(weight.transpose(0, mode).shape).transpose(0, mode))
    return layer


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        decaying(nn.Conv2d(3, 16, 3, padding=1)), nn.ReLU(),
        decaying(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)), nn.BatchNorm2d(32), nn.ReLU(),
        decaying(nn.Conv2d(32, 32, 1)), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU(),
        nn.Flatten(), decaying(nn.Linear(32 * 36, 24)), nn.ReLU(), nn.Linear(24, 4),
    ).eval()  # fmt: skip


LAYERS = {
    "linear": (lambda: nn.Linear(9, 6), (2, 5, 9)),
    "pointwise": (lambda: nn.Conv2d(9, 6, 1, stride=2), (2, 9, 7, 7)),
    "plain": (lambda: nn.Conv2d(5, 6, 3, padding=1), (2, 5, 7, 7)),
    "strided": (
        lambda: nn.Conv2d(5, 6, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(2, 1), bias=False),
        (2, 5, 9, 9),
    ),
    "same": (lambda: nn.Conv2d(5, 6, 4, padding="same"), (1, 5, 7, 7)),
    "reflecting": (lambda: nn.Conv2d(5, 6, 3, padding=1, padding_mode="reflect"), (1, 5, 7, 7)),
    "one": (lambda: nn.Conv1d(5, 8, 3, padding=2, dilation=2), (2, 5, 11)),
    "three": (lambda: nn.Conv3d(3, 4, 2), (1, 3, 4, 4, 4)),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_factors_of_full_rank_compute_what_the_layer_did(name: str) -> None:
    """Nothing is cut off: equal outputs, float32 sums of up to 50 terms."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().eval()
    x = torch.randn(shape)
    made = factored(layer, tuple(len(values) for values in spectrum(layer).modes))
    with torch.no_grad():
        torch.testing.assert_close(made(x), layer(x), rtol=1e-4, atol=1e-5)


@given(rank=st.integers(1, 8), seed=st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_a_truncated_svd_leaves_what_eckart_and_young_say(rank: int, seed: int) -> None:
    """The squared error of the product of the factors is the sum of the squared singular values cut off."""
    torch.manual_seed(seed)
    layer = nn.Linear(10, 8)
    made = factored(layer, (rank,))
    with torch.no_grad():
        error = float(((made[1].weight @ made[0].weight - layer.weight) ** 2).sum())
    assert error == pytest.approx(float(spectrum(layer).modes[0][rank:].sum()), rel=1e-3, abs=1e-5)


def test_tucker_finds_a_kernel_of_known_ranks() -> None:
    """A kernel that is a core times two channel matrices comes back exactly at those ranks, and energy finds them."""
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 10, 3, bias=False)
    with torch.no_grad():
        core, into, out_of = torch.randn(4, 3, 3, 3), torch.randn(12, 3), torch.randn(10, 4)
        layer.weight.copy_(torch.einsum("rqxy,iq,or->oixy", core, into, out_of))
    assert spectrum(layer).ranks(0.999999, 1) == (3, 4)
    x = torch.randn(1, 12, 6, 6)
    with torch.no_grad():
        whole, made = layer(x), factored(layer, (3, 4))
        torch.testing.assert_close(made(x), whole, rtol=1e-3, atol=1e-3)
        worse = float((factored(layer, (2, 3))(x) - whole).norm() / whole.norm())
    assert worse > 0.05


@given(energies=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=2))
@settings(max_examples=20, deadline=None)
def test_more_energy_never_means_a_lower_rank(energies: list[float]) -> None:
    """Ranks grow with the energy kept, and are multiples of round_to or the whole width."""
    torch.manual_seed(1)
    values = spectrum(nn.Conv2d(12, 20, 3))
    low, high = (values.ranks(energy, 4) for energy in sorted(energies))
    assert all(a <= b for a, b in zip(low, high, strict=True))
    assert all(rank % 4 == 0 for rank in (*low, *high))


def test_layers_that_do_not_pay_stay_and_say_why() -> None:
    """Factored where that saves; grouped, excluded and small layers stay, each with its reason."""
    done = factorize(net(), IMAGE, LowRankOptions(energy=0.9, exclude=("2",), round_to=2))
    assert set(done.ranks) == {"0", "5", "10"}
    assert done.kept["2"] == "it is excluded"
    assert "32 groups" in done.kept["7"]
    assert done.kept["12"] == "its factors would cost as much"
    assert count_parameters(done.student.module) < count_parameters(net())
    assert done.told().startswith("3 of 6 layers factored; kept: ")
    with torch.no_grad():
        assert done.student.module(torch.randn(2, 3, 12, 12)).shape == (2, 4)


@pytest.mark.parametrize("target", ["parameters_ratio", "macs_ratio"])
def test_a_budget_is_met(target: str) -> None:
    """The whole model costs about what was asked."""
    model = net()
    done = factorize(model, IMAGE, LowRankOptions(**{target: 0.5}, round_to=1))
    count = count_parameters if target == "parameters_ratio" else (lambda m: count_macs(m, IMAGE))
    assert count(done.student.module) / count(model) == pytest.approx(0.5, abs=0.08)


def test_a_budget_out_of_reach_names_the_least_and_what_binds() -> None:
    """What cannot be factored holds the model up."""
    with pytest.raises(UserError, match=r"to 1% of its MACs: the nearest is \d+%, the least \d+%; '0' binds"):
        factorize(net(), IMAGE, LowRankOptions(macs_ratio=0.01, exclude=("0",)))
    with pytest.raises(UserError, match=r"of its parameters.*'10' binds"):
        factorize(net(), IMAGE, LowRankOptions(parameters_ratio=0.05, exclude=("10",)))
    with pytest.raises(UnsupportedError, match="no layer pays"):
        factorize(nn.Sequential(nn.Linear(2, 2)), (torch.zeros(1, 2),), LowRankOptions())
    with pytest.raises(RecipeError, match=r"low_rank\.exclude: the model has no module '11x'"):
        factorize(net(), IMAGE, LowRankOptions(exclude=("11x",)))
    with pytest.raises(ValidationError, match="give one of energy"):
        LowRankOptions(energy=0.5, macs_ratio=0.5)


def test_edits_replay_and_a_student_comes_back_from_disk(tmp_path: Path) -> None:
    """The same edits on the same weights give the same factors; on another initialisation the stored weights fit."""
    model = net()
    done = factorize(model, IMAGE, LowRankOptions(energy=0.8, round_to=2)).student
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(replay(model, done.edits, IMAGE)(x), done.module(x))
        save_student(done, tmp_path)
        torch.manual_seed(5)
        other = net()
        for parameter in other.parameters():
            parameter.normal_()
        assert torch.equal(load_student(tmp_path, other, IMAGE).module(x), done.module(x))
    for edit in (
        LowRankEdit(module="nowhere", ranks=(1,)),
        LowRankEdit(module="7", ranks=(1, 1)),
        LowRankEdit(module="2", ranks=(1,)),
        LowRankEdit(module="2", ranks=(17, 1)),
        LowRankEdit(module="1", ranks=(1,)),
    ):
        with pytest.raises(ValueError):
            restore(model, (edit,), IMAGE)


def test_factored_layers_can_be_pruned_afterwards() -> None:
    """Pruning sees the factors as layers; its edits follow the low-rank ones and replay with them."""
    model = net()
    first = factorize(model, IMAGE, LowRankOptions(energy=0.95, round_to=4)).student
    second = prune(first, IMAGE, PruneOptions(macs_ratio=0.7, round_to=2))
    assert count_macs(second.module, IMAGE) < count_macs(first.module, IMAGE)
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(replay(model, second.edits, IMAGE)(x), second.module(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), decaying(nn.Linear(16, 16))
        self.b.weight = self.a.weight
        self.d = decaying(nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return nn.functional.linear(y, self.d.weight)  # reads a weight


def test_shared_weights_and_weights_the_model_reads_stay() -> None:
    """Tied layers and layers used by their weight are left; constraints on a factored weight go, others stay."""
    torch.manual_seed(0)
    student = Student(
        module=Tied().eval(),
        constraints=tuple(WeightConstraint(parameter=f"{n}.weight", kind="sparse") for n in ("a", "c")),
    )
    done = factorize(student, (torch.zeros(1, 16),), LowRankOptions(energy=0.8, round_to=2))
    assert set(done.ranks) == {"c"}
    assert done.kept == {"a": "its weight is shared", "b": "its weight is shared", "d": "the model reads its weight"}
    assert [c.parameter for c in done.student.constraints] == ["a.weight"]


def test_a_transformer_encoder_is_factored() -> None:
    """Packed attention is opened, and its projections are factored like any linear layer."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval()
    for parameter in [p for p in model.parameters() if p.ndim > 1]:
        decaying(nn.ParameterList([parameter]))
    done = factorize(model, (torch.zeros(1, 4, 16),), LowRankOptions(energy=0.8, round_to=2))
    assert {"layers.0.self_attn.q_proj", "layers.0.linear1"} <= set(done.ranks)
    x = torch.randn(2, 4, 16)
    with torch.no_grad():
        close = (done.student.module(x) - model(x)).norm() / model(x).norm()
    assert float(close) < 0.6
    assert replay(model, done.student.edits, (x,))(x).shape == x.shape


def test_the_recipe_knows_the_step() -> None:
    """`low_rank: {}` is a step with its defaults."""
    step = Step.model_validate({"low_rank": {}})
    assert step.kind == "low_rank"
    assert step.options == LowRankOptions(energy=0.9)
