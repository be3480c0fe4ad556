"""`onnx-tf`: SavedModel and TFLite by TensorFlow 2.15, whose environment these tests make where it is not there yet.

Installing it takes a minute or two and 1.5 GB in edgekit's cache. Where the package index is out of reach the tests
that need it are skipped; with EDGEKIT_REQUIRE_ISOLATED=1 that is a failure.
"""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from edgekit.artifact import Artifact, Format, NodeRule, RangeRule, RuleAction, Scheme  # noqa: E402
from edgekit.converters.base import ConversionRequest, QuantizationOptions  # noqa: E402
from edgekit.converters.conversion import ConversionOptions, ConversionOutcome, convert_model  # noqa: E402
from edgekit.converters.onnx_tf import environment  # noqa: E402
from edgekit.converters.passports import inspect_file  # noqa: E402
from edgekit.converters.registry import load_converter  # noqa: E402
from edgekit.errors import ConversionError, UnsupportedError  # noqa: E402
from edgekit.schema import sha256_of  # noqa: E402

pytestmark = [pytest.mark.toolchain, pytest.mark.slow, pytest.mark.isolated]

SCHEMES = (Scheme.FP32, Scheme.DYNAMIC_W8, Scheme.STATIC_W8A8, Scheme.STATIC_W8A16)
TIMEOUT_SECONDS = 1800
"""Of the first conversion, which may have to download TensorFlow over a slow line."""


class Classifier(torch.nn.Module):
    """Two convolutions, one depthwise, and a linear layer large enough (1024 weights) for a dynamic range."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 3, padding=1, stride=2, groups=8),
            torch.nn.Conv2d(8, 16, 1),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(2),
        )
        self.head = torch.nn.Linear(64, 20)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


class Asymmetric(torch.nn.Module):
    """Three inputs and three outputs that cannot be taken for one another, attention, GELU, split and squeeze."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(11, 8)
        self.mix = torch.nn.Linear(8, 16)

    def forward(self, a, ids, b):
        x = self.words(ids) + a.unsqueeze(1)
        first, second = torch.nn.functional.gelu(self.mix(x)).split(8, dim=-1)
        y = torch.nn.functional.scaled_dot_product_attention(first, second, x, is_causal=True)
        return y.mean(1) - 2 * b, b * 0.5 + a, ids.float().sum(1, keepdim=True).squeeze(1)


class Tangent(torch.nn.Module):
    """tan: in ONNX and in TensorFlow, not in TFLite."""

    def forward(self, x):
        return torch.tan(x)


class Samples(torch.nn.Module):
    """grid_sample: in ONNX from opset 16 on."""

    def forward(self, x, grid):
        return torch.nn.functional.grid_sample(x, grid, align_corners=False)


def images(count: int, seed: int) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(1, 3, 12, 12)).astype(np.float32),) for _ in range(count)]


def triples(count: int, seed: int) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(seed)
    floats = [rng.normal(size=(2, 1, 8)).astype(np.float32) for _ in range(count)]
    return [(a, rng.integers(0, 11, (1, 5)), b) for a, b in floats]


def made(outcome: ConversionOutcome, scheme: Scheme) -> Artifact:
    """The artifact of a scheme; without a package index the test is skipped, unless it must run."""
    errors = [f.error for f in outcome.failures if f.scheme is scheme]
    for error in errors:
        if isinstance(error, ConversionError) and error.stage == "install":
            if os.environ.get("EDGEKIT_REQUIRE_ISOLATED") == "1":
                pytest.fail(f"EDGEKIT_REQUIRE_ISOLATED=1, and {error}\n{error.stderr}")
            pytest.skip(f"the environment cannot be installed here: {error}")
    assert not errors, [(str(error), getattr(error, "stderr", "")) for error in errors]
    return next(a for a in outcome.artifacts if a.passport.scheme is scheme)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return Classifier().eval()


@pytest.fixture(scope="module")
def outcome(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> ConversionOutcome:
    return convert_model(
        model,
        (torch.zeros(1, 3, 12, 12),),
        name="net",
        targets=["onnx-tf"],
        schemes=[*SCHEMES, Scheme.FP16],
        output_dir=tmp_path_factory.mktemp("onnx-tf"),
        calibration=images(32, seed=1),
        verification=images(32, seed=2),
        options=ConversionOptions(input_layouts=("NCHW",), timeout_seconds=TIMEOUT_SECONDS),
    )


@pytest.fixture(params=SCHEMES)
def artifact(request: pytest.FixtureRequest, outcome: ConversionOutcome) -> Artifact:
    return made(outcome, request.param)


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_it_answers_as_pytorch_does(artifact: Artifact) -> None:
    """TFLite in ai-edge-litert and the SavedModel in TensorFlow, both against PyTorch.

    Floors of fp32 and int8 as in tests/contract/test_converter.py; dynamic: one layer of 8-bit weights, which leaves
    what int8 leaves; 16-bit activations: the error of 8-bit weights alone, at least 6 dB better than with theirs.
    """
    passport = artifact.passport
    assert passport.fidelity is not None
    assert passport.fidelity.runtime.startswith("ai-edge-litert")
    sqnr = passport.fidelity.outputs[0].sqnr_db
    floors = {Scheme.FP32: 100, Scheme.DYNAMIC_W8: 24, Scheme.STATIC_W8A8: 24, Scheme.STATIC_W8A16: 30}
    assert sqnr is not None
    assert sqnr > floors[passport.scheme]
    (note,) = [note for note in passport.notes if note.startswith("SavedModel in TensorFlow 2.15.1")]
    assert float(note.partition("PyTorch: ")[2].partition(" dB")[0]) > 100
    assert "takes any batch" in note


def test_the_folder_is_whole_and_can_be_inspected(artifact: Artifact) -> None:
    """Model, SavedModel in the layout TensorFlow Serving takes (a version number), passport with every file's hash."""
    passport = Artifact.open(artifact.folder).passport
    assert artifact.folder.name == passport.name == f"net.{passport.scheme}.onnx-tf"
    assert (passport.backend, passport.format) == ("onnx-tf", Format.TFLITE)
    extra = {file.path: file for file in passport.extra_files}
    assert {"saved_model/1/saved_model.pb", "saved_model/1/variables/variables.index"} <= set(extra)
    there = {p.relative_to(artifact.folder).as_posix() for p in artifact.folder.rglob("*") if p.is_file()}
    assert there == {*extra, "model.tflite", "passport.json"}
    assert all(sha256_of(artifact.folder / path) == file.sha256 for path, file in extra.items())
    bare = inspect_file(artifact.path)
    assert (bare.ops, bare.sha256) == (passport.ops, passport.sha256)
    assert passport.tool_versions["tensorflow-cpu"] == "2.15.1"
    assert passport.tool_versions["onnx-tf"] == "1.10.0"


def test_the_types_are_those_asked_for(artifact: Artifact) -> None:
    """Integer in every op under a static scheme, at the border too; the transposes of NCHW are there and counted."""
    passport = artifact.passport
    dtypes = {op.dtype for op in passport.ops}
    expected = {
        Scheme.FP32: {"float32"},
        Scheme.DYNAMIC_W8: {"float32", "hybrid"},
        Scheme.STATIC_W8A8: {"int8"},
        Scheme.STATIC_W8A16: {"int16"},
    }[passport.scheme]
    assert dtypes == expected
    border = "float32" if not passport.scheme.is_static else next(iter(expected))
    assert (passport.inputs[0].dtype, passport.outputs[0].dtype) == (border, border)
    assert passport.transposes == sum(op.count for op in passport.ops if op.name == "TRANSPOSE") > 0
    if passport.scheme.is_static:
        assert passport.unquantized_ops == ()
        assert passport.calibration is not None
        assert (passport.calibration.rule, passport.calibration.samples) == ("minmax", 32)


def test_the_saved_model_serves_a_batch(model: torch.nn.Module, outcome: ConversionOutcome, tmp_path: Path) -> None:
    """`serving_default` in a TensorFlow of its own takes three images at once and gives what PyTorch gives."""
    artifact = made(outcome, Scheme.FP32)
    batch = np.concatenate([sample[0] for sample in images(3, seed=9)])
    np.save(tmp_path / "batch.npy", batch)
    script = (
        "import sys, numpy as np, tensorflow as tf\n"
        "served = tf.saved_model.load(sys.argv[1]).signatures['serving_default']\n"
        "found = served(input_0=tf.constant(np.load(sys.argv[2] + '/batch.npy')))\n"
        "np.save(sys.argv[2] + '/found.npy', found['output_0'].numpy())\n"
    )
    python = environment.environment_folder() / "bin" / "python"
    argv = [str(python), "-c", script, str(artifact.folder / "saved_model" / "1"), str(tmp_path)]
    subprocess.run(argv, check=True, capture_output=True, text=True)
    with torch.no_grad():
        expected = model(torch.from_numpy(batch)).numpy()
    # float32 sums of at most 72 terms in another order: a few of 2^-24 of the largest partial sum, here below 8
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=8 * 72 * 2.0**-24)


def test_half_precision_is_refused_with_the_nearest(outcome: ConversionOutcome) -> None:
    """fp16 would be storage only: refused, naming fp32."""
    (failure,) = [f for f in outcome.failures if f.scheme is Scheme.FP16]
    assert isinstance(failure.error, UnsupportedError)
    assert "nearest: fp32" in str(failure.error)


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_inputs_and_outputs_keep_their_order(tmp_path: Path) -> None:
    """TensorFlow sorts inputs and outputs; in the file they are in the order of forward. GELU's erf is told."""
    torch.manual_seed(0)
    outcome = convert_model(
        Asymmetric().eval(),
        tuple(torch.from_numpy(array) for array in triples(1, seed=0)[0]),
        name="three",
        targets=["onnx-tf"],
        schemes=[Scheme.FP32, Scheme.STATIC_W8A8],
        output_dir=tmp_path,
        calibration=triples(32, seed=1),
        verification=triples(16, seed=2),
        options=ConversionOptions(timeout_seconds=TIMEOUT_SECONDS),
    )
    passport = made(outcome, Scheme.FP32).passport
    assert [spec.shape for spec in passport.inputs] == [(1, 8), (1, 5), (1, 8)]
    assert passport.inputs[1].dtype == "int64"
    assert passport.fidelity is not None
    # erf is right to 1.5e-7 of 1, so GELU to about 130 dB: 100 dB as of every float conversion
    assert all(output.exact or output.sqnr_db > 100 for output in passport.fidelity.outputs)
    assert any("Abramowitz" in note for note in passport.notes)
    quantized = made(outcome, Scheme.STATIC_W8A8).passport
    assert any("stay float32" in note for note in quantized.notes)


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_an_op_without_a_kernel_is_named(outcome: ConversionOutcome, tmp_path: Path) -> None:
    """tan has no TFLite kernel: stage and op, and nothing is left; grid_sample is no opset 13: before converting."""
    made(outcome, Scheme.FP32)  # the environment is there
    for name, network, example in (
        ("tangent", Tangent(), (torch.zeros(1, 4),)),
        ("samples", Samples(), (torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4, 2))),
    ):
        result = convert_model(
            network, example, name=name, targets=["onnx-tf"], schemes=[Scheme.FP32], output_dir=tmp_path
        )
        (failure,) = result.failures
        if name == "tangent":
            assert isinstance(failure.error, ConversionError)
            assert (failure.error.stage, failure.error.op) == ("TensorFlow to TFLite", "Tan")
        else:
            assert isinstance(failure.error, UnsupportedError)
            assert "grid_sampler" in str(failure.error)
    assert list(tmp_path.iterdir()) == []


def test_what_it_cannot_follow_is_refused(tmp_path: Path) -> None:
    """Rules, other ranges, bias correction, several entry points, trained ranges: an obstacle each, none ignored."""
    program = torch.export.export(torch.nn.Linear(4, 4).eval(), (torch.zeros(1, 4),))
    request = ConversionRequest(
        name="x",
        program=program,
        scheme=Scheme.STATIC_W8A8,
        output_dir=tmp_path,
        quantization=QuantizationOptions(
            ranges=RangeRule.MSE, bias_correction=True, rules=(NodeRule(node="*", action=RuleAction.FLOAT),)
        ),
        signatures={"wide": program},
        is_trained=True,
    )
    told = "\n".join(problem.message for problem in load_converter("onnx-tf").check(request))
    for word in ("entry points", "quantization-aware", "mse", "bias correction", "exceptions"):
        assert word in told


def test_a_failed_installation_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip fails on a package that is not there: its last lines are in the error, no half environment stays, not even
    one that a killed process had left before."""
    pins = tmp_path / "requirements.txt"
    pins.write_text("edgekit-has-no-such-package==1.0\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", pins)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = environment.environment_folder()
    left = folder.with_name(f"{folder.name}.partial")
    left.mkdir(parents=True)
    (left / "half").write_text("of a killed process")
    notes: list[str] = []
    with pytest.raises(ConversionError, match="edgekit-has-no-such-package") as caught:
        environment.ready_python(notes.append)
    assert caught.value.stage == "install"
    assert "edgekit-has-no-such-package" in caught.value.stderr
    assert not environment.is_ready()
    assert [path.suffix for path in folder.parent.iterdir()] == [".lock"]
    assert len(notes) == 1
    assert "install TensorFlow" in notes[0]


def test_it_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of four that ask at once one makes it; the others wait for the lock, say so, and find it there."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    made_by: list[int] = []
    entered = threading.Event()
    release = threading.Event()

    def make(folder: Path, note: environment.Note) -> None:
        made_by.append(threading.get_ident())
        entered.set()
        release.wait(20)
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").touch()

    monkeypatch.setattr(environment, "_make", make)
    notes: list[str] = []
    threads = [threading.Thread(target=environment.ready_python, args=(notes.append,)) for _ in range(4)]
    threads[0].start()
    assert entered.wait(20)
    for thread in threads[1:]:
        thread.start()
    while len(notes) < 3:  # the others are waiting; the test's own timeout ends this
        threading.Event().wait(0.01)
    release.set()
    for thread in threads:
        thread.join(20)
    assert len(made_by) == 1
    assert environment.is_ready()


def test_a_host_that_cannot_have_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Python 3.11, or another platform: an obstacle from `check`, before anything is tried."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(environment, "base_python", lambda: None)
    problem = environment.environment_problem()
    assert problem is not None
    assert "Python 3.11" in problem.message
    monkeypatch.setattr("sys.platform", "darwin")
    problem = environment.environment_problem()
    assert problem is not None
    assert "Linux on x86-64" in problem.message


def test_changes_to_the_onnx_model_are_the_same_function() -> None:
    """Squeeze, Unsqueeze, Split, Erf and dilated SAME padding: other ops, the same values in onnxruntime."""
    import onnxruntime

    from edgekit.converters.onnx_tf.adaptation import ERF_NOTE, adapt

    helper, numbers = onnx.helper, np.random.default_rng(0).normal(0, 2, (1, 6, 9)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=(4, 6, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], auto_pad="SAME_UPPER", dilations=[1]),
            helper.make_node("Erf", ["c"], ["e"]),
            helper.make_node("Split", ["e", "sizes"], ["s0", "s1"], axis=1),
            helper.make_node("Unsqueeze", ["s0", "axes"], ["u"]),
            helper.make_node("Squeeze", ["u", "axes"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 6, 9])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("y", "s1")],
        [
            onnx.numpy_helper.from_array(weight, "w"),
            onnx.numpy_helper.from_array(np.array([1, 3]), "sizes"),
            onnx.numpy_helper.from_array(np.array([2]), "axes"),
        ],
    )
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    def run(given: onnx.ModelProto) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(given.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"x": numbers})

    expected = run(before)
    after = adapt(before)
    assert not {node.op_type for node in after.graph.node} & {"Erf", "Split", "Squeeze", "Unsqueeze"}
    assert after.doc_string == ERF_NOTE
    for found, wanted in zip(run(after), expected, strict=True):
        # 1.5e-7 is the approximation's own bound; as much again for float32
        np.testing.assert_allclose(found, wanted, atol=1e-6)
