"""TFLite conversions that only this backend can get wrong: order, layout, weights, masks, rules, trained graphs.

Real conversions of small networks in this process, seeded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from edgekit.artifact import NodeRule, Passport, RangeRule, RuleAction, Scheme  # noqa: E402
from edgekit.converters.base import ConversionRequest, QuantizationOptions  # noqa: E402
from edgekit.converters.tflite import TFLiteConverter  # noqa: E402
from edgekit.converters.tflite_flatbuffer import constant_of, read_model, schema, text  # noqa: E402
from edgekit.errors import UnsupportedError  # noqa: E402

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]

MINMAX = QuantizationOptions(ranges=RangeRule.MINMAX)


class Function(torch.nn.Module):
    """A function of the module and its inputs, as a module."""

    def __init__(self, function: Callable[..., Any], **parts: torch.nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def program_of(model: torch.nn.Module, *inputs: torch.Tensor, **options: Any) -> Any:
    with torch.no_grad():
        return torch.export.export(model.eval(), inputs, strict=False, **options)


def normal(count: int, seed: int, *shapes: tuple[int, ...]) -> tuple[tuple[np.ndarray, ...], ...]:
    rng = np.random.default_rng(seed)
    return tuple(tuple(rng.standard_normal(s).astype(np.float32) for s in shapes) for _ in range(count))


def converted(folder: Path, program: Any, scheme: Scheme, *, converter: Any = None, **fields: Any) -> Any:
    """(passport, bytes) of one conversion."""
    folder.mkdir(parents=True, exist_ok=True)
    request = ConversionRequest(name="net", program=program, scheme=scheme, output_dir=folder, **fields)
    artifact = (converter or TFLiteConverter()).convert(request)
    return artifact.passport, artifact.path.read_bytes()


def worst_db(passport: Passport) -> float:
    assert passport.fidelity is not None
    assert all(o.non_finite == 0 for o in passport.fidelity.outputs)
    return min((o.sqnr_db for o in passport.fidelity.outputs if not o.exact and o.sqnr_db is not None), default=200.0)


def test_inputs_and_outputs_keep_the_order_of_the_model(tmp_path: Path) -> None:
    """An unused input, an input that is returned, one tensor returned twice, a nest of outputs, integers and a mask:
    all stand in the file's lists in the model's order, and every value is PyTorch's."""

    def forward(_, a, unused, index, mask, b):
        total = torch.where(mask, a, b)
        return {"z": (total, [a[index], index + 1]), "a": (b, total), "kept": mask}

    torch.manual_seed(0)
    index, mask = torch.tensor([2, 0]), torch.tensor([[True, False, True]] * 4)
    program = program_of(Function(forward), torch.randn(4, 3), torch.randn(2), index, mask, torch.randn(4, 3))
    passport, _ = converted(tmp_path, program, Scheme.FP32)
    assert [(spec.shape, spec.dtype) for spec in passport.inputs] == [
        ((4, 3), "float32"),
        ((2,), "float32"),
        ((2,), "int32"),
        ((4, 3), "bool"),
        ((4, 3), "float32"),
    ]
    assert [spec.shape for spec in passport.outputs] == [(4, 3), (2, 3), (2,), (4, 3), (4, 3), (4, 3)]
    assert passport.fidelity is not None
    assert all(output.exact for output in passport.fidelity.outputs)  # selections and whole numbers only


@pytest.fixture(scope="module")
def unet() -> tuple[Any, Any]:
    """A program with the transposed convolution of most U-Nets (3x3, stride 2, padding 1, output padding 1)."""

    def forward(m, x):
        skip = functional.relu(m.enc(x))
        return m.out(torch.cat([skip, functional.relu(m.up(functional.relu(m.down(skip))))], 1))

    torch.manual_seed(0)
    model = Function(
        forward,
        enc=torch.nn.Conv2d(3, 8, 3, padding=1),
        down=torch.nn.Conv2d(8, 16, 3, 2, 1),
        up=torch.nn.ConvTranspose2d(16, 16, 3, 2, 1, output_padding=1),
        out=torch.nn.Conv2d(24, 4, 3, padding=1),
    )
    return program_of(model, torch.randn(1, 3, 16, 16)), TFLiteConverter()


# 24-bit mantissas leave over 100 dB, 11-bit weights 60 to 75. 8 bits: see tests/contract/test_converter.py, over four
# layers 30. 4-bit weights: a Gaussian over ±3σ in 15 steps has 20 dB, and four layers take 6 of them.
@pytest.mark.parametrize(
    ("scheme", "least_db", "dtypes"),
    [
        (Scheme.FP32, 100, {"float32"}),
        (Scheme.FP16, 55, {"float32", "float16"}),
        (Scheme.DYNAMIC_W8, 30, {"hybrid", "float32"}),
        (Scheme.WEIGHT_W8, 35, {"hybrid", "float32"}),
        (Scheme.WEIGHT_W4, 12, {"hybrid", "float32"}),
        (Scheme.STATIC_W8A8, 28, {"int8"}),
        (Scheme.STATIC_W8A16, 38, {"int16"}),
    ],
)
def test_every_scheme_is_what_it_says(
    unet: tuple[Any, Any], tmp_path: Path, scheme: Scheme, least_db: float, dtypes: set[str]
) -> None:
    """Each scheme's file computes in its types, comes close enough, and leaves nothing in float unsaid."""
    program, converter = unet
    samples = {"calibration": normal(8, 1, (1, 3, 16, 16)), "verification": normal(8, 2, (1, 3, 16, 16))}
    options = QuantizationOptions() if scheme is Scheme.STATIC_W8A16 else MINMAX  # 16 bits get headroom by AUTO
    passport, content = converted(tmp_path, program, scheme, converter=converter, quantization=options, **samples)
    assert worst_db(passport) > least_db
    assert {op.dtype for op in passport.ops} <= dtypes | {"mixed"}
    assert {op.dtype for op in passport.ops} & dtypes
    assert passport.unquantized_ops == ()
    assert passport.peak_activation_bytes
    kinds = {t.type for graph in read_model(content).subgraphs for t in graph.tensors}
    assert (schema().TensorType.INT4 in kinds) == (scheme is Scheme.WEIGHT_W4)
    assert (schema().TensorType.FLOAT16 in kinds) == (scheme is Scheme.FP16)


def test_no_transpose_is_left_for_an_nhwc_image(unet: tuple[Any, Any], tmp_path: Path) -> None:
    """An input permuted at the start and an output at the end cancel the file's own: no TRANSPOSE runs at all."""
    inner = unet[0].module()
    nhwc = Function(lambda m, x: m.net(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), net=inner)
    passport, _ = converted(tmp_path, torch.export.export(nhwc, (torch.randn(1, 16, 16, 3),)), Scheme.FP32)
    assert passport.transposes == 0
    assert worst_db(passport) > 100


def test_a_scheme_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    """A model without an op the quantizer takes is not presented as an int8 file."""
    program = program_of(Function(lambda _, x: torch.exp(x)), torch.randn(2, 3))
    with pytest.raises(UnsupportedError, match="changes nothing"):
        converted(tmp_path, program, Scheme.DYNAMIC_W8)
    with pytest.raises(UnsupportedError, match="changes nothing"):
        converted(tmp_path, program, Scheme.STATIC_W8A8, calibration=normal(4, 1, (2, 3)))


def test_a_mask_does_not_ruin_the_range(tmp_path: Path) -> None:
    """Attention with -inf in its mask keeps int8 steps for the logits: no scale is of the mask's size."""

    def forward(m, x):
        mask = torch.triu(torch.full((8, 8), float("-inf")), 1)
        return (m.q(x) @ m.k(x).transpose(1, 2) * 0.25 + mask).softmax(-1) @ x

    torch.manual_seed(0)
    model = Function(forward, q=torch.nn.Linear(16, 16), k=torch.nn.Linear(16, 16))
    program = program_of(model, torch.randn(1, 8, 16))
    samples = {"calibration": normal(32, 1, (1, 8, 16)), "verification": normal(8, 2, (1, 8, 16))}
    passport, content = converted(tmp_path, program, Scheme.STATIC_W8A8, quantization=MINMAX, **samples)
    assert worst_db(passport) > 25
    assert any("mask" in note for note in passport.notes)
    # with -inf or -1e9 in a range a step would be 4 million; here no value is above 50
    for tensor in read_model(content).subgraphs[0].tensors:
        if tensor.type == schema().TensorType.INT8 and tensor.quantization is not None:
            assert max(tensor.quantization.scale) < 50 / 255


def test_a_channel_of_zeros_keeps_its_bias(tmp_path: Path) -> None:
    """A pruned channel answers with its bias, though its weights alone would give it the least scale there is."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        layer.weight[1] = 0
        layer.bias[1] = 1.5
    calibration = normal(8, 1, (1, 3, 8, 8))
    passport, _ = converted(
        tmp_path, program_of(layer, torch.randn(1, 3, 8, 8)), Scheme.STATIC_W8A8, calibration=calibration
    )
    assert worst_db(passport) > 30


def test_rules_are_followed_or_refused(unet: tuple[Any, Any], tmp_path: Path) -> None:
    """`float` keeps a submodule's op in float and says why; a range rule is counted; what names nothing is refused
    with near names; a rule about activations is refused where there are none."""
    program, converter = unet
    calibration = normal(4, 1, (1, 3, 16, 16))

    def made(name: str, scheme: Scheme, *rules: NodeRule) -> Passport:
        options = QuantizationOptions(ranges=RangeRule.MINMAX, rules=rules)
        return converted(
            tmp_path / name, program, scheme, converter=converter, calibration=calibration, quantization=options
        )[0]

    kept = made("float", Scheme.STATIC_W8A8, NodeRule(node="down", action=RuleAction.FLOAT))
    assert {op.op for op in kept.unquantized_ops} >= {"CONV_2D"}
    assert all("rule" in op.reason for op in kept.unquantized_ops if op.op == "CONV_2D")
    ranged = made("mse", Scheme.STATIC_W8A8, NodeRule(node="enc", action=RuleAction.MSE))
    assert ranged.calibration is not None
    assert ranged.calibration.per_tensor["mse"] >= 1
    wide = made("int16", Scheme.STATIC_W8A8, NodeRule(node="out", action=RuleAction.INT16))
    assert any(op.name == "CONV_2D" and op.dtype == "int16" for op in wide.ops)
    with pytest.raises(UnsupportedError, match="down"):
        made("near", Scheme.STATIC_W8A8, NodeRule(node="dwn", action=RuleAction.FLOAT))
    with pytest.raises(UnsupportedError, match="activations"):
        made("dynamic", Scheme.DYNAMIC_W8, NodeRule(node="down", action=RuleAction.INT16))


def test_several_entry_points_share_one_file(unet: tuple[Any, Any], tmp_path: Path) -> None:
    """Two input sizes are two entry points, each checked against its own program; their weights are stored once."""
    program = unet[0]
    large = program_of(_model_of_unet(program), torch.randn(1, 3, 24, 32))
    single, content = converted(tmp_path / "one", program, Scheme.FP32)
    both, more = converted(tmp_path / "two", program, Scheme.FP32, signatures={"large": large})
    assert single.signatures == ()
    assert [(s.name, s.inputs[0].shape) for s in both.signatures] == [
        ("forward", (1, 3, 16, 16)),
        ("large", (1, 3, 24, 32)),
    ]
    for entry in both.signatures:
        assert entry.fidelity is not None
        assert (entry.fidelity.outputs[0].sqnr_db or 200) > 100
    weights = sum(value.numel() * 4 for value in program.state_dict.values())
    assert len(more) < len(content) + weights


def _model_of_unet(program: Any) -> torch.nn.Module:
    """The U-Net once more, from the weights of its program, free of the sizes it was exported at."""
    state = program.state_dict

    def forward(_, x):
        skip = functional.relu(functional.conv2d(x, state["enc.weight"], state["enc.bias"], padding=1))
        low = functional.relu(functional.conv2d(skip, state["down.weight"], state["down.bias"], 2, 1))
        up = functional.relu(functional.conv_transpose2d(low, state["up.weight"], state["up.bias"], 2, 1, 1))
        return functional.conv2d(torch.cat([skip, up], 1), state["out.weight"], state["out.bias"], padding=1)

    return Function(forward)


def test_what_the_format_cannot_hold_is_told_before(tmp_path: Path) -> None:
    """State kept from call to call and a free batch are obstacles `check` names."""

    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen.add_(1)
            return x * self.seen

    def told(program: Any) -> str:
        request = ConversionRequest(name="net", program=program, scheme=Scheme.FP32, output_dir=tmp_path)
        return " ".join(str(problem) for problem in TFLiteConverter().check(request))

    assert "'seen'" in told(program_of(Counter(), torch.randn(2, 3)))
    fresh = Function(lambda m, x: (m.net.weight + x).add_(1), net=torch.nn.Linear(3, 3))
    assert told(program_of(fresh, torch.randn(3, 3))) == ""  # changes a sum in place, not the weight
    batch = torch.export.Dim("batch", min=1, max=8)
    free = program_of(torch.nn.Linear(3, 2), torch.randn(2, 3), dynamic_shapes=({0: batch},))
    assert "free axis" in told(free)


def test_a_trained_graph_keeps_its_very_integers(tmp_path: Path) -> None:
    """The int8 weights in the file are those quantization-aware training left, to the last step, and so is the scale
    of the output; every op is int8."""
    pte = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    from torchao.quantization.pt2e import move_exported_model_to_eval

    from edgekit.converters.tflite_trained import qat_quantizer
    from edgekit.converters.trained_graph import without_quantization

    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    ).train()
    prepared = pte.prepare_qat_pt2e(torch.export.export(net, (x,)).module(), qat_quantizer())
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        prepared(torch.randn_like(x)).square().mean().backward()
        optimizer.step()
    move_exported_model_to_eval(prepared)
    with torch.no_grad():
        program = torch.export.export(pte.convert_pt2e(prepared), (x,))
    calibration = normal(8, 1, (2, 3, 12, 12))
    passport, content = converted(tmp_path, program, Scheme.STATIC_W8A8, is_trained=True, calibration=calibration)
    assert passport.calibration is not None
    assert passport.calibration.rule == "trained"
    assert {op.dtype for op in passport.ops} == {"int8"}
    assert worst_db(passport) > 30
    frozen = {tuple(np.sort(v.numpy().reshape(-1))) for v in program.state_dict.values() if v.dtype == torch.int8}
    model = read_model(content)
    found = {
        tuple(np.sort(values.reshape(-1)))
        for tensor in model.subgraphs[0].tensors
        if tensor.type == schema().TensorType.INT8 and (values := constant_of(model, tensor)) is not None
    }
    assert frozen == found
    ranges = without_quantization(program).ranges
    output = passport.outputs[0].quantization
    assert output is not None
    low, high = ranges["linear"]
    assert output.scale[0] == pytest.approx((high - low) / 255, rel=1e-5)
    assert text(model.subgraphs[0].tensors[model.subgraphs[0].outputs[0]].name) == passport.outputs[0].name
