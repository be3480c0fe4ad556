"""Tensors of a file are aligned with nodes of a program by value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.artifact import NodeRule, RuleAction
from edgekit.converters.alignment import AlignedTensor, align, covering_tensors, node_values
from edgekit.converters.provenance import is_named, module_path, nodes_named, source_line
from edgekit.exporting import export_program

Arrays = dict[str, np.ndarray]


class Block(nn.Module):
    """Convolution, batch norm, an in-place ReLU, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = self.drop(x.relu_())
        result: Tensor = self.head(x.mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return export_program(Block(), (torch.zeros(1, 3, 6, 6),), name="block")


def _samples(count: int = 2) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((1, 3, 6, 6)).astype(np.float32),) for _ in range(count)]


def _nhwc(values: Arrays) -> Arrays:
    """As a TFLite file would hold them: fused, channels last, other names, slightly other sums."""
    relu = np.ascontiguousarray(values["relu_"].transpose(0, 2, 3, 1)) * np.float32(1 + 1e-6)
    return {"a": relu, "b": values["mean"].reshape(1, 1, 1, 4), "zeros": np.zeros((1, 4, 6, 6), np.float32)}


def test_values_are_those_of_the_model(program: torch.export.ExportedProgram) -> None:
    """Recorded values are the program's own, each taken before an in-place op changes it."""
    (sample,) = _samples(1)
    values = node_values(program, sample)
    assert (values["batch_norm"] < 0).any()
    assert np.array_equal(values["relu_"], np.maximum(values["batch_norm"], 0))
    with torch.no_grad():
        expected = program.module()(torch.from_numpy(sample[0])).numpy()
    assert np.array_equal(values["linear"], expected)


def test_layout_reshape_and_fusion(program: torch.export.ExportedProgram) -> None:
    """A tensor is found in another order of axes and another shape; what was fused away is absent, and covered."""
    samples = _samples()
    values = [node_values(program, sample) for sample in samples]
    aligned = align(program, samples, [_nhwc(one) for one in values])
    assert {name: item.tensor for name, item in aligned.items()} == {"relu_": "a", "dropout": "a", "mean": "b"}
    assert aligned["relu_"].permutation == (0, 3, 1, 2)
    restored = aligned["relu_"].restored(_nhwc(values[1])["a"])
    np.testing.assert_allclose(restored, values[1]["relu_"], rtol=2e-6)  # the sums were made to differ by 1e-6
    covered = covering_tensors(program, aligned)
    assert covered["conv2d"].tensor == covered["batch_norm"].tensor == "a"
    assert "linear" not in covered


def test_other_values_are_not_aligned(program: torch.export.ExportedProgram) -> None:
    """A tensor with a node's shape and sums but other values on one sample is not taken for it."""
    samples = _samples()
    values = [node_values(program, sample) for sample in samples]
    shuffled = [{"a": one["relu_"][:, ::-1].copy()} for one in values]
    assert align(program, samples, shuffled) == {}
    late = [{"a": values[0]["relu_"]}, {"a": values[0]["relu_"]}]
    assert align(program, samples, late) == {}


def test_equal_values_go_by_order(program: torch.export.ExportedProgram) -> None:
    """Of several tensors with a node's values the first of its shape is taken, and the others are told."""
    samples = _samples()
    values = [node_values(program, sample) for sample in samples]
    held = [{"first": one["relu_"], "copy": one["relu_"].copy(), "flat": one["relu_"].reshape(1, -1)} for one in values]
    aligned = align(program, samples, held)
    assert aligned["relu_"].tensor == "first"
    assert set(aligned["relu_"].others) == {"copy", "flat"}
    assert aligned["dropout"].tensor == "copy"


@pytest.mark.parametrize("permutation", [(0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1), (3, 2, 1, 0)])
def test_restoring_undoes_a_permutation(permutation: tuple[int, ...]) -> None:
    """`restored` puts the axes back whatever their order was in the file."""
    reference = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    stored = reference.transpose(np.argsort(permutation))
    item = AlignedTensor(node="n", tensor="t", permutation=permutation, shape=reference.shape, error=0.0)
    assert np.array_equal(item.restored(stored.reshape(-1)), reference)


def test_rules_name_nodes_and_modules(program: torch.export.ExportedProgram) -> None:
    """A rule names a node, a submodule with all in it, or a pattern; provenance is the user's own line."""
    nodes = {node.name: node for node in program.graph.nodes}
    assert module_path(nodes["conv2d"]) == "conv"
    assert (source_line(nodes["relu_"]) or "").rpartition(":")[0].endswith("test_alignment.py")
    assert is_named(nodes["conv2d"], "conv")
    assert is_named(nodes["conv2d"], "conv2*")
    assert not is_named(nodes["conv2d"], "con")
    rule = NodeRule(node="nothing", action=RuleAction.FLOAT)
    assert nodes_named(program, [rule]) == {rule: ()}
