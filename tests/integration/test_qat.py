"""Quantization-aware training on real digits: what is trained is what the int8 file computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from torch import nn  # noqa: E402

from edgekit.artifact import Scheme  # noqa: E402
from edgekit.compress.quantize import freeze_ranges, is_trained_program, prepare_qat, trained_program  # noqa: E402
from edgekit.converters.conversion import ConversionOptions, ConversionOutcome, convert_program  # noqa: E402
from edgekit.converters.fidelity import sqnr_db  # noqa: E402
from edgekit.errors import UnsupportedError, UserError  # noqa: E402
from edgekit.exporting import save_program  # noqa: E402

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]


class Digits:
    """scikit-learn's 1,797 digits of 8 by 8 pixels; the last 297 are held out."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        self.images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
        self.labels = torch.tensor(data.target)
        self.example = (self.images[:1],)
        self.held_out = range(1500, 1797)

    def fit(self, module: nn.Module, *, epochs: int, rate: float) -> None:
        optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], rate)
        module.train()
        for _ in range(epochs):
            for batch in torch.randperm(1500).split(50):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(self.images[batch]), self.labels[batch]).backward()
                optimizer.step()
        module.eval()

    def answers(self, module: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([module(self.images[i : i + 1]) for i in self.held_out])

    def accuracy(self, answers: torch.Tensor) -> float:
        return float((answers.argmax(1) == self.labels[1500:]).float().mean())


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="module")
def trained(digits: Digits) -> nn.Module:
    """A small float network; its batch normalization has an `eps` of its own, as EfficientNet's has."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16, eps=1e-2),
        nn.ReLU6(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32, eps=1e-2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(32, 10),
    )
    digits.fit(net, epochs=6, rate=1e-2)
    return net


@pytest.fixture(scope="module")
def prepared(digits: Digits, trained: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    module = prepare_qat(trained, digits.example)
    digits.fit(module, epochs=2, rate=1e-3)
    freeze_ranges(module)
    digits.fit(module, epochs=1, rate=3e-4)
    return module


@pytest.fixture(scope="module")
def outcome(
    digits: Digits, prepared: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ConversionOutcome, torch.Tensor]:
    folder = tmp_path_factory.mktemp("trained")
    program = trained_program(prepared, digits.example)
    assert is_trained_program(program)
    found = convert_program(
        folder / "program.pt2",
        save_program(program, folder / "program.pt2"),
        name="digits",
        targets=["executorch"],
        schemes=[Scheme.STATIC_W8A8, Scheme.FP32],
        output_dir=folder / "out",
        verification=[(digits.images[i : i + 1].numpy(),) for i in digits.held_out],
        options=ConversionOptions(is_trained=True),
    )
    return found, digits.answers(program.module())


def test_preparing_keeps_what_the_float_model_says(digits: Digits, trained: nn.Module) -> None:
    """Before any training step the only difference is rounding: batch normalization is folded with its own eps.

    With torch's default eps instead (1e-5 for 1e-2) the scale of every channel would be off, by percents where the
    variance is small. Eight bits leave 40 dB a layer here (see test_converter); 20 are asked for, after one batch that
    shows the observers the ranges.
    """
    torch.manual_seed(0)
    module = prepare_qat(trained, digits.example)
    module.train()
    module(digits.images[:500])
    module.eval()
    found = sqnr_db(digits.answers(trained).numpy(), digits.answers(module).numpy())
    assert found is not None
    assert found > 20


def test_the_program_computes_what_was_trained(digits: Digits, prepared: nn.Module) -> None:
    """The converted program's quantize and dequantize ops are the fake quantization of training, to the bit or nearly.

    A value halfway between two steps may be rounded either way (the two multiply by 1/scale in different orders),
    which is one step of 256 in rare places: 45 dB on the outputs is far below what a wrong scale in one layer leaves.
    """
    program = trained_program(prepared, digits.example)
    trained_answers, exported = digits.answers(prepared).numpy(), digits.answers(program.module()).numpy()
    found = sqnr_db(trained_answers, exported)
    assert np.array_equal(trained_answers, exported) or (found is not None and found > 45)


def test_training_steps_keep_the_accuracy_in_the_file(
    digits: Digits, trained: nn.Module, outcome: tuple[ConversionOutcome, torch.Tensor]
) -> None:
    """The int8 `.pte` answers held-out digits as well as the float network, within two standard errors (297 digits)."""
    found, simulated = outcome
    (artifact,) = found.artifacts
    before, after = digits.accuracy(digits.answers(trained)), digits.accuracy(simulated)
    assert before > 0.8
    assert after > before - 2 * (before * (1 - before) / 297) ** 0.5
    fidelity = artifact.passport.fidelity
    assert fidelity is not None
    assert fidelity.samples == 256  # the most that are compared, of 297
    # int32 accumulation against float32: differences are single steps of the output's 8 bits in some places
    assert fidelity.outputs[0].exact or (fidelity.outputs[0].sqnr_db or 0) > 35
    assert (fidelity.top1_agreement or 0) > 0.97


def test_a_trained_file_is_int8_and_says_where_its_ranges_are_from(
    outcome: tuple[ConversionOutcome, torch.Tensor],
) -> None:
    """Everything computes in int8, the passport's calibration rule is `trained`; another scheme is refused."""
    found, _ = outcome
    passport = found.artifacts[0].passport
    assert {op.dtype for op in passport.ops} == {"int8", "mixed"}, (passport.ops, passport.unquantized_ops)
    assert passport.unquantized_ops == ()
    assert passport.calibration is not None
    assert (passport.calibration.rule, passport.calibration.samples) == ("trained", 0)
    (refused,) = found.failures
    assert refused.scheme is Scheme.FP32
    assert isinstance(refused.error, UnsupportedError)


class SharedBeforeNorms(nn.Module):
    """One convolution read by a normalization and by a sum, and one applied twice with a normalization each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        for index, norm in enumerate(self.norms):
            nn.init.uniform_(norm.weight, 0.5 + index, 1.5 + index)  # type: ignore[arg-type]
            nn.init.normal_(norm.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = torch.relu(self.norms[0](x))
        return x + self.norms[1](self.twice(y)) * self.norms[2](self.twice(x))


@pytest.mark.parametrize("backend", ["executorch", "tflite", "onnx"])
def test_a_layer_that_others_read_is_not_folded(backend: str) -> None:
    """Normalizations behind a layer whose output, or whose weight, is used elsewhere stay apart: what is trained
    computes what the module does, to 8 bits."""
    torch.manual_seed(3)
    module, images = SharedBeforeNorms().eval(), torch.randn(16, 3, 8, 8)
    prepared = prepare_qat(module, (images[:2],), backend=backend)
    prepared.train()
    with torch.no_grad():
        prepared(images)
        freeze_ranges(prepared)
        found, wanted = prepared(images).numpy(), module(images).numpy()
    # 8 bits each for input, weights and four activations; folded wrongly it is below 5 dB
    assert sqnr_db(wanted, found) > 20


def test_a_backend_without_training_is_named(digits: Digits, trained: nn.Module) -> None:
    """An unknown backend is a UserError that lists the known ones."""
    with pytest.raises(UserError, match="core-ml"):
        prepare_qat(trained, digits.example, backend="core-ml")


def test_training_for_another_backend_uses_that_backends_quantizer(
    digits: Digits, trained: nn.Module, tmp_path: Path
) -> None:
    """A module prepared for TFLite trains and gives a program with 8-bit ranges."""
    torch.manual_seed(0)
    module = prepare_qat(trained, digits.example, backend="tflite")
    digits.fit(module, epochs=1, rate=1e-3)
    program = trained_program(module, digits.example)
    assert is_trained_program(program)
    assert digits.accuracy(digits.answers(program.module())) > 0.7
