"""Which channels go: Taylor importance, global ranking, every kind of target, the latency table, and bad input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn
from torch.utils.data import TensorDataset

from edgekit.compress.channel_groups import dependency_graph
from edgekit.compress.cost import count_macs, count_parameters, macs_by_module
from edgekit.compress.importance import _gates
from edgekit.compress.latency import LatencyTable, LayerShape, Timing, layer_shapes
from edgekit.compress.prune import prune
from edgekit.compress.student import Student
from edgekit.errors import RecipeError, UnsupportedError, UserError
from edgekit.recipe import PruneOptions

IMAGE = (torch.zeros(1, 3, 8, 8),)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    ).eval()  # fmt: skip


def samples(count: int = 48) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 4)


def group_of(module: nn.Module, name: str) -> tuple[object, object]:
    graph = dependency_graph(module, IMAGE)
    layer = module.get_submodule(name)
    prune_out = graph.get_pruner_of_module(layer).prune_out_channels
    return graph, graph.get_pruning_group(layer, prune_out, list(range(layer.out_channels)))


@pytest.mark.parametrize(("name", "readers"), [("0", ["3"]), ("3", ["5"]), ("5", ["9"])])
def test_a_taylor_gate_is_the_derivative_of_the_loss_by_the_channel(name: str, readers: list[str]) -> None:
    """d loss / d gate, the gate multiplying a channel where it is read, against a central difference in float64; for a
    grouped reader too."""
    module = net().double()
    x, y = samples().tensors
    graph, group = group_of(net(), name)
    module.zero_grad()
    F.cross_entropy(module(x.double()), y).backward()
    plain = net()
    for parameter, exact in zip(plain.parameters(), module.parameters(), strict=True):
        parameter.grad = exact.grad.float() if exact.grad is not None else None
    graph, group = group_of(plain, name)
    found = _gates(graph, group)

    def loss(channel: int, by: float) -> float:
        changed = net().double()
        for reader in readers:
            layer = changed.get_submodule(reader)
            with torch.no_grad():
                if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                    size = layer.in_channels // layer.groups
                    rows = layer.out_channels // layer.groups
                    part = channel // size
                    layer.weight[part * rows : (part + 1) * rows, channel % size] *= 1 + by
                else:
                    layer.weight[:, channel] *= 1 + by
        with torch.no_grad():
            return float(F.cross_entropy(changed(x.double()), y))

    for channel in (0, 7, 13):
        expected = (loss(channel, 1e-6) - loss(channel, -1e-6)) / 2e-6
        # gradients are kept in float32: 7 digits of terms of the size of the largest gate
        assert float(found[channel]) == pytest.approx(expected, abs=1e-5 * float(found.abs().max()) + 1e-7)


def test_taylor_takes_what_the_loss_does_not_notice() -> None:
    """Channels with large weights that nothing reads go first by Taylor, and stay by magnitude."""
    module = net()
    unread = [1, 5, 9, 13]
    with torch.no_grad():
        module[0].weight[unread] *= 10
        module[1].weight[unread] *= 10
        module[3].weight[:, unread] = 0
    options = {"macs_ratio": 0.6, "round_to": 4}
    taylor = prune(module, IMAGE, PruneOptions(importance="taylor", **options), data=samples())
    removed = next(set(e.indices) for e in taylor.edits if e.module == "0")
    assert set(unread) <= removed
    magnitude = prune(module, IMAGE, PruneOptions(importance="l2", **options))
    assert not set(unread) & next(set(e.indices) for e in magnitude.edits if e.module == "0")


def test_taylor_is_repeatable_and_leaves_the_module_alone() -> None:
    """The same seed and data give the same channels; frozen weights stay frozen and no gradient is left."""
    module = net()
    module[0].weight.requires_grad_(False)
    options = PruneOptions(importance="taylor", ranking="global", macs_ratio=0.5, round_to=2, samples=32)
    first, second = (prune(module, IMAGE, options, seed=3, data=samples()) for _ in range(2))
    assert first.edits == second.edits
    assert not module[0].weight.requires_grad
    assert all(p.grad is None for p in module.parameters())
    with pytest.raises(UserError, match="'taylor' needs training data"):
        prune(module, IMAGE, options)


def test_a_global_ranking_takes_more_where_less_matters() -> None:
    """A layer whose channels hardly differ from zero loses more than its share; uniformly all lose the same."""
    module = net()
    with torch.no_grad():  # half of layer 0's channels carry nothing, all of layer 3's carry the same
        for layer in (module[0], module[1]):
            layer.weight[:8] *= 1e-3
        module[3].weight[:, :8] *= 1e-3
    kept = {}
    for ranking in ("uniform", "global"):
        student = prune(module, IMAGE, PruneOptions(ranking=ranking, channels_ratio=0.85, round_to=2))
        kept[ranking] = [student.module.get_submodule(name).out_channels for name in ("0", "3", "5")]
    assert kept["global"] == [8, 32, 30] or kept["global"][0] == 8
    assert sum(kept["global"][1:]) > sum(kept["uniform"][1:])
    shares = [kept["uniform"][i] / width for i, width in enumerate((16, 32, 32))]
    assert max(shares) - min(shares) <= 2 / 16 + 1e-9


@pytest.mark.parametrize("target", ["macs_ratio", "parameters_ratio", "channels_ratio"])
def test_each_target_is_hit(target: str) -> None:
    """What is asked for is what is left, to a block of two channels."""
    module = net()
    student = prune(module, IMAGE, PruneOptions(**{target: 0.5}, round_to=2))
    left = {
        "macs_ratio": count_macs(student.module, IMAGE) / count_macs(module, IMAGE),
        "parameters_ratio": count_parameters(student.module) / count_parameters(module),
        "channels_ratio": sum(student.module.get_submodule(n).out_channels for n in ("0", "3", "5")) / 80,
    }
    assert left[target] == pytest.approx(0.5, abs=0.06)


def test_a_target_below_what_the_graph_allows_says_the_least_and_what_binds() -> None:
    """The error names the least that can be reached and the layer that holds it there, and why."""
    with pytest.raises(
        UserError, match=r"to 1% of the MACs cannot be done: the nearest is \d+%, the least.*'\d' binds"
    ):
        prune(net(), IMAGE, PruneOptions(macs_ratio=0.01, round_to=4))
    with pytest.raises(UserError, match=r"'3' binds.*of group '3', all kept because it is excluded"):
        prune(net(), IMAGE, PruneOptions(macs_ratio=0.1, round_to=4, exclude=("3",)))
    with pytest.raises(UserError, match=r"to 2% of the parameters.*binds"):
        prune(net(), IMAGE, PruneOptions(parameters_ratio=0.02, round_to=8))


def test_globs_exclude_and_a_glob_of_nothing_is_an_error() -> None:
    """`exclude` takes globs; one that matches nothing names the nearest module."""
    named = nn.ModuleDict({"stem": nn.Conv2d(3, 16, 3), "body": nn.Conv2d(16, 32, 3), "tail": nn.Conv2d(32, 4, 3)})
    model = nn.Sequential(*named.values())
    student = prune(model, IMAGE, PruneOptions(channels_ratio=0.5, round_to=4, exclude=("0*",)))
    assert {edit.module for edit in student.edits} == {"1"}
    with pytest.raises(RecipeError, match=r"prune\.exclude: the model has no module '7\*'"):
        prune(model, IMAGE, PruneOptions(exclude=("7*",)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"macs_ratio": 0.5, "channels_ratio": 0.5}, "give one target, not macs_ratio and channels_ratio"),
        ({"latency_table": "table.json"}, "latency_table is read for latency_ratio"),
        ({"between": {"distill": {}}}, "rounds is 1"),
        ({"rounds": 2, "between": {}}, "give one of 'distill' and 'finetune'"),
        ({"parameters_ratio": 1.5}, "less than or equal to 1"),
        ({"ranking": "best"}, "uniform"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], said: str) -> None:
    """Each wrong combination is an error of its own words."""
    with pytest.raises(ValidationError, match=said):
        PruneOptions.model_validate(options)
    assert PruneOptions().target == ("macs_ratio", 0.5)
    assert PruneOptions(latency_ratio=0.3).target == ("latency_ratio", 0.3)


def by_weight(files: Sequence[Path]) -> list[float]:
    """A timer whose latency is 1000 ns and one for each weight of the layer, read from the file."""
    import onnx
    from onnx import numpy_helper

    return [1000.0 + numpy_helper.to_array(onnx.load(f).graph.initializer[0]).size for f in files]


@pytest.mark.toolchain
def test_a_latency_table_is_what_its_timer_said(tmp_path: Path) -> None:
    """At measured widths the table gives the measurement, between them the bilinear value, and it survives a file."""
    module = net()
    table = LatencyTable.measure(module, IMAGE, timer=by_weight)
    shapes = layer_shapes(module, IMAGE)
    assert list(shapes) == ["0", "3", "5", "9"]
    assert table.latency_ns(shapes["3"]) == 1000 + 16 * 32 * 9
    # inputs·outputs is bilinear, so interpolation is exact everywhere inside the grid
    assert table.latency_ns(shapes["3"].at(11, 27)) == pytest.approx(1000 + 11 * 27 * 9)
    assert table.latency_ns(shapes["5"]) == 1000 + 32 * 16 * 9
    assert table.total(module, IMAGE) == sum(table.by_module(module, IMAGE).values())
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    student = prune(module, IMAGE, PruneOptions(latency_ratio=0.5, round_to=2), table=table)
    assert table.total(student.module, IMAGE) / table.total(module, IMAGE) == pytest.approx(0.5, abs=0.06)


@pytest.mark.toolchain
def test_layers_are_timed_in_the_runtime() -> None:
    """Measured on this host: every point positive and finite, a layer of 64 times the work slower than one."""
    module = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).eval()
    inputs = (torch.zeros(1, 8, 24, 24),)
    table = LatencyTable.measure(module, inputs)
    assert all(0 < point.latency_ns < 1e9 for points in table.families.values() for point in points)
    full = layer_shapes(module, inputs)["2"]
    assert table.latency_ns(full) > table.latency_ns(full.at(8, 8))


def test_a_table_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """A layer it lacks, a file that is none, a model made of other layers, and no table at all."""
    linear = LayerShape(op="linear", inputs=4, outputs=4, size=(1,))
    table = LatencyTable(runtime="given", families={linear.family: (Timing(inputs=4, outputs=4, latency_ns=10.0),)})
    with pytest.raises(UnsupportedError, match="the latency table has no conv"):
        table.total(net(), IMAGE)
    with pytest.raises(UnsupportedError, match="too little for a latency table"):
        table.total(nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.Flatten(), nn.Linear(800, 1)), IMAGE)
    with pytest.raises(UserError, match="no such latency table"):
        LatencyTable.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"families": 3}')
    with pytest.raises(UserError, match="not a latency table"):
        LatencyTable.load(tmp_path / "bad.json")
    with pytest.raises(UserError, match="needs a table"):
        prune(net(), IMAGE, PruneOptions(latency_ratio=0.5))


def test_macs_by_module_add_up() -> None:
    """The layers' MACs are the module's, each under its own name."""
    found = macs_by_module(net(), IMAGE)
    assert sum(found.values()) == count_macs(net(), IMAGE)
    assert found["3"] == 16 * 32 * 9 * 64
    assert found["9"] == 32 * 4
    assert set(found) == {"0", "3", "5", "9"}


def test_pruning_a_plain_module_gives_a_student() -> None:
    """No recipe, no workload: a module in, a student out, the module as it was."""
    module = net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    student = prune(module, IMAGE, PruneOptions(macs_ratio=0.5, round_to=4))
    assert isinstance(student, Student)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
