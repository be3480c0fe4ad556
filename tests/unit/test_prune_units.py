"""Attention heads and hidden units: what is left computes what it did when nothing reads the rest."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekit.compress.attention import OpenAttention, open_attention
from edgekit.compress.cost import count_macs
from edgekit.compress.prune import prune
from edgekit.compress.storage import load_student, save_student
from edgekit.compress.student import AttentionEdit, PruningEdit, Student, replay
from edgekit.errors import UnsupportedError
from edgekit.recipe import PruneOptions

WIDTH = 16


class Encoder(nn.Module):
    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 24, batch_first=batch_first)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y: Tensor = self.head(self.layers(x, src_key_padding_mask=padding).mean(1))
        return y


class Fused(nn.Module):
    """Queries, keys and values from one layer, the head width worked out from the width outside."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.first, self.last = nn.Linear(WIDTH, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        y: Tensor = self.last(torch.relu(self.first(self.out(mixed)))).mean(1)
        return y


class Counting(nn.Module):
    """Separate projections, and a head count that the forward pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.all_head_size = 4, 4, 16
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def split(y: Tensor) -> Tensor:
            return y.reshape(batch, length, self.num_heads, self.head_dim).transpose(1, 2)

        scores = split(self.q(x)) @ split(self.k(x)).transpose(-1, -2)
        mixed = torch.softmax(scores, -1) @ split(self.v(x))
        y: Tensor = self.o(mixed.transpose(1, 2).reshape(batch, length, self.all_head_size))
        return y


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("widths", [{}, {"kdim": 6, "vdim": 10}, {"bias": False}])
def test_an_opened_attention_computes_the_same(batch_first: bool, widths: dict[str, int]) -> None:
    """Every way of calling nn.MultiheadAttention gives the same values and weights: float32 sums of 16 terms."""
    torch.manual_seed(0)
    closed = nn.MultiheadAttention(WIDTH, 4, batch_first=batch_first, **widths).eval()
    opened = OpenAttention(closed)
    q, k, v = (
        torch.randn(2, 3, WIDTH),
        torch.randn(2, 5, widths.get("kdim", WIDTH)),
        torch.randn(2, 5, widths.get("vdim", WIDTH)),
    )
    padding = torch.tensor([[False, False, False, True, True], [False] * 5])
    mask, causal = torch.randn(3, 5), torch.triu(torch.ones(3, 5, dtype=torch.bool), 1)
    by_head = torch.randn(8, 3, 5)
    calls = [{}, {"key_padding_mask": padding}, {"attn_mask": mask}, {"attn_mask": causal, "need_weights": False},
             {"attn_mask": by_head}, {"average_attn_weights": False}]  # fmt: skip
    for options in calls:
        inputs = (q, k, v) if batch_first else tuple(x.transpose(0, 1) for x in (q, k, v))
        one, its = closed(*inputs, **options)
        other, others = opened(*inputs, **options)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert (its is None) == (others is None)
        if its is not None:
            torch.testing.assert_close(its, others, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(closed(q[0], k[0], v[0])[0], opened(q[0], k[0], v[0])[0], rtol=1e-5, atol=1e-5)


def test_an_opened_encoder_computes_the_same_in_both_modes() -> None:
    """nn.TransformerEncoder's fused paths are left, with and without padding; special attentions stay closed."""
    torch.manual_seed(0)
    model = Encoder().eval()
    opened, edits = open_attention(model)
    assert [edit.module for edit in edits] == ["layers.layers.0.self_attn", "layers.layers.1.self_attn"]
    x, padding = torch.randn(3, 6, WIDTH), torch.zeros(3, 6, dtype=torch.bool)
    for masked in (padding, padding.clone().index_fill_(1, torch.tensor([5]), True)):
        with torch.no_grad():
            # padded positions are zeros on the fused path and something on the other: neither is read by the rest
            kept = ~masked[0]
            one, other = model.layers(x, src_key_padding_mask=masked), opened.layers(x, src_key_padding_mask=masked)
            torch.testing.assert_close(one[:, : kept.sum()], other[:, : kept.sum()], rtol=1e-4, atol=1e-5)
    special = nn.MultiheadAttention(WIDTH, 4, add_bias_kv=True)
    assert open_attention(nn.Sequential(special))[1] == []
    with pytest.raises(ValueError, match=r"no nn\.MultiheadAttention"):
        replay(nn.Sequential(nn.Linear(2, 2)), (AttentionEdit(module="0"),), (torch.zeros(1, 2),))


def test_heads_go_whole_and_what_is_left_computes_as_before(tmp_path: Path) -> None:
    """An encoder without some heads gives what it gave with those heads' outputs unread; stored, it comes back."""
    torch.manual_seed(0)
    model = Encoder().eval()
    inputs = (torch.zeros(1, 6, WIDTH), torch.zeros(1, 6, dtype=torch.bool))
    keep = ("layers.layers.*.linear*",)
    options = PruneOptions(channels_ratio=0.5, round_to=4, exclude=keep)
    student = prune(model, inputs, options)
    opened, _ = open_attention(model)
    gone = [e for e in student.edits if isinstance(e, PruningEdit)]
    assert {e.module.rpartition(".")[2] for e in gone} <= {"q_proj", "k_proj", "v_proj"}
    assert len(gone) == 2
    for edit in gone:
        owner = edit.module.rpartition(".")[0]
        heads = {i // 4 for i in edit.indices}
        assert sorted(edit.indices) == sorted(h * 4 + i for h in heads for i in range(4))
        pruned = student.module.get_submodule(owner)
        assert isinstance(pruned, OpenAttention)
        assert pruned.num_heads == 4 - len(heads)
        assert pruned.out_proj.in_features == 4 * pruned.num_heads
        with torch.no_grad():
            opened.get_submodule(owner).out_proj.weight[:, list(edit.indices)] = 0
    x, padding = torch.randn(4, 6, WIDTH), torch.zeros(4, 6, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(student.module(x, padding), opened(x, padding), rtol=1e-4, atol=1e-5)
    save_student(student, tmp_path)
    torch.manual_seed(9)
    again = load_student(tmp_path, Encoder().eval(), inputs)
    with torch.no_grad():
        assert torch.equal(again.module(x, padding), student.module(x, padding))


def test_modules_that_count_their_heads_are_told() -> None:
    """num_heads and all_head_size follow the heads that went; the forward pass relies on them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Counting(), nn.Linear(WIDTH, 3)).eval()
    student = prune(model, (torch.zeros(1, 5, WIDTH),), PruneOptions(channels_ratio=0.6, round_to=16))
    attention = student.module[1]
    assert attention.q.out_features == attention.num_heads * attention.head_dim == attention.all_head_size
    assert attention.num_heads < 4
    assert student.module(torch.randn(2, 5, WIDTH)).shape == (2, 5, 3)


def test_attention_whose_heads_cannot_go_alone_stays_whole() -> None:
    """Packed projections whose head width hangs on the width outside keep their heads; the rest is pruned."""
    torch.manual_seed(0)
    student = prune(Fused().eval(), (torch.zeros(1, 5, WIDTH),), PruneOptions(macs_ratio=0.75, round_to=4))
    assert student.module.qkv.out_features == 3 * WIDTH
    assert "qkv" not in {e.module for e in student.edits}
    assert student.module.first.out_features < 32


@pytest.mark.toolchain
def test_a_transformers_bert_loses_heads() -> None:
    """transformers' separate projections: whole heads, head counts that follow."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = model

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.bert(input_ids=ids).logits
            return logits

    ids = (torch.arange(6)[None],)
    student = prune(Wrapped(), ids, PruneOptions(channels_ratio=0.7, round_to=16))
    attention = student.module.bert.bert.encoder.layer[0].attention.self
    assert attention.num_attention_heads < 4
    assert attention.all_head_size == attention.num_attention_heads * attention.attention_head_size
    assert attention.query.out_features == attention.all_head_size


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], *, bidirectional: bool, last: str) -> None:
        super().__init__()
        self.rnn = kind(5, 12, 2, batch_first=True, bidirectional=bidirectional)
        self.last, self.head = last, nn.Linear(24 if bidirectional else 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, state = self.rnn(x)
        if self.last == "state":
            state = state[0] if isinstance(state, tuple) else state
            y: Tensor = self.head(state[-1])
        else:
            y = self.head(steps[:, -1])
        return y


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("bidirectional", "last"), [(False, "steps"), (False, "state"), (True, "steps")])
def test_hidden_units_go_from_every_level_and_direction(kind: type[nn.RNNBase], bidirectional: bool, last: str) -> None:
    """A recurrent layer without some units computes what it did when nothing read them."""
    torch.manual_seed(0)
    model = Recurrent(kind, bidirectional=bidirectional, last=last).eval()
    x = (torch.zeros(1, 4, 5),)
    student = prune(model, x, PruneOptions(channels_ratio=0.5, round_to=2))
    (edit,) = student.edits
    assert edit.module == "rnn"
    assert student.module.rnn.hidden_size == 6
    silent = copy.deepcopy(model)
    units = {i % 12 for i in edit.indices}
    both = sorted(units | {u + 12 for u in units}) if bidirectional else sorted(units)
    with torch.no_grad():
        silent.head.weight[:, both] = 0
        for name, value in silent.rnn.named_parameters():
            if name.startswith("weight_hh"):
                value[:, sorted(units)] = 0
            elif name.startswith("weight_ih_l1"):
                value[:, both] = 0
        inputs = torch.randn(3, 4, 5)
        torch.testing.assert_close(student.module(inputs), silent(inputs), rtol=1e-4, atol=1e-6)
        assert torch.equal(replay(model, student.edits, x)(inputs), student.module(inputs))
    assert "forward" not in vars(model.rnn)


@pytest.mark.parametrize("importance", ["l1", "taylor"])
def test_the_least_important_hidden_units_go(importance: str) -> None:
    """Units whose weights are a thousandth of the others' are the ones that go."""
    torch.manual_seed(0)
    model = Recurrent(nn.GRU, bidirectional=False, last="steps").eval()
    quiet = [2, 3, 7, 10]
    with torch.no_grad():
        model.head.weight[:, quiet] *= 1e-3
        for name, value in model.rnn.named_parameters():
            if name.startswith(("weight_hh", "weight_ih_l1")):
                value[:, quiet] *= 1e-3
            if name.startswith("weight"):
                value.reshape(3, 12, -1)[:, quiet] *= 1e-3
    data = torch.utils.data.TensorDataset(torch.randn(32, 4, 5), torch.arange(32) % 3)
    student = prune(
        model, (torch.zeros(1, 4, 5),), PruneOptions(channels_ratio=2 / 3, round_to=4, importance=importance), data=data
    )
    assert set(student.edits[0].indices) == set(quiet)


def test_recurrent_layers_that_cannot_lose_units_keep_them() -> None:
    """A state that goes in from outside, one that comes out, and a projection keep the hidden size."""

    class Streaming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head, self.tail = nn.GRU(5, 12), nn.Linear(12, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            steps, state = self.rnn(x, state)
            return self.tail(torch.relu(self.head(steps))), state

    inputs = (torch.zeros(2, 1, 5), torch.zeros(1, 1, 12))
    student = prune(Streaming().eval(), inputs, PruneOptions(channels_ratio=0.8, round_to=4))
    assert student.module.rnn.hidden_size == 12
    assert student.module.head.out_features < 16

    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(5, 12, proj_size=4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.rnn(x)[0])
            return y

    with pytest.raises(UnsupportedError):
        prune(Student(module=Projected().eval()), (torch.zeros(2, 1, 5),), PruneOptions(round_to=2))


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_the_macs_of_recurrent_layers_are_counted(kind: type[nn.RNNBase], gates: int) -> None:
    """gates · hidden · (inputs + hidden) a step and level, whichever kernel runs it."""
    layer = kind(5, 12, 2, batch_first=True)
    steps = gates * 12 * (5 + 12) + gates * 12 * (12 + 12)
    assert count_macs(layer, (torch.zeros(1, 7, 5),)) == 7 * steps
    assert torch.backends.mkldnn.enabled
