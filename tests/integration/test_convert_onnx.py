"""What the ONNX backend keeps for any model: every scheme right or refused, nothing left in float unsaid.

Conversions run in this process, on small networks. Seeded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from edgekit.artifact import Artifact, NodeRule, RangeRule, RuleAction, Scheme  # noqa: E402
from edgekit.converters.base import ConversionRequest, QuantizationOptions  # noqa: E402
from edgekit.converters.conversion import export_all  # noqa: E402
from edgekit.converters.onnx import OnnxConverter  # noqa: E402
from edgekit.converters.onnx_graph import OnnxGraph  # noqa: E402
from edgekit.converters.onnx_rewrites import pool_spatial_means  # noqa: E402
from edgekit.converters.passports import inspect_file  # noqa: E402
from edgekit.converters.shapes import DynamicAxis, permuted  # noqa: E402
from edgekit.converters.target_run import ConversionOptions  # noqa: E402
from edgekit.errors import UnsupportedError, UserError  # noqa: E402

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]

Samples = tuple[tuple[np.ndarray, ...], ...]


def normal(count: int, seed: int, *shapes: tuple[int, ...]) -> Samples:
    rng = np.random.default_rng(seed)
    return tuple(tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes) for _ in range(count))


class Backend:
    """One model, exported once; `convert` gives an artifact of a scheme."""

    def __init__(self, model: Any, samples: Samples, held_out: Samples, folder: Path, **options: Any) -> None:
        torch.manual_seed(0)
        example = tuple(torch.from_numpy(array) for array in samples[0])
        exported = export_all(model.eval(), example, "net", {}, ConversionOptions(**options))
        self.program = exported.programs[0][1]
        self.samples = tuple(permuted(sample, exported.orders) for sample in samples)
        self.held_out = tuple(permuted(sample, exported.orders) for sample in held_out)
        self.converter = OnnxConverter()
        self.folder = folder
        self.count = 0

    def convert(self, scheme: Scheme, **quantization: Any) -> Artifact:
        self.count += 1
        target = self.folder / f"{self.count}"
        target.mkdir(parents=True)
        return self.converter.convert(
            ConversionRequest(
                name="net",
                program=self.program,
                scheme=scheme,
                backend="onnx",
                calibration=self.samples,
                verification=self.held_out,
                output_dir=target,
                quantization=QuantizationOptions(**quantization),
            )
        )


class Everything(torch.nn.Module):
    """Convolutions, attention over their pixels, an LSTM and an embedding; two inputs and three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, stride=2, padding=1), torch.nn.BatchNorm2d(16))
        self.depthwise = torch.nn.Conv2d(16, 32, 3, padding="same", groups=16)
        self.norm = torch.nn.LayerNorm(32)
        self.qkv = torch.nn.Linear(32, 96)
        self.out = torch.nn.Linear(32, 32)
        self.words = torch.nn.Embedding(50, 32)
        self.lstm = torch.nn.LSTM(32, 16, batch_first=True)
        self.head = torch.nn.Linear(16, 10)

    def forward(self, image, ids):
        pixels = torch.nn.functional.relu6(self.depthwise(torch.relu(self.stem(image)))).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(self.norm(pixels)).chunk(3, dim=-1)
        attended = torch.softmax(query @ key.transpose(1, 2) / 32**0.5, dim=-1) @ value
        tokens = torch.cat([pixels + self.out(attended), self.words(ids)], dim=1)
        states, _ = self.lstm(tokens)
        return self.head(states.mean(1)), states, states.argmax(-1)


def pictures_and_words(count: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    return tuple((rng.normal(size=(1, 3, 8, 8)).astype(np.float32), rng.integers(0, 50, (1, 4))) for _ in range(count))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("everything")
    return Backend(Everything(), pictures_and_words(32, 1), pictures_and_words(16, 2), folder)


@pytest.fixture(scope="module")
def made(everything: Backend) -> dict[Scheme, Artifact]:
    return {scheme: everything.convert(scheme) for scheme in Scheme}


FLOORS = {
    Scheme.FP32: 100,  # 24-bit mantissas over a few hundred terms
    Scheme.FP16: 55,  # 11-bit mantissas: 6.02 * 11 = 66 dB for each weight, and some layers of them
    Scheme.WEIGHT_W8: 30,  # 8 bits over 4 sigma: 41 dB, 7 dB for five layers of it
    Scheme.DYNAMIC_W8: 25,
    Scheme.WEIGHT_W4: 12,  # 4 bits fewer than 8: 24 dB fewer than 41, and the same layers
    Scheme.STATIC_W8A8: 22,
    Scheme.STATIC_W8A16: 25,
}


@pytest.mark.parametrize("scheme", list(Scheme))
def test_every_scheme_answers_as_pytorch_does(made: dict[Scheme, Artifact], scheme: Scheme) -> None:
    """Each float output of a model with most kinds of layers, on inputs it was not calibrated with."""
    fidelity = made[scheme].passport.fidelity
    assert fidelity is not None
    assert [output.non_finite for output in fidelity.outputs] == [0, 0, 0]
    found = [output.sqnr_db for output in fidelity.outputs[:2]]
    assert all(value is not None and value > FLOORS[scheme] for value in found), found


def stored_types(artifact: Artifact) -> dict[str, int]:
    """numpy type to number of constant values of it in the file."""
    counts: dict[str, int] = {}
    for tensor in onnx.load(artifact.path).graph.initializer:
        name = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name)
        counts[name] = counts.get(name, 0) + int(np.prod(tensor.dims))
    return counts


def test_weights_are_stored_as_the_scheme_says(made: dict[Scheme, Artifact], everything: Backend) -> None:
    """16, 8 and 4 bits a weight in the file's bytes; what is left in float32 are scales, biases and norms."""
    weights = 3 * 16 * 9 + 32 * 9 + 32 * 96 + 32 * 32 + 50 * 32 + 64 * 32 + 64 * 16 + 16 * 10
    types = {scheme: stored_types(artifact) for scheme, artifact in made.items()}
    assert types[Scheme.FP32]["float32"] >= weights
    assert types[Scheme.FP16]["float16"] >= weights
    assert types[Scheme.WEIGHT_W8]["int8"] >= weights
    recurrent = 64 * 32 + 64 * 16
    assert types[Scheme.WEIGHT_W4]["int4"] == weights - recurrent
    for scheme in (Scheme.FP16, Scheme.WEIGHT_W8, Scheme.WEIGHT_W4):
        assert types[scheme].get("float32", 0) < 1200, (scheme, types[scheme])
    sizes = {scheme: artifact.passport.size_bytes for scheme, artifact in made.items()}
    assert sizes[Scheme.WEIGHT_W4] < sizes[Scheme.WEIGHT_W8] < sizes[Scheme.FP16] < sizes[Scheme.FP32]
    assert not any(tensor.external_data for a in made.values() for tensor in onnx.load(a.path).graph.initializer)


def test_a_bare_file_tells_its_scheme(made: dict[Scheme, Artifact]) -> None:
    """What a file is, is read from its bytes: ops, inputs and outputs as in the passport, and the scheme."""
    for scheme, artifact in made.items():
        bare = inspect_file(artifact.path)
        assert bare.scheme is scheme
        assert (bare.ops, bare.boundaries, bare.transposes) == (
            artifact.passport.ops,
            artifact.passport.boundaries,
            artifact.passport.transposes,
        )


def test_what_stays_float_is_listed(made: dict[Scheme, Artifact]) -> None:
    """Static: LSTM and norms, by the user's module. Dynamic: the depthwise convolution. Weight-only: nothing."""
    static = {op.op: op.where for op in made[Scheme.STATIC_W8A8].passport.unquantized_ops}
    assert {"LSTM", "LayerNormalization", "Softmax"} <= set(static)
    assert not {"Conv", "Gemm"} & set(static)
    assert static["LayerNormalization"].startswith("norm (")
    dynamic = [(op.op, op.where.split(" ")[0]) for op in made[Scheme.DYNAMIC_W8].passport.unquantized_ops]
    assert dynamic == [("Conv", "depthwise")]
    assert made[Scheme.WEIGHT_W8].passport.unquantized_ops == ()
    assert made[Scheme.FP16].passport.unquantized_ops == ()
    assert any("float32" in note for note in made[Scheme.FP16].passport.notes)


def test_products_run_in_integers(made: dict[Scheme, Artifact]) -> None:
    """In onnxruntime, not only in the file: convolutions and dense layers between Q and DQ became integer kernels."""
    dtypes = {(op.name, op.dtype) for op in made[Scheme.STATIC_W8A8].passport.ops}
    assert {("Conv", "uint8"), ("Gemm", "uint8"), ("MatMul", "uint8")} <= dtypes
    assert not {("Conv", "float32"), ("Gemm", "float32"), ("MatMul", "float32")} & dtypes
    peaks = [made[scheme].passport.peak_activation_bytes for scheme in (Scheme.FP32, Scheme.STATIC_W8A8)]
    assert all(peaks)


def test_ranges_are_chosen_by_measurement(made: dict[Scheme, Artifact]) -> None:
    """The passport says what each way gave, how many tensors took which rule, and the number of samples."""
    facts = made[Scheme.STATIC_W8A8].passport.calibration
    assert facts is not None
    assert {"minmax", "mse", "percentile"} <= set(facts.compared)
    assert (facts.samples, facts.rule) == (32, "auto")
    assert sum(facts.per_tensor.values()) > 5


def test_the_same_program_gives_the_same_bytes(everything: Backend, made: dict[Scheme, Artifact]) -> None:
    """Whatever was converted in between by the same converter."""
    again = everything.convert(Scheme.STATIC_W8A8)
    assert again.passport.sha256 == made[Scheme.STATIC_W8A8].passport.sha256
    assert everything.convert(Scheme.FP32).passport.sha256 == made[Scheme.FP32].passport.sha256


def test_rules_are_followed(everything: Backend, made: dict[Scheme, Artifact]) -> None:
    """By submodule or node: kept in float and listed so, given 16 bits, given another range; all are recorded."""
    rules = (
        NodeRule(node="qkv", action=RuleAction.FLOAT),
        NodeRule(node="stem*", action=RuleAction.INT16),
        NodeRule(node="depthwise", action=RuleAction.PERCENTILE),
    )
    artifact = everything.convert(Scheme.STATIC_W8A8, rules=rules, ranges=RangeRule.MINMAX)
    passport = artifact.passport
    listed = {op.where: op.reason for op in passport.unquantized_ops}
    assert any(where.startswith("qkv (") and "rule" in reason for where, reason in listed.items())
    assert "int16" in stored_types(artifact)
    assert passport.calibration is not None
    assert passport.calibration.rules == rules
    assert set(passport.calibration.per_tensor) == {"minmax", "percentile"}


def test_a_rule_that_cannot_be_followed_is_an_error(everything: Backend) -> None:
    """One that names nothing, one about activations where none are quantized, one on an op that has no result of its
    own in integers."""
    with pytest.raises(UserError, match="qkw"):
        everything.convert(Scheme.STATIC_W8A8, rules=(NodeRule(node="qkw", action=RuleAction.FLOAT),))
    with pytest.raises(UnsupportedError, match="no fixed ranges"):
        everything.convert(Scheme.WEIGHT_W8, rules=(NodeRule(node="qkv", action=RuleAction.INT16),))
    with pytest.raises(UnsupportedError, match="not quantized"):
        everything.convert(Scheme.STATIC_W8A8, rules=(NodeRule(node="lstm", action=RuleAction.MSE),))


class Masked(torch.nn.Module):
    """Attention with padding hidden by a constant added to its logits."""

    def __init__(self, hidden: float) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(32, 96)
        self.out = torch.nn.Linear(32, 32)
        self.hidden = hidden

    def forward(self, x, mask):
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        logits = query @ key.transpose(1, 2)
        hidden = torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask == 0, self.hidden)
        return self.out(torch.softmax(logits + hidden[:, None, :], dim=-1) @ value)


@pytest.mark.parametrize("hidden", [-1e9, float("-inf")])
def test_a_mask_does_not_ruin_a_range(tmp_path: Path, hidden: float) -> None:
    """8 bits over -1e9..10 would hold nothing but the mask: its addition stays float, the products are integers."""
    rng = np.random.default_rng(0)

    def sentences(count: int) -> Samples:
        lengths = rng.integers(3, 9, count)
        return tuple(
            (rng.normal(size=(1, 8, 32)).astype(np.float32), (np.arange(8)[None] < n).astype(np.int64)) for n in lengths
        )

    torch.manual_seed(0)
    backend = Backend(Masked(hidden), sentences(32), sentences(16), tmp_path)
    passport = backend.convert(Scheme.STATIC_W8A8).passport
    assert passport.fidelity is not None
    sqnr = passport.fidelity.outputs[0].sqnr_db
    assert sqnr is not None
    assert sqnr > 24  # 41 dB for one quantizer over 4 sigma; some ten of them one behind the other
    assert {"Add", "Softmax"} <= {op.op for op in passport.unquantized_ops}
    assert {op.dtype for op in passport.ops if op.name in ("Gemm", "MatMul")} == {"uint8"}


class Plain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2, padding="valid")
        self.second = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.head(torch.relu(self.second(y) + y).mean((2, 3)))


def test_nhwc_takes_one_transpose(tmp_path: Path) -> None:
    """The permutation the user asked for, and no other, in float and int8."""
    torch.manual_seed(0)
    images = (normal(16, 1, (1, 3, 9, 9)), normal(8, 2, (1, 3, 9, 9)))
    backend = Backend(Plain(), *images, tmp_path, input_layout="nhwc")
    for scheme in (Scheme.FP32, Scheme.STATIC_W8A8):
        passport = backend.convert(scheme).passport
        assert passport.inputs[0].shape == (1, 9, 9, 3)
        assert passport.transposes == 1
        assert passport.fidelity is not None
        sqnr = passport.fidelity.outputs[0].sqnr_db
        assert sqnr is not None
        assert sqnr > (100 if scheme is Scheme.FP32 else 22)


def test_a_free_axis_is_free_in_the_file(tmp_path: Path) -> None:
    """Called `batch`, and right at sizes from 1 to 5 whatever the scheme."""
    torch.manual_seed(0)
    held_out = tuple(sample for size in (1, 3, 5) for sample in normal(4, size, (size, 3, 9, 9)))
    axis = DynamicAxis(input=0, axis=0, minimum=1, maximum=8)
    backend = Backend(Plain(), normal(16, 1, (2, 3, 9, 9)), held_out, tmp_path, dynamic=(axis,))
    for scheme in Scheme:
        passport = backend.convert(scheme).passport
        assert passport.inputs[0].shape == ("batch", 3, 9, 9)
        assert passport.outputs[0].shape == ("batch", 4)
        assert passport.peak_activation_bytes is None
        assert passport.fidelity is not None
        assert passport.fidelity.samples == 12
        sqnr = passport.fidelity.outputs[0].sqnr_db
        assert sqnr is not None
        assert sqnr > {Scheme.FP32: 100, Scheme.FP16: 55, Scheme.WEIGHT_W4: 12}.get(scheme, 20)


def test_bias_correction_takes_the_mean_error(tmp_path: Path) -> None:
    """The mean of what is wrong with the outputs gets smaller, and the passport says it was done."""
    torch.manual_seed(0)
    samples = normal(64, 1, (1, 3, 9, 9))
    backend = Backend(Plain(), samples, samples, tmp_path)
    errors = []
    for corrected in (False, True):
        artifact = backend.convert(Scheme.STATIC_W8A8, ranges=RangeRule.MINMAX, bias_correction=corrected)
        assert artifact.passport.calibration is not None
        assert artifact.passport.calibration.bias_correction is corrected
        found = outputs_of(artifact, samples)
        with torch.no_grad():
            wanted = [backend.program.module()(torch.from_numpy(sample[0])).numpy() for sample in samples]
        errors.append(float(np.abs(np.mean(found - np.stack(wanted), axis=(0, 1))).max()))
    assert errors[1] < errors[0]


def outputs_of(artifact: Artifact, samples: Samples) -> np.ndarray:
    from edgekit.converters.host_runtimes import load_runtime

    run = load_runtime(artifact.path, artifact.passport.format)
    return np.stack([run(sample)[0] for sample in samples])


class Wires(torch.nn.Module):
    """Inputs that are not used or come back, an output given twice, a constant, integers and booleans."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(8, 8)

    def forward(self, x, unused, count, flags):
        y = self.dense(x)
        return x, {"y": y, "most": y.argmax(-1)}, (count + 1, ~flags), torch.ones(3), y


@pytest.mark.parametrize("scheme", [Scheme.FP32, Scheme.STATIC_W8A8])
def test_inputs_and_outputs_stay_as_they_are(tmp_path: Path, scheme: Scheme) -> None:
    """Number, order and types of inputs and outputs, in the order of the flattened result."""
    rng = np.random.default_rng(0)
    samples = tuple(
        (
            rng.normal(size=(2, 8)).astype(np.float32),
            np.zeros(3, np.float32),
            rng.integers(0, 9, 4).astype(np.int32),
            rng.random((2, 2)) < 0.5,
        )
        for _ in range(32)
    )
    torch.manual_seed(0)
    passport = Backend(Wires(), samples, samples, tmp_path).convert(scheme).passport
    assert [spec.dtype for spec in passport.inputs] == ["float32", "float32", "int32", "bool"]
    kinds = ["float32", "float32", "int64", "int32", "bool", "float32", "float32"]
    assert [spec.dtype for spec in passport.outputs] == kinds
    assert passport.fidelity is not None
    assert [passport.fidelity.outputs[i].exact for i in (0, 3, 4, 5)] == [True] * 4


def test_a_scheme_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    """No weights, no products: every scheme but fp32 would be a float file by another name."""
    backend = Backend(torch.nn.Softmax(-1), normal(8, 1, (2, 8)), (), tmp_path)
    backend.convert(Scheme.FP32)
    for scheme in Scheme:
        if scheme is not Scheme.FP32:
            with pytest.raises(UnsupportedError, match="nothing"):
                backend.convert(scheme)


def test_several_entry_points_are_refused(everything: Backend) -> None:
    """An .onnx file has one; the sentence says what else there is."""
    request = ConversionRequest(
        name="net",
        program=everything.program,
        scheme=Scheme.FP32,
        backend="onnx",
        output_dir=everything.folder,
        signatures={"large": everything.program},
    )
    (problem,) = everything.converter.check(request)
    assert "one entry point" in problem.message
    assert "dynamic shapes" in (problem.hint or "")


@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("keeps", [0, 1])
@pytest.mark.parametrize("axes", ["spatial", "negative", "one", "all", "channels"])
def test_means_mean_the_same_as_pools(rank: int, keeps: int, axes: str) -> None:
    """A mean over exactly the spatial axes is written as a pool; over any others it is left; both give numpy's."""
    chosen = {
        "spatial": list(range(2, rank)),
        "negative": list(range(2 - rank, 0)),
        "one": [rank - 1],
        "all": [],
        "channels": list(range(1, rank)),
    }[axes]
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 6)[:rank]).astype(np.float32)
    inputs = ["x", "axes"] if chosen else ["x"]
    nodes = [onnx.helper.make_node("ReduceMean", inputs, ["y"], name="mean", keepdims=keeps)]
    constants = [onnx.numpy_helper.from_array(np.array(chosen, np.int64), "axes")] if chosen else []
    kind = onnx.TensorProto.FLOAT
    expected = values.mean(tuple(chosen) or None, keepdims=bool(keeps))
    result = onnx.helper.make_tensor_value_info("y", kind, expected.shape)
    source = onnx.helper.make_tensor_value_info("x", kind, values.shape)
    graph = onnx.helper.make_graph(nodes, "g", [source], [result], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    pool_spatial_means(OnnxGraph(model))
    kinds = [node.op_type for node in model.graph.node]
    is_pool = set(axis % rank for axis in chosen) == set(range(2, rank)) and bool(chosen)
    assert kinds[0] == ("GlobalAveragePool" if is_pool else "ReduceMean")
    from edgekit.converters.onnx_ranges import open_session

    (found,) = open_session(model, 1).run(None, {"x": values})
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


class Trainable(torch.nn.Module):
    """A residual network small enough to train here."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.inner = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.pool = torch.nn.MaxPool2d(2)
        self.head = torch.nn.Linear(8 * 16, 4)

    def forward(self, x):
        y = torch.relu(self.norm(self.stem(x)))
        y = self.pool(torch.relu(self.inner(y) + y))
        return self.head(y.flatten(1))


def test_a_trained_graph_keeps_its_integers(tmp_path: Path) -> None:
    """Ranges and weight scales are those of training, not of calibration (made useless here, 100 times too small);
    convolutions and the dense layer are integer kernels in onnxruntime; other schemes are refused."""
    from edgekit.compress.quantize import freeze_ranges, prepare_qat, trained_program

    torch.manual_seed(0)
    samples = normal(32, 1, (1, 3, 8, 8))
    batch = torch.from_numpy(np.concatenate([sample[0] for sample in samples]))
    prepared = prepare_qat(Trainable(), (batch[:2],), backend="onnx")
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    for step in range(20):
        if step == 15:
            freeze_ranges(prepared)
        optimizer.zero_grad()
        prepared(batch).square().mean().backward()
        optimizer.step()
    program = trained_program(prepared, (batch[:1],))
    request = ConversionRequest(
        name="net",
        program=program,
        scheme=Scheme.STATIC_W8A8,
        backend="onnx",
        calibration=tuple((sample[0] / 100,) for sample in samples),
        verification=samples,
        output_dir=tmp_path,
        is_trained=True,
    )
    converter = OnnxConverter()
    assert converter.check(request) == ()
    artifact = converter.convert(request)
    passport = artifact.passport
    assert passport.calibration is not None
    assert passport.calibration.rule == "trained"
    assert passport.calibration.per_tensor["trained"] >= 4
    assert {op.dtype for op in passport.ops if op.name in ("Conv", "Gemm", "Add")} == {"uint8"}
    assert passport.fidelity is not None
    sqnr = passport.fidelity.outputs[0].sqnr_db
    # against the trained program, which rounds itself: only ties and the last rounding may differ
    assert passport.fidelity.outputs[0].exact or (sqnr is not None and sqnr > 30)
    integers = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(artifact.path).graph.initializer
    }
    trained = [value.numpy() for value in program.state_dict.values() if value.dtype == torch.int8]
    trained += [value.numpy() for value in program.constants.values() if getattr(value, "dtype", None) == torch.int8]
    stored = [value for value in integers.values() if value.dtype == np.int8 and value.ndim > 1]
    assert len(trained) >= 3
    for value in trained:
        assert any(np.array_equal(value, other) or np.array_equal(value.T, other) for other in stored), value.shape
    from dataclasses import replace

    with pytest.raises(UnsupportedError, match="static_w8a8"):
        converter.convert(replace(request, scheme=Scheme.WEIGHT_W8))
