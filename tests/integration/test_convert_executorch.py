"""ExecuTorch: what it writes is right, what it leaves in float is told with the reason, and the rest is refused.

Converted in this process, on networks of a few thousand weights; how children are run is tested elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("executorch")

from torch import nn  # noqa: E402

from edgekit.artifact import NodeRule, Passport, RangeRule, RuleAction, Scheme  # noqa: E402
from edgekit.converters.base import ConversionRequest, QuantizationOptions  # noqa: E402
from edgekit.converters.executorch import ExecuTorchConverter  # noqa: E402
from edgekit.converters.executorch_graphs import ready  # noqa: E402
from edgekit.converters.shapes import DynamicAxis, at_other_sizes, dynamic_shapes, enlarged  # noqa: E402
from edgekit.errors import UnsupportedError, UserError  # noqa: E402
from edgekit.exporting import export_program  # noqa: E402

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]


class Net(nn.Module):
    """`padding='same'` with dilation (executorch#20517), depthwise with a multiplier, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same", dilation=2), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.side = nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head((self.deep(x) + self.side(x)).mean((2, 3)))


class Masked(nn.Module):
    """Attention under a mask of -inf, and arithmetic on integers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1))

    def forward(self, x, ids):
        scores = self.query(x) @ x.transpose(1, 2) + self.mask
        return scores.softmax(-1) @ self.value(x), ids + 1, x, ids


def images(count: int, seed: int, size: int = 10) -> tuple[tuple[np.ndarray, ...], ...]:
    rng = np.random.default_rng(seed)
    return tuple((rng.normal(size=(1, 3, size, size)).astype(np.float32),) for _ in range(count))


def convert(
    model: nn.Module, example: tuple[torch.Tensor, ...], scheme: Scheme, folder: Path, **more: object
) -> Passport:
    program = more.pop("program", None) or export_program(model, example, name="net")
    request = ConversionRequest(
        name="net", program=program, scheme=scheme, backend="executorch", output_dir=folder, **more
    )
    converter = ExecuTorchConverter()
    problems = converter.check(request)
    if problems:
        raise UnsupportedError(problems)
    return converter.convert(request).passport


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


EXAMPLE = (torch.zeros(1, 3, 10, 10),)


def sqnr(passport: Passport, index: int = 0) -> float:
    assert passport.fidelity is not None
    output = passport.fidelity.outputs[index]
    return 200.0 if output.exact else output.sqnr_db or 0.0


@pytest.mark.parametrize(
    ("scheme", "dtypes", "floor"),
    [
        # 11 bits of mantissa over a few dozen terms: above 50 dB; 8-bit weights and activations: see test_converter
        (Scheme.FP16, {"float16"}, 50),
        (Scheme.DYNAMIC_W8, {"hybrid"}, 30),
        (Scheme.STATIC_W8A8, {"int8"}, 24),
    ],
)
def test_a_scheme_computes_in_its_type(scheme: Scheme, dtypes: set[str], floor: float, tmp_path: Path) -> None:
    """The ops that carry the weights are of the scheme's type and the answers are PyTorch's."""
    calibration = images(32, 1) if scheme.is_static else ()
    passport = convert(net(), EXAMPLE, scheme, tmp_path, calibration=calibration, verification=images(16, 2))
    assert dtypes <= {op.dtype for op in passport.ops}
    assert sqnr(passport) > floor
    assert passport.transposes is not None
    assert passport.peak_activation_bytes is not None
    assert passport.peak_activation_bytes >= 3 * 100 * 4  # the input at least
    if scheme is Scheme.DYNAMIC_W8:
        assert {left.op for left in passport.unquantized_ops} == {"XNNDepthwiseConv2d"}
        assert all("deep" in left.where for left in passport.unquantized_ops)


def test_ranges_are_chosen_by_what_they_do_to_the_outputs(tmp_path: Path) -> None:
    """AUTO is no worse than any single rule on the samples it scores; the passport has what each rule gave."""
    passport = convert(net(), EXAMPLE, Scheme.STATIC_W8A8, tmp_path, calibration=images(32, 1))
    facts = passport.calibration
    assert facts is not None
    assert {"minmax", "mse", "percentile"} <= set(facts.compared)
    best = max(facts.compared.values())
    # the kernels accumulate in integers and requantize in float, the simulation rounds in float throughout
    assert sqnr(passport) > best - 3


@pytest.mark.parametrize(
    ("rule", "error", "said"),
    [
        (NodeRule(node="sidd", action=RuleAction.FLOAT), UserError, "sidd"),
        (NodeRule(node="side", action=RuleAction.INT16), UnsupportedError, "16-bit"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_an_error(
    rule: NodeRule, error: type[Exception], said: str, tmp_path: Path
) -> None:
    """A name that is nowhere, and an action XNNPACK does not have: neither is ignored."""
    with pytest.raises(error, match=said):
        convert(
            net(),
            EXAMPLE,
            Scheme.STATIC_W8A8,
            tmp_path,
            calibration=images(4, 1),
            quantization=QuantizationOptions(rules=(rule,)),
        )


def test_masks_and_integers_survive_int8(tmp_path: Path) -> None:
    """What meets -inf stays float, with the reason; whole numbers and inputs given back are exact to the bit."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    samples = tuple((rng.normal(size=(1, 6, 8)).astype(np.float32), rng.integers(0, 9, (1, 6))) for _ in range(32))
    example = (torch.zeros(1, 6, 8), torch.zeros(1, 6, dtype=torch.int64))
    passport = convert(Masked().eval(), example, Scheme.STATIC_W8A8, tmp_path, calibration=samples)
    assert any("infinite" in left.reason for left in passport.unquantized_ops)
    assert sqnr(passport) > 20
    assert [spec.dtype for spec in passport.outputs] == ["float32", "int64", "float32", "int64"]
    assert passport.fidelity is not None
    assert all(output.exact for output in passport.fidelity.outputs[1:])


class Recurrent(nn.Module):
    """Steps that share a weight, the first of them on a state of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNN(6, 8, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]


def test_a_state_of_zeros_does_not_spoil_the_weight_of_later_steps(tmp_path: Path) -> None:
    """The range of a state that is always zero takes nothing from the weight it is multiplied with."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    samples = tuple((rng.normal(size=(1, 4, 6)).astype(np.float32),) for _ in range(16))
    example = (torch.zeros(1, 4, 6),)
    passport = convert(
        Recurrent(), example, Scheme.STATIC_W8A8, tmp_path, calibration=samples, verification=samples[:8]
    )
    # 8 bits in each of four steps; with the weight rounded for the first step it was -1 dB
    assert sqnr(passport) > 25


class TwoScales(nn.Module):
    """A detector's head, the same on each of two feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        first = torch.relu(self.first(x))
        second = torch.relu(self.second(first))
        return torch.cat([self.head(one).flatten(2) for one in (first, second)], 2)


def test_a_layer_that_is_applied_twice_is_right_each_time(tmp_path: Path) -> None:
    """Its bias is quantized by the scale of each input; shared, the runtime refused the file."""
    torch.manual_seed(0)
    passport = convert(
        TwoScales(), EXAMPLE, Scheme.STATIC_W8A8, tmp_path, calibration=images(16, 1), verification=images(8, 2)
    )
    assert sqnr(passport) > 25


def test_a_scheme_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    """No linear layer and no convolution: a `dynamic_w8` file would be the float one under another name."""
    with pytest.raises(UnsupportedError, match="change nothing"):
        convert(nn.Sequential(nn.Sigmoid(), nn.Tanh()), (torch.zeros(1, 4),), Scheme.DYNAMIC_W8, tmp_path)


def test_two_entry_points_are_each_compared(tmp_path: Path) -> None:
    """The same model at another size is a second method of the file, with ranges of the first, run on its own."""
    model = net()
    other = export_program(model, (torch.randn(1, 3, 16, 16),), name="net")
    passport = convert(
        model, EXAMPLE, Scheme.STATIC_W8A8, tmp_path, calibration=images(32, 1), signatures={"large": other}
    )
    entries = {entry.name: entry for entry in passport.signatures}
    assert set(entries) == {"forward", "large"}
    assert entries["large"].inputs[0].shape == (1, 3, 16, 16)
    fidelity = entries["large"].fidelity
    assert fidelity is not None
    assert (fidelity.outputs[0].sqnr_db or 0) > 20


def test_a_free_batch_runs_at_every_size(tmp_path: Path) -> None:
    """Compared at the example's, the least and the most samples of a batch; the memory planned is told."""
    axes = (DynamicAxis(input=0, axis=0, minimum=1, maximum=4),)
    example = enlarged((torch.randn(1, 8),), axes)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    program = export_program(model, example, name="net", dynamic_shapes=dynamic_shapes(axes, example))
    sample = (np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32),)
    sizes = (sample, *at_other_sizes(sample, axes))
    assert [one[0].shape[0] for one in sizes] == [2, 1, 4]
    passport = convert(model, example, Scheme.FP32, tmp_path, program=program, verification=sizes)
    assert sqnr(passport) > 100
    assert passport.inputs[0].shape == ("batch", 8)
    assert passport.outputs[0].shape == ("batch", 4)
    assert any("largest" in warning for warning in passport.warnings)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(4, 6, 3, padding=1),
        nn.Conv3d(4, 6, (3, 1, 2), stride=(2, 1, 2), dilation=(2, 1, 1), groups=2, bias=False),
        nn.Conv3d(4, 4, (3, 2, 4), padding="same", dilation=2),
    ],
)
def test_a_3d_convolution_is_the_same_in_2d(layer: nn.Module) -> None:
    """XNNPACK and executorch have no 3-D convolution; written with 2-D ones it gives the same to float rounding."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 8, 7)
    program = ready(export_program(layer, (x,), name="net"))
    assert all("conv3d" not in str(node.target) for node in program.graph.nodes)
    with torch.no_grad():
        # a hundred terms of order one in another order: some 1e-6 each
        torch.testing.assert_close(program.module()(x), layer(x), atol=2e-5, rtol=1e-4)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, 4))

    def forward(self, x):
        self.seen.add_(x)
        return self.seen * 2


def test_a_rule_keeps_an_op_in_float_and_the_passport_says_so(tmp_path: Path) -> None:
    """A layer named by its module path computes in float in the file, for the reason given; the rest is int8."""
    options = QuantizationOptions(
        ranges=RangeRule.MINMAX, bias_correction=True, rules=(NodeRule(node="side", action=RuleAction.FLOAT),)
    )
    passport = convert(net(), EXAMPLE, Scheme.STATIC_W8A8, tmp_path, calibration=images(32, 1), quantization=options)
    kept = [left for left in passport.unquantized_ops if left.op == "XNNConv2d"]
    assert len(kept) == 1
    assert "side" in kept[0].where
    assert "rule" in kept[0].reason
    assert any(op.name == "XNNConv2d" and op.dtype == "int8" for op in passport.ops)
    assert passport.calibration is not None
    assert passport.calibration.bias_correction
    assert sqnr(passport) > 24


def test_state_kept_between_calls_is_refused(tmp_path: Path) -> None:
    """A buffer the model writes to would carry over from one inference to the next: refused, and named."""
    with pytest.raises(UnsupportedError, match="seen"):
        convert(Counts().eval(), (torch.zeros(1, 4),), Scheme.FP32, tmp_path)
