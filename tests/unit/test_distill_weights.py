"""Weight distillation: which layers a student's are made from, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from edgekit.distill import WeightDistillOptions, selected_student, weight_distill
from edgekit.distill.matching import match_layers
from edgekit.distill.weights import ParameterGenerator, WeightGenerator
from edgekit.errors import WorkloadError
from edgekit.train import weights_digest

FAST = {"batch_size": 32, "threads": 1, "logger": "none"}


def encoder(width: int, layers: int, heads: int) -> nn.Module:
    torch.manual_seed(width)
    layer = nn.TransformerEncoderLayer(width, heads, 2 * width, batch_first=True, dropout=0.0)
    return nn.Sequential(
        nn.Linear(4, width), nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), nn.Flatten(),
        nn.Linear(5 * width, 3),
    )  # fmt: skip


def stages(width: int, blocks: int) -> nn.Module:
    """Two stages of `blocks` convolutions each, as a ResNet names them."""
    torch.manual_seed(width)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, width, 5, padding=2)
            self.layer1 = nn.Sequential(*[self.block(width) for _ in range(blocks)])
            self.layer2 = nn.Sequential(*[self.block(width) for _ in range(blocks)])
            self.head = nn.Linear(width, 3)

        @staticmethod
        def block(channels: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value: torch.Tensor = self.head(self.layer2(self.layer1(self.stem(x))).mean(dim=(2, 3)))
            return value

    return Net()


def task(*shape: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, *shape, generator=generator)
    return TensorDataset(inputs, (inputs.flatten(1)[:, 0] > 0).long())


def test_repeated_layers_are_dealt_out_by_role() -> None:
    """Four encoder layers to two: each student's layer gets two adjacent ones, and each role its own kind."""
    found = {m.student: m.teachers for m in match_layers(encoder(8, 2, 2), encoder(16, 4, 4))}
    assert found["1.layers.0.linear1"] == ("1.layers.0.linear1", "1.layers.1.linear1")
    assert found["1.layers.1.self_attn"] == ("1.layers.2.self_attn", "1.layers.3.self_attn")
    assert found["0"] == ("0",)
    assert found["3"] == ("3",)


def test_stages_stay_stages() -> None:
    """layer1's blocks come from layer1's, layer2's from layer2's."""
    found = {m.student: m.teachers for m in match_layers(stages(4, 1), stages(8, 3))}
    assert found["layer1.0.0"] == tuple(f"layer1.{i}.0" for i in range(3))
    assert found["layer2.0.1"] == tuple(f"layer2.{i}.1" for i in range(3))


def test_the_user_decides_and_leaves_out() -> None:
    """`layers` goes before every rule, for containers too; `exclude` keeps a module's own weights."""
    student, teacher = stages(4, 1), stages(8, 3)
    found = {
        m.student: m.teachers
        for m in match_layers(student, teacher, layers={"layer2.0": ["layer1.2"], "head": "head"}, exclude=["stem"])
    }
    assert found["layer2.0.0"] == ("layer1.2.0",)
    assert found["head"] == ("head",)
    assert "stem" not in found
    made = WeightGenerator(student, teacher, match_layers(student, teacher, exclude=["stem"])).settled()
    assert torch.equal(made.get_submodule("stem").weight, student.get_submodule("stem").weight)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"laier1": "layer1"}, "the student has no submodule 'laier1'; did you mean 'layer1'"),
        ({"layer1": "layr1"}, "the teacher has no submodule 'layr1'; did you mean 'layer1'"),
        ({"head": "stem"}, "'head' of the student cannot be made from stem"),
    ],
)
def test_layers_that_cannot_be_are_errors(layers: dict[str, str], said: str) -> None:
    """A name of neither model, and layers of other kinds."""
    with pytest.raises(WorkloadError, match=said):
        match_layers(stages(4, 1), stages(8, 3), layers=layers)


def test_nothing_in_common_is_an_error() -> None:
    """A student without a single layer of the teacher's kinds says what to write."""
    with pytest.raises(WorkloadError, match="no layer of the student has a counterpart"):
        match_layers(nn.Sequential(nn.Conv1d(1, 2, 3)), nn.Sequential(nn.Linear(2, 2)))


def test_the_first_student_is_a_selection_of_the_teacher() -> None:
    """Before any training a made weight is a teacher's weight at evenly spaced channels, the same in every layer."""
    teacher = stages(8, 2)
    student = selected_student(stages(4, 2), teacher)
    every_second = torch.arange(4) * 2
    ours = student.get_submodule("layer1.1.0").weight
    theirs = teacher.get_submodule("layer1.1.0").weight[every_second][:, every_second]
    # tanh and its undoing by W: two float32 roundings.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        student.get_submodule("layer1.1.1").running_var, teacher.get_submodule("layer1.1.1").running_var[every_second]
    )


def test_a_teacher_of_the_same_shape_is_taken_over() -> None:
    """With equal architectures the first student computes what the teacher does."""
    teacher, x = encoder(8, 2, 2).eval(), torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(99)
    other = nn.Sequential(*[m for m in encoder(8, 2, 2).children()])
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    torch.testing.assert_close(selected_student(other, teacher)(x), teacher(x), rtol=1e-4, atol=1e-5)


def test_a_smaller_kernel_is_the_middle_of_the_larger() -> None:
    """5x5 to 3x3 keeps the centre; 3x3 to 5x5 puts zeros around."""
    weight = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        ParameterGenerator([weight], (2, 2, 3, 3), has_kernel=True)(), weight[:, :, 1:4, 1:4], rtol=1e-5, atol=1e-7
    )
    wide = ParameterGenerator([weight[:, :, :3, :3]], (2, 2, 5, 5), has_kernel=True)()
    torch.testing.assert_close(wide[:, :, 1:4, 1:4], weight[:, :, :3, :3], rtol=1e-5, atol=1e-7)
    assert float(wide[:, :, 0].abs().sum()) == 0


def test_the_projections_learn_and_the_teacher_does_not() -> None:
    """Every factor of the paper's equation gets a gradient; the teacher's weights are no parameters."""
    teacher, student = encoder(16, 4, 4), encoder(8, 2, 2)
    generator = WeightGenerator(student, teacher, match_layers(student, teacher))
    generator(torch.randn(3, 5, 4)).square().sum().backward()
    maker = generator.makers[generator.names.index("1.layers.0.linear1.weight")]
    assert {name.split(".")[0] for name, _ in maker.named_parameters()} == {"alpha", "scale", "shift", "projections"}
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in maker.parameters())
    assert generator.made == generator.parameters_in_all


def test_recurrent_layers_are_chosen_within_the_module() -> None:
    """A one-layer LSTM is made from the layers of a deeper, wider one, each gate from its own."""
    teacher, student = nn.LSTM(4, 16, 2, batch_first=True), nn.LSTM(4, 8, batch_first=True)

    class Wrapped(nn.Module):
        def __init__(self, rnn: nn.LSTM) -> None:
            super().__init__()
            self.rnn = rnn

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value: torch.Tensor = self.rnn(x)[0][:, -1]
            return value

    ours, theirs = Wrapped(student), Wrapped(teacher)
    made = selected_student(ours, theirs)
    picked = torch.arange(32) * 2  # gates of 16 rows to gates of 8: every second row of each
    torch.testing.assert_close(
        made.get_submodule("rnn").weight_ih_l0, teacher.weight_ih_l0[picked], rtol=1e-5, atol=1e-7
    )
    generator = WeightGenerator(ours, theirs, match_layers(ours, theirs))
    generator(torch.randn(2, 5, 4)).sum().backward()
    assert all(maker.scale.grad is not None for maker in generator.makers)


def test_weight_distillation_ends_with_a_plain_student(tmp_path: Path) -> None:
    """The result is of the student's own class and layout, another run gives the same, the inputs are untouched."""
    teacher, student = stages(8, 2), stages(4, 1)
    before = weights_digest(teacher), weights_digest(student)
    options = WeightDistillOptions(generator_epochs=2, epochs=1, features={"layer1": "layer1"}, **FAST)
    made = weight_distill(student, teacher, task(1, 6, 6), options, work_dir=tmp_path / "a")
    assert type(made) is type(student)
    assert made.state_dict().keys() == student.state_dict().keys()
    again = weight_distill(student, teacher, task(1, 6, 6), options, work_dir=tmp_path / "b")
    assert weights_digest(made) == weights_digest(again) != before[1]
    # Everything is there already: nothing is trained again, and the result is the same.
    assert weights_digest(weight_distill(student, teacher, task(1, 6, 6), options, work_dir=tmp_path / "a")) == (
        weights_digest(made)
    )
    assert (weights_digest(teacher), weights_digest(student)) == before
