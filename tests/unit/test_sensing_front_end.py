"""The sensing front-end: what a node sends, what a student reads, and how both come out of a recipe step."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgekit.compress.storage import load_student, save_student
from edgekit.compress.student import SensingEdit, Student, WeightConstraint, replay
from edgekit.errors import ArtifactError, RecipeError, UserError, WorkloadError
from edgekit.recipe import Step
from edgekit.sensing.acquisition import Sensed, block_size, sense
from edgekit.sensing.deployment import MeasuredData, deployed, encoder_of, is_sensed, split, student_workload
from edgekit.sensing.linear import linear_estimate, pseudoinverse
from edgekit.sensing.matrices import measurement_count, measurement_matrix
from edgekit.sensing.options import SenseOptions
from edgekit.workload import Workload


def smooth_images(count: int, shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """Random walks along the last axis: neighbours are alike, as in real signals."""
    walk = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).cumsum(-1)
    return walk / walk.std()


def cnn(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).eval()


class TwoInputs(nn.Module):
    """Token ids and a series, as a model of several inputs has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(5, 4)
        self.rnn = nn.GRU(2, 4, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, series: Tensor) -> Tensor:
        _, state = self.rnn(series.transpose(1, 2))
        logits: Tensor = self.head(torch.cat([self.embed(ids).mean(1), state[0]], dim=1))
        return logits


def labelled(inputs: Tensor) -> TensorDataset:
    return TensorDataset(inputs, torch.arange(len(inputs)) % 3)


def workload_of(inputs: Tensor, model: nn.Module) -> Workload:
    return Workload(
        name="tiny",
        model=model,
        example_inputs=(inputs[:1],),
        train=labelled(inputs),
        evaluation=labelled(inputs[:20]),
        augment=lambda x: x,
        input_layouts=("NCHW",),
    )


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli", "orthogonal"])
def test_a_matrix_is_its_seed(kind: str) -> None:
    """The same seed gives the same matrix, another seed another; entries have variance 1/m."""
    matrix = measurement_matrix(kind, 64, 256, seed=3)
    assert np.array_equal(matrix, measurement_matrix(kind, 64, 256, seed=3))
    assert not np.array_equal(matrix, measurement_matrix(kind, 64, 256, seed=4))
    if kind == "bernoulli":
        assert set(np.unique(np.abs(matrix))) == {1 / 8}
        assert abs(np.sign(matrix).mean()) < 4 / np.sqrt(matrix.size)  # four standard deviations of a fair coin
    elif kind == "orthogonal":
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(64), atol=1e-12)
    else:
        # The variance of N entries' mean square is 2/N; five standard deviations.
        assert abs(64 * (matrix**2).mean() - 1) < 5 * np.sqrt(2 / matrix.size)


@pytest.mark.parametrize("measurements", [0, 16, 17])
def test_as_many_measurements_as_numbers_are_refused(measurements: int) -> None:
    """m >= n (and m = 0) is no compressed sensing; the error gives both numbers."""
    with pytest.raises(UserError, match=f"{measurements} measurements of 16 numbers"):
        measurement_matrix("gaussian", measurements, 16, seed=0)


def test_an_unknown_matrix_names_the_nearest() -> None:
    """A typing mistake is answered with what was meant."""
    with pytest.raises(UserError, match="did you mean 'gaussian'"):
        measurement_matrix("gausian", 2, 4, seed=0)


def test_a_ratio_that_rounds_to_nothing_is_refused() -> None:
    """1 % of 16 numbers is no measurement; the hint says what the smallest ratio is."""
    with pytest.raises(UserError, match="0 measurements") as caught:
        measurement_count(0.01, 16)
    assert "0.0625" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("shape", "block", "measured"),
    [((3, 16, 8), 4, (12, 4, 2)), ((1, 8, 8), None, (16,)), ((2, 32), 8, (4, 4)), ((40,), None, (10,))],
)
def test_measurements_are_the_matrix_times_each_block(
    shape: tuple[int, ...], block: int | None, measured: tuple[int, ...]
) -> None:
    """y = A x block by block, a quarter of the numbers, whatever op computes it; the decoder undoes the layout."""
    x = smooth_images(6, shape)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3))
    student = sense(Student(module=flat), (x[:1],), SenseOptions(ratio=0.25, block=block), labelled(x), seed=0)
    sensor, reader = split(student.module)
    y = sensor(x)
    assert tuple(y.shape[1:]) == measured
    assert y[0].numel() * 4 == x[0].numel()
    rows = y if block is None else y.flatten(2).transpose(1, 2).reshape(-1, y.shape[1])
    torch.testing.assert_close(rows, sensor.blocks(x) @ sensor.matrix.T, atol=1e-5, rtol=1e-5)
    exact = pseudoinverse(sensor.matrix)
    reader.decoder.set_estimate(exact, torch.zeros(len(exact)))
    torch.testing.assert_close(sensor(reader.decoder(y)), y, atol=1e-4, rtol=1e-4)  # A A⁺ = I


def test_the_linear_decoder_is_the_best_linear_one() -> None:
    """No other linear map has a smaller mean square error on the data: least squares is the check, and A⁺ is worse."""
    x = smooth_images(800, (1, 8, 8))
    student = sense(Student(module=cnn()), (x[:1],), SenseOptions(ratio=0.25, block=4), labelled(x), seed=1)
    sensor, reader = split(student.module)
    blocks, measured = sensor.blocks(x).double(), (sensor.blocks(x) @ sensor.matrix.T).double()
    design = torch.cat([measured, torch.ones(len(measured), 1, dtype=torch.float64)], dim=1)
    best = design @ torch.linalg.lstsq(design, blocks).solution
    least = float(((best - blocks) ** 2).mean())
    with torch.no_grad():
        reached = float(((reader.decoder(sensor(x)) - x) ** 2).mean())
    # The ridge of 1e-6 costs less than a thousandth.
    assert least <= reached * (1 + 1e-6) <= least * 1.001
    naive = measured @ pseudoinverse(sensor.matrix).double().T
    assert float(((naive - blocks) ** 2).mean()) > 1.1 * least
    weight, offset = linear_estimate(sensor, labelled(x), 0)
    assert weight.shape == (16, 4)
    assert offset.shape == (16,)


def test_a_sensed_student_survives_the_disk(tmp_path: Path) -> None:
    """Saved and loaded on a fresh architecture it answers to the bit, learned matrix included; no pickle."""
    x = smooth_images(50, (1, 8, 8))
    options = SenseOptions(ratio=0.25, block=4, learned=True)
    student = sense(Student(module=cnn()), (x[:1],), options, labelled(x), seed=2)
    with torch.no_grad():
        split(student.module)[0].matrix.mul_(1.5)  # as training would change it
    save_student(student, tmp_path)
    loaded = load_student(tmp_path, cnn(), (x[:1],))
    assert loaded.edits == student.edits
    assert isinstance(loaded.edits[0], SensingEdit)
    assert torch.equal(loaded.module(x), student.module(x))
    assert {path.name for path in tmp_path.iterdir()} == {"weights.safetensors", "student.json"}


def test_an_edit_for_other_inputs_is_refused(tmp_path: Path) -> None:
    """A student of 8x8 images does not load for 9x9 ones: the message says which blocks would fit."""
    x = smooth_images(50, (1, 8, 8))
    student = sense(Student(module=cnn()), (x[:1],), SenseOptions(block=4), labelled(x), seed=2)
    save_student(student, tmp_path)
    with pytest.raises(ArtifactError, match="do not divide a signal of 9x9; 3, 9 would"):
        load_student(tmp_path, cnn(), (torch.zeros(1, 1, 9, 9),))
    with pytest.raises(ValueError, match="input 0 is measured, the model has 0"):
        replay(cnn(), student.edits, ())


def test_only_a_learned_matrix_is_trained() -> None:
    """A fixed matrix is no parameter, so that no training step can move it; a learned one gets a gradient."""
    x = smooth_images(20, (1, 8, 8))
    for learned in (False, True):
        options = SenseOptions(ratio=0.25, block=4, learned=learned)
        module = sense(Student(module=cnn()), (x[:1],), options, labelled(x), seed=0).module
        assert ("sensor.matrix" in dict(module.named_parameters())) is learned
        module(x).sum().backward()
        assert (split(module)[0].matrix.grad is not None) is learned


def test_zeros_of_earlier_steps_are_kept() -> None:
    """A constraint follows its parameter behind the front-end, and into what ships."""
    x = smooth_images(20, (1, 8, 8))
    before = Student(module=cnn(), constraints=(WeightConstraint(parameter="0.weight", kind="sparse"),))
    student = sense(before, (x[:1],), SenseOptions(block=4), labelled(x), seed=0)
    for holder in (student, deployed(student, workload_of(x, cnn()))[0]):
        (constraint,) = holder.constraints
        assert torch.equal(holder.module.get_parameter(constraint.parameter), before.module.get_parameter("0.weight"))
    assert encoder_of(student, workload_of(x, cnn()))[0].constraints == ()


def test_one_input_of_several_is_measured() -> None:
    """A recurrent model of ids and a series: the series is measured, the ids go through, and the split agrees."""
    ids, series = torch.randint(0, 5, (30, 6)), smooth_images(30, (2, 32))
    data = TensorDataset(ids, series, torch.arange(30) % 3)
    examples = (ids[:1], series[:1])
    model = TwoInputs().eval()
    student = sense(Student(module=model), examples, SenseOptions(block=8, input=1), data, seed=0)
    load = Workload(name="two", model=model, example_inputs=examples, train=data, evaluation=data)
    shipped, seen = deployed(student, load)
    assert [tuple(v.shape) for v in seen.example_inputs] == [(1, 6), (1, 4, 4)]
    columns = seen.evaluation.tensors  # type: ignore[attr-defined]
    assert torch.equal(columns[0], ids)
    torch.testing.assert_close(shipped.module(*columns[:2]), student.module(ids, series))
    encoder, signals = encoder_of(student, load)
    assert [tuple(v.shape) for v in signals.example_inputs] == [(1, 2, 32)]
    item, _ = signals.evaluation[3]
    torch.testing.assert_close(encoder.module(item[None])[0], columns[1][3])


def test_a_workload_seen_through_the_front_end() -> None:
    """Train, calibration and evaluation data become measurements, labels stay, and what is for signals goes."""
    x = smooth_images(40, (1, 8, 8))
    load = workload_of(x, cnn())
    plain = Student(module=load.build_model())
    assert student_workload(load, plain) is load
    assert deployed(plain, load) == (plain, load)
    student = sense(plain, load.example_inputs, SenseOptions(ratio=0.25, block=4), load.train, seed=0)
    assert is_sensed(student)
    seen = student_workload(load, student)
    assert tuple(seen.example_inputs[0].shape) == (1, 4, 2, 2)
    assert seen.input_layouts == ("NCHW",)
    assert seen.augment is None
    assert len(seen.evaluation) == 20
    measured, target = seen.evaluation[7]
    assert int(target) == 7 % 3
    torch.testing.assert_close(seen.build_model()(measured[None]), student.module(x[7:8]))
    whole = sense(plain, load.example_inputs, SenseOptions(ratio=0.25), load.train, seed=0)
    assert student_workload(load, whole).input_layouts == (None,)


def test_data_that_are_no_tensors_are_measured_item_by_item() -> None:
    """Any map-style data set works; nothing is read before it is asked for."""

    class Items:
        def __init__(self) -> None:
            self.read: list[int] = []

        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            self.read.append(index)
            return np.full((1, 8, 8), index, np.float32), index % 3

    x = smooth_images(20, (1, 8, 8))
    student = sense(Student(module=cnn()), (x[:1],), SenseOptions(block=4), labelled(x), seed=0)
    items = Items()
    load = Workload(name="items", model=cnn(), example_inputs=(x[:1],), evaluation=items)
    seen = student_workload(load, student)
    assert isinstance(seen.evaluation, MeasuredData)
    assert items.read == []
    measured, target = seen.evaluation[4]
    assert (items.read, target) == ([4], 1)
    torch.testing.assert_close(measured, split(student.module)[0](torch.full((1, 1, 8, 8), 4.0))[0])


def test_a_sensed_student_is_pruned_and_keeps_its_measurements() -> None:
    """Pruning after sensing makes the network smaller; the node still sends the same numbers."""
    from edgekit.compress.prune import prune
    from edgekit.recipe import PruneOptions

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
    ).eval()  # fmt: skip
    x = smooth_images(60, (1, 8, 8))
    for learned in (False, True):
        options = SenseOptions(ratio=0.25, block=4, learned=learned)
        student = sense(Student(module=network), (x[:1],), options, labelled(x), seed=0)
        smaller = prune(student, (x[:1],), PruneOptions(macs_ratio=0.5, round_to=8), seed=0)
        assert isinstance(smaller.module, Sensed)
        assert torch.equal(split(smaller.module)[0](x), split(student.module)[0](x))
        assert smaller.module(x).shape == (60, 3)
        again = replay(network, smaller.edits, (x[:1],))
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in smaller.module.state_dict().items()
        }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SenseOptions(block=3), "blocks of 3 do not divide a signal of 8x8; 2, 4, 8 would"),
        (SenseOptions(input=1), "sense.input is 1; the model's inputs are 0 to 0"),
        (SenseOptions(ratio=0.001, block=2), "0 measurements"),
    ],
)
def test_bad_options_say_what_would_do(options: SenseOptions, message: str) -> None:
    """A block that does not divide the image, an input that is not there, a ratio too small."""
    x = smooth_images(10, (1, 8, 8))
    with pytest.raises(UserError, match=message):
        sense(Student(module=cnn()), (x[:1],), options, labelled(x), seed=0)


def test_other_bad_input_of_the_step() -> None:
    """Integers, a second front-end, no training data, data that are not finite, blocks of a vector, a huge matrix."""
    x = smooth_images(10, (1, 8, 8))
    student = Student(module=cnn())
    with pytest.raises(RecipeError, match="int64"):
        sense(student, (torch.zeros(1, 8, dtype=torch.long),), SenseOptions(), labelled(x), seed=0)
    with pytest.raises(WorkloadError, match="train is None"):
        sense(student, (x[:1],), SenseOptions(), None, seed=0)
    with pytest.raises(WorkloadError, match="not finite"):
        sense(student, (x[:1],), SenseOptions(block=4), labelled(torch.full_like(x, float("nan"))), seed=0)
    with pytest.raises(RecipeError, match="series"):
        sense(student, (torch.zeros(1, 64),), SenseOptions(block=8), labelled(x), seed=0)
    with pytest.raises(RecipeError, match="too large"):
        sense(student, (torch.zeros(1, 3, 224, 224),), SenseOptions(), labelled(x), seed=0)
    once = sense(student, (x[:1],), SenseOptions(block=4, decoder="pseudoinverse"), None, seed=0)
    with pytest.raises(RecipeError, match="senses already"):
        sense(once, (x[:1],), SenseOptions(block=4), labelled(x), seed=0)
    with pytest.raises(UserError, match="no sensing front-end"):
        split(cnn())


def test_a_recipe_reads_the_step() -> None:
    """`sense` is one of the methods; a ratio of 1 and an unknown matrix are errors of the recipe."""
    step = Step.model_validate({"sense": {"ratio": 0.1, "block": 7, "matrix": "bernoulli", "learned": True}})
    assert step.kind == "sense"
    for bad in ({"ratio": 1.0}, {"ratio": 0.0}, {"matrix": "fourier"}, {"block": 1}, {"blocks": 8}):
        with pytest.raises(ValueError):
            Step.model_validate({"sense": bad})


def test_the_step_run_by_the_pipeline(tmp_path: Path) -> None:
    """run_step measures before and after; after fine-tuning the accuracy is back, and the matrix has not moved."""
    from edgekit.compress.options import TrainOptions
    from edgekit.compress.steps import first_student, run_step

    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(300) % 3
    x = torch.randn(300, 1, 8, 8, generator=generator) * 0.3 + (classes.float() - 1)[:, None, None, None]
    load = Workload(
        name="levels",
        model=cnn(),
        example_inputs=(x[:1],),
        train=TensorDataset(x, classes),
        evaluation=TensorDataset(x[:90], classes[:90]),
    )
    student = first_student(load.build_model())
    step = Step.model_validate({"sense": {"ratio": 0.25, "block": 4}})
    sensed = run_step(student, load.build_model(), step, load, seed=5, work_dir=tmp_path / "a")
    told = sensed.lineage[-1]
    assert told.step == "sense"
    assert told.summary.startswith("measures 4 of 16 numbers of each block of 4x4 (gaussian)")
    finetune = Step(finetune=TrainOptions(epochs=8, batch_size=32, learning_rate=0.02, threads=1))
    trained = run_step(sensed, load.build_model(), finetune, load, seed=5, work_dir=tmp_path / "b")
    after = trained.lineage[-1].after
    assert after is not None
    assert after.accuracy is not None
    assert after.accuracy > 0.9
    assert torch.equal(split(trained.module)[0].matrix, split(sensed.module)[0].matrix)


def test_sizes_of_blocks() -> None:
    """Blocks take all channels; a signal no block divides is to be measured whole."""
    assert block_size((3, 8, 8), 4) == 48
    assert block_size((2, 30), 5) == 10
    assert block_size((2, 30), None) == 60
    with pytest.raises(ValueError, match="measure it as a whole"):
        block_size((1, 7, 5), 2)
