"""Structured pruning: shapes kept, the ratio hit, edits that replay, and students on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.artifact import Effect, LineageStep
from edgekit.compress.cost import count_macs, count_parameters, weight_bytes
from edgekit.compress.prune import prune, restore
from edgekit.compress.storage import load_student, save_student
from edgekit.compress.student import PruningEdit, Student
from edgekit.errors import ArtifactError, RecipeError, UnsupportedError, UserError, WorkloadError
from edgekit.recipe import PruneOptions
from edgekit.training.weights import load_weights

IMAGE = (torch.zeros(1, 3, 16, 16),)


def conv(inputs: int, outputs: int, *, stride: int = 1, groups: int = 1, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = conv(channels, channels), conv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.second(self.first(x)))


class TwoHeads(nn.Module):
    """Gives a feature from midway as well as the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 32), conv(32, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        feature = self.body(self.stem(x))
        return self.head(feature.mean((2, 3))), feature


class TakesInputAlong(nn.Module):
    """Adds its input to a feature, and concatenates: what must keep its width, does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 32), conv(32, 3), conv(35, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        y = x + self.b(a)
        z: torch.Tensor = self.head(self.c(torch.cat([y, a], 1)).mean((2, 3)))
        return z


def plain() -> nn.Module:
    return nn.Sequential(conv(3, 32), conv(32, 64, stride=2), conv(64, 64), nn.Flatten(), nn.Linear(64 * 64, 10))


def residual() -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(conv(3, 32), Residual(32), conv(32, 64, stride=2), Residual(64), *head)


def depthwise() -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    first = (conv(3, 64), conv(64, 64, groups=64), conv(64, 128, size=1))
    return nn.Sequential(*first, conv(128, 128, groups=128, stride=2), conv(128, 128, size=1), *head)


def grouped() -> nn.Module:
    return nn.Sequential(conv(3, 64), conv(64, 64, groups=4), nn.GroupNorm(8, 64), conv(64, 64), nn.Flatten(1),
                         nn.Linear(64 * 256, 10))  # fmt: skip


NETS = {"plain": plain, "residual": residual, "depthwise": depthwise, "grouped": grouped, "inputs": TakesInputAlong}


def student_of(name: str) -> Student:
    torch.manual_seed(0)
    return Student(module=NETS[name]().eval())


@pytest.mark.parametrize("name", list(NETS))
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_the_macs_ratio_is_hit_and_the_output_keeps_its_shape(name: str, ratio: float) -> None:
    """MACs land near the ratio asked for, outputs keep their shape, and the student that came in is untouched."""
    before = student_of(name)
    macs = count_macs(before.module, IMAGE)
    after = prune(before, IMAGE, PruneOptions(macs_ratio=ratio, round_to=4), seed=0)
    # Blocks of 4 channels of nets 32 to 128 wide: one block moves the MACs by at most about a tenth of what is left.
    assert count_macs(after.module, IMAGE) / macs == pytest.approx(ratio, rel=0.10)
    with torch.no_grad():
        assert after.module(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    assert count_macs(before.module, IMAGE) == macs
    assert before.edits == ()
    assert count_parameters(after.module) < count_parameters(before.module)


def test_the_output_layer_is_known_and_needs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The last layer keeps its channels as a matter of course, without a word to the user."""
    after = prune(student_of("residual"), IMAGE, PruneOptions(macs_ratio=0.5, round_to=2), seed=0)
    assert after.module.get_submodule("6").out_features == 10
    assert caplog.text == ""


@pytest.mark.parametrize("name", list(NETS))
def test_widths_are_multiples_of_round_to(name: str) -> None:
    """Every convolution that lost channels has a multiple of round_to left."""
    before = student_of(name)
    after = prune(before, IMAGE, PruneOptions(macs_ratio=0.5, round_to=8), seed=0)
    widths = [m.out_channels for m in before.module.modules() if isinstance(m, nn.Conv2d)]
    pruned = [m.out_channels for m in after.module.modules() if isinstance(m, nn.Conv2d)]
    assert widths != pruned
    assert all(new == old or new % 8 == 0 for old, new in zip(widths, pruned, strict=True))


@pytest.mark.parametrize("name", list(NETS))
def test_edits_replay_exactly_on_a_fresh_copy(name: str) -> None:
    """restore() on the unpruned module gives the pruned module's very outputs."""
    before = student_of(name)
    after = prune(before, IMAGE, PruneOptions(macs_ratio=0.5, round_to=4), seed=0)
    again = restore(before.module, after.edits, IMAGE)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), after.module(x))


def test_two_prune_steps_replay_in_order() -> None:
    """Edits of a second step count channels as the first step left them, and replay so."""
    first = prune(student_of("residual"), IMAGE, PruneOptions(macs_ratio=0.6, round_to=4), seed=0)
    second = prune(first, IMAGE, PruneOptions(macs_ratio=0.5, round_to=4), seed=0)
    assert len(second.edits) > len(first.edits)
    again = restore(student_of("residual").module, second.edits, IMAGE)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), second.module(x))


def test_pruning_removes_the_least_important_channels() -> None:
    """A channel whose weights are a thousandth of the others' is among those removed."""
    before = student_of("plain")
    quiet = [1, 5, 9, 13, 20, 21, 22, 30]
    with torch.no_grad():
        first = before.module.get_submodule("0.0")
        assert isinstance(first, nn.Conv2d)
        first.weight[quiet] *= 1e-3
        bn, following = before.module.get_submodule("0.1"), before.module.get_submodule("1.0")
        bn.weight[quiet] *= 1e-3  # type: ignore[operator, index]
        following.weight[:, quiet] *= 1e-3  # type: ignore[operator, index]
    after = prune(before, IMAGE, PruneOptions(macs_ratio=0.5, round_to=8), seed=0)
    removed = next(e.indices for e in after.edits if e.module == "0.0")
    assert set(quiet) <= set(removed)


def test_outputs_taken_midway_keep_their_shape() -> None:
    """With two outputs, layers that give either keep all channels."""
    torch.manual_seed(0)
    before = Student(module=TwoHeads().eval())
    after = prune(before, IMAGE, PruneOptions(macs_ratio=0.5), seed=0)
    assert [o.shape for o in after.module(*IMAGE)] == [(1, 10), (1, 32, 16, 16)]
    assert {e.module for e in after.edits} == {"stem.0"}


def test_frozen_weights_are_pruned_and_stay_frozen() -> None:
    """requires_grad is no obstacle and comes out as it went in."""
    before = student_of("plain")
    for parameter in before.module.parameters():
        parameter.requires_grad_(False)
    after = prune(before, IMAGE, PruneOptions(macs_ratio=0.5), seed=0)
    assert not any(p.requires_grad for p in before.module.parameters())
    assert count_macs(after.module, IMAGE) < count_macs(before.module, IMAGE)


def test_excluded_modules_keep_their_channels() -> None:
    """What the recipe excludes is not pruned, and a name that does not exist is answered with the nearest."""
    after = prune(student_of("plain"), IMAGE, PruneOptions(macs_ratio=0.6, exclude=("1.0",)), seed=0)
    assert "1.0" not in {e.module for e in after.edits}
    assert after.module.get_submodule("1.0").out_channels == 64
    with pytest.raises(RecipeError, match=r"no module '2\.00'; did you mean '2\.0'"):
        prune(student_of("plain"), IMAGE, PruneOptions(exclude=("2.00",)), seed=0)


def test_ctrl_c_while_the_model_is_traced_is_ctrl_c() -> None:
    """torch-pruning catches everything around the first call of the model and calls it in another way: an interrupt
    there is no fault of the model."""

    interrupted: list[bool] = []

    class Interrupted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled() and not interrupted:  # the tracing run, not the one that counts
                interrupted.append(True)
                raise KeyboardInterrupt
            return super().forward(x)

    model = nn.Sequential(Interrupted(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(KeyboardInterrupt):
        prune(Student(module=model), (torch.zeros(1, 4),), PruneOptions(macs_ratio=0.5), seed=0)


def test_a_ratio_out_of_reach_is_an_error_that_names_the_nearest() -> None:
    """Pruning never returns something far from what was asked."""
    with pytest.raises(UserError, match=r"to 1% of the MACs cannot be done.*the nearest is \d+%"):
        prune(student_of("plain"), IMAGE, PruneOptions(macs_ratio=0.01), seed=0)
    with pytest.raises(UnsupportedError, match="no layer has more than 128 channels to spare"):
        prune(student_of("plain"), IMAGE, PruneOptions(round_to=128), seed=0)


def test_macs_are_those_of_the_textbook() -> None:
    """A 3x3 convolution on 16x16 is C_in·C_out·9·256 MACs; a linear layer in·out; a depthwise one C·9·256."""
    assert count_macs(nn.Conv2d(3, 8, 3, padding=1), IMAGE) == 3 * 8 * 9 * 256
    assert count_macs(nn.Conv2d(3, 3, 3, padding=1, groups=3), IMAGE) == 3 * 9 * 256
    assert count_macs(nn.Linear(7, 5), (torch.zeros(1, 7),)) == 35
    assert weight_bytes(nn.Linear(7, 5)) == 4 * (35 + 5)


class Tied(nn.Module):
    """An encoder and a decoder that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.decode(F.relu(self.encode(x)))
        return y


def test_a_student_comes_back_from_disk_with_its_lineage(tmp_path: Path) -> None:
    """Saved and loaded on another initialisation: equal outputs, edits and lineage; tied weights stay tied."""
    step = LineageStep(step="prune", summary="x", options={"macs_ratio": 0.5}, seed=1, after=Effect(macs=5))
    after = prune(student_of("depthwise"), IMAGE, PruneOptions(macs_ratio=0.5), seed=0)
    saved = Student(module=after.module.to(memory_format=torch.channels_last), edits=after.edits, lineage=(step,))
    save_student(saved, tmp_path)
    torch.manual_seed(77)
    loaded = load_student(tmp_path, depthwise(), IMAGE)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        # Same weights; another memory format may take another convolution kernel: 128-term float32 sums of O(1).
        torch.testing.assert_close(loaded.module(x), saved.module(x), rtol=1e-4, atol=1e-5)
    assert (loaded.edits, loaded.lineage) == (saved.edits, (step,))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student.json", "weights.safetensors"]

    tied = Tied().eval()
    save_student(Student(module=tied), tmp_path / "tied")
    again = load_student(tmp_path / "tied", Tied(), (torch.zeros(1, 12),)).module
    assert isinstance(again, Tied)
    assert again.decode.weight is again.encode.weight
    assert torch.equal(again.encode.weight, tied.encode.weight)


def test_a_broken_or_foreign_student_is_an_artifact_error(tmp_path: Path) -> None:
    """Truncated weights, edits for another model, a missing file: each is an ArtifactError that says so."""
    save_student(prune(student_of("plain"), IMAGE, PruneOptions(), seed=0), tmp_path)
    with pytest.raises(ArtifactError, match="does not fit the workload's model"):
        load_student(tmp_path, residual(), IMAGE)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="not a readable"):
        load_student(tmp_path, plain(), IMAGE)
    (tmp_path / "student.json").write_text('{"schema_version": 1, "edit": []}')
    with pytest.raises(ArtifactError, match="did you mean 'edits'"):
        load_student(tmp_path, plain(), IMAGE)
    with pytest.raises(ArtifactError, match=r"holds no student\.json"):
        load_student(tmp_path / "nowhere", plain(), IMAGE)


def test_an_edit_that_does_not_fit_is_refused() -> None:
    """Out-of-range indices, unknown modules and the removal of every channel are ValueErrors."""
    module = plain()
    for edit in (
        PruningEdit(module="0.0", is_output=True, indices=(32,)),
        PruningEdit(module="0.0", is_output=True, indices=(-1,)),
        PruningEdit(module="nowhere", is_output=True, indices=(0,)),
        PruningEdit(module="0.0", is_output=True, indices=tuple(range(32))),
    ):
        with pytest.raises(ValueError):
            restore(module, (edit,), IMAGE)


def test_weights_that_are_not_the_models_say_what_differs(tmp_path: Path) -> None:
    """Missing and unexpected names, wrong shapes, and pickles are each said plainly."""
    save_student(Student(module=nn.Sequential(nn.Linear(4, 4))), tmp_path)
    file = tmp_path / "weights.safetensors"
    with pytest.raises(WorkloadError, match=r"missing 1\.bias, 1\.weight; unexpected 0\.bias, 0\.weight"):
        load_weights(nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), file)
    with pytest.raises(WorkloadError, match="size mismatch"):
        load_weights(nn.Sequential(nn.Linear(4, 5)), file)
    with pytest.raises(WorkloadError, match="can run code when loaded"):
        load_weights(nn.Linear(4, 4), tmp_path / "weights.pt")
