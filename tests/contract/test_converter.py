"""What every converter backend keeps: one suite over all of them, on real conversions.

A small network is converted once by each backend to every scheme that the table of capabilities says it writes; the
tests ask the files. (onnx-tf and tflite-micro have suites of their own.) Seeded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit.artifact import Artifact, Scheme  # noqa: E402
from edgekit.converters.capabilities import TABLE  # noqa: E402
from edgekit.converters.conversion import ConversionOptions, ConversionOutcome, convert_model  # noqa: E402
from edgekit.converters.passports import inspect_file  # noqa: E402
from edgekit.converters.registry import CONVERTERS, load_converter  # noqa: E402
from edgekit.errors import ArtifactError, UnsupportedError  # noqa: E402

BACKENDS = ("executorch", "onnx", "tflite")
PAIRS = [(backend, scheme) for backend in BACKENDS for scheme in Scheme if TABLE[backend][scheme][0]]
BASIC = (Scheme.FP32, Scheme.STATIC_W8A8)
SUFFIX = {"executorch": ".pte", "onnx": ".onnx", "tflite": ".tflite"}
INTEGERS = ("int8", "uint8")

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]


LEAST_DB = {
    Scheme.FP32: 100,
    Scheme.FP16: 45,  # an 11-bit mantissa: 6.02 · 11 = 66 dB, less 7 dB a layer for five of them in quadrature
    Scheme.DYNAMIC_W8: 24,
    Scheme.WEIGHT_W8: 30,  # as static int8, without the noise of the activations
    Scheme.WEIGHT_W4: 9,  # four bits fewer: 24 dB less
    Scheme.STATIC_W8A8: 24,
    Scheme.STATIC_W8A16: 30,
}


class ConvNet(torch.nn.Module):
    """Only ops that every backend has in int8: convolution, relu, pooling, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(8, 16, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
        )
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


def images(count: int, seed: int) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(1, 3, 12, 12)).astype(np.float32),) for _ in range(count)]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> ConversionOutcome:
    torch.manual_seed(0)
    return convert_model(
        ConvNet(),
        (torch.zeros(1, 3, 12, 12),),
        name="net",
        targets=BACKENDS,
        schemes=tuple(Scheme),
        output_dir=tmp_path_factory.mktemp("artifacts"),
        calibration=images(32, seed=1),
        verification=images(32, seed=2),
        options=ConversionOptions(input_layouts=("NCHW",)),
    )


@pytest.fixture(params=PAIRS, ids=lambda p: f"{p[0]}-{p[1]}")
def artifact(request: pytest.FixtureRequest, outcome: ConversionOutcome) -> Artifact:
    backend, scheme = request.param
    made = {(a.passport.format.value, a.passport.scheme): a for a in outcome.artifacts}
    assert (backend, scheme) in made, [str(failure.error) for failure in outcome.failures]
    return made[backend, scheme]


def is_int8(artifact: Artifact) -> bool:
    return artifact.passport.scheme is Scheme.STATIC_W8A8


def scheme_of(artifact: Artifact) -> Scheme:
    assert artifact.passport.scheme is not None
    return artifact.passport.scheme


def test_every_backend_is_registered() -> None:
    """The built-in backends are found by name, and each tells of every scheme how it writes it, or why not."""
    assert set(BACKENDS) <= set(CONVERTERS.names())
    for name in BACKENDS:
        told = {c.scheme: c for c in load_converter(name).capabilities()}
        assert set(told) == set(Scheme)
        assert all(told[scheme].supported for scheme in BASIC)
        assert all(c.nearest for c in told.values() if not c.supported)


def test_the_artifact_lies_where_it_should_and_is_whole(artifact: Artifact) -> None:
    """`<name>.<scheme>.<format>/model.<suffix>` with a passport whose sha256 and size are the file's."""
    passport = artifact.passport
    assert artifact.folder.name == f"net.{passport.scheme}.{passport.format}" == passport.name
    assert artifact.path.name == f"model{SUFFIX[passport.format.value]}"
    assert Artifact.open(artifact.folder).passport == passport
    assert passport.size_bytes == artifact.path.stat().st_size
    assert sorted(path.name for path in artifact.folder.iterdir()) == sorted([artifact.path.name, "passport.json"])


def test_nothing_else_is_left_behind(outcome: ConversionOutcome) -> None:
    """No work folder, no half artifact: a folder for each supported pair and nothing more."""
    parent = outcome.artifacts[0].folder.parent
    assert sorted(path.name for path in parent.iterdir()) == sorted(f"net.{s}.{b}" for b, s in PAIRS)


def test_what_the_table_refuses_is_refused_with_the_nearest(outcome: ConversionOutcome) -> None:
    """Every pair that is not supported, and no other, is an UnsupportedError that names what to ask for instead."""
    refused = {(failure.target, failure.scheme): failure.error for failure in outcome.failures}
    assert set(refused) == {(b, s) for b in BACKENDS for s in Scheme} - set(PAIRS)
    assert all(isinstance(error, UnsupportedError) and "nearest" in str(error) for error in refused.values())


def test_the_passport_is_what_the_file_says(artifact: Artifact) -> None:
    """Reading the bare file again gives the passport's inputs, outputs, ops and scheme: nothing is from the request."""
    bare = inspect_file(artifact.path)
    passport = artifact.passport
    layouts_dropped = tuple(spec.model_copy(update={"layout": None}) for spec in passport.inputs)
    assert bare.inputs == layouts_dropped
    assert (bare.outputs, bare.ops) == (passport.outputs, passport.ops)
    if passport.scheme in BASIC:  # the ops of the others do not always tell the scheme
        assert bare.scheme == passport.scheme
    assert bare.sha256 == passport.sha256
    assert passport.inputs[0].layout == "NCHW"
    assert passport.inputs[0].shape == (1, 3, 12, 12)
    assert passport.outputs[0].shape == (1, 5)


def test_int8_is_int8(artifact: Artifact) -> None:
    """A static int8 artifact computes every op in 8-bit integers and lists none as float; fp32 has no integer op."""
    dtypes = {op.dtype for op in artifact.passport.ops}
    if is_int8(artifact):
        assert dtypes <= {*INTEGERS, "mixed"}
        assert dtypes & set(INTEGERS)
        assert artifact.passport.unquantized_ops == ()
    elif scheme_of(artifact) is Scheme.FP32:
        assert dtypes == {"float32"}


def test_full_integer_tflite_has_int8_inputs_and_outputs(artifact: Artifact) -> None:
    """int8 in and out with one scale each; the other formats keep float32 at the border and say so."""
    passport = artifact.passport
    border = (passport.inputs[0], passport.outputs[0])
    if is_int8(artifact) and passport.format == "tflite":
        assert all(spec.dtype == "int8" and spec.quantization and len(spec.quantization.scale) == 1 for spec in border)
        assert all(op.dtype != "mixed" for op in passport.ops)
    elif scheme_of(artifact) is not Scheme.STATIC_W8A16:
        assert all(spec.dtype == "float32" and spec.quantization is None for spec in border)


def test_weights_are_quantized_per_channel(artifact: Artifact) -> None:
    """Both convolutions and the linear layer have one scale for each output channel; float files have none."""
    from edgekit.converters.passports.reader import read_facts

    if scheme_of(artifact) not in BASIC:
        return  # dynamic and weight-only ones: tests of each backend
    facts = read_facts(artifact.path, artifact.passport.format)
    assert facts.per_channel_weights == (3 if is_int8(artifact) else 0)


def test_it_answers_as_pytorch_does(artifact: Artifact) -> None:
    """Checked in its real runtime on held-out inputs: float to rounding, int8 to 8 bits.

    Float: 24-bit mantissas over a few hundred terms leave over 100 dB. int8: an 8-bit uniform quantizer over a
    Gaussian that uses ±4σ of its range has about 6.02·8 + 4.77 − 20·log10(4) = 41 dB; each of the five layers adds
    as much noise again (−7 dB), and 10 dB are left for activations that use their range less well.
    """
    fidelity = artifact.passport.fidelity
    assert fidelity is not None
    assert (fidelity.samples, fidelity.source) == (32, "held-out")
    output = fidelity.outputs[0]
    assert output.non_finite == 0
    assert output.exact or output.sqnr_db is not None
    assert output.exact or output.sqnr_db > LEAST_DB[scheme_of(artifact)]
    assert fidelity.top1_agreement is not None
    assert fidelity.top1_agreement >= {Scheme.FP32: 1.0, Scheme.WEIGHT_W4: 0.7}.get(scheme_of(artifact), 0.9)


def test_the_passport_tells_what_made_it_and_what_it_needs(artifact: Artifact) -> None:
    """Tool versions, cost of the conversion, parameters and MACs are there and plausible."""
    passport = artifact.passport
    assert {"edgekit", "torch"} < set(passport.tool_versions)
    assert passport.conversion_seconds is not None
    assert passport.conversion_peak_rss_bytes is not None
    assert passport.conversion_peak_rss_bytes > 50_000_000  # torch alone
    assert passport.parameters == (3 * 8 * 9 + 8) + 16 + (8 * 16 * 9 + 16) + (16 * 5 + 5)
    assert passport.macs == 144 * 8 * 27 + 36 * 16 * 72 + 16 * 5


def test_an_int8_file_is_smaller(outcome: ConversionOutcome) -> None:
    """Each backend's int8 file holds its weights in a quarter of the bytes."""
    sizes = {(a.passport.format.value, a.passport.scheme): a.passport.size_bytes for a in outcome.artifacts}
    weights = 3 * 8 * 9 + 8 * 16 * 9 + 16 * 5
    for backend in BACKENDS:
        saved = sizes[backend, Scheme.FP32] - sizes[backend, Scheme.STATIC_W8A8]
        # 3 of 4 bytes a weight are saved; scales, zero points and quantize nodes may take back up to 3 KB of it
        assert saved > 3 * weights - 3072 * (3 if backend == "onnx" else 1)


def test_the_delegate_is_told(artifact: Artifact) -> None:
    """This network runs wholly in XNNPACK: written into a `.pte`, counted in the host's interpreter for `.tflite`;
    an `.onnx` has none."""
    delegates = artifact.passport.delegates
    if artifact.passport.format == "executorch":
        # half precision has a cast of the float32 input and one of the output outside the delegate
        outside = 2 if scheme_of(artifact) is Scheme.FP16 else 0
        assert [(d.name, d.total - d.nodes) for d in delegates] == [("XnnpackBackend", outside)]
    elif artifact.passport.format == "tflite":
        # XNNPACK has neither 16-bit activations nor every op with 4-bit weights: then the count tells how many it takes
        is_partial = scheme_of(artifact) in (Scheme.STATIC_W8A16, Scheme.WEIGHT_W4)
        assert [(d.name, d.nodes == d.total > 0) for d in delegates] == [("XNNPACK", not is_partial)]
    else:
        assert delegates == ()


@pytest.fixture(params=BACKENDS)
def float_artifact(request: pytest.FixtureRequest, outcome: ConversionOutcome) -> Artifact:
    """One file of each format: how it is read does not depend on the scheme."""
    return next(a for a in outcome.artifacts if a.passport.name == f"net.fp32.{request.param}")


@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.98])
def test_a_cut_file_is_refused(float_artifact: Artifact, tmp_path: Path, part: float) -> None:
    """A file cut anywhere is an ArtifactError that names it, never a crash and never a passport."""
    data = float_artifact.path.read_bytes()
    cut = tmp_path / float_artifact.path.name
    cut.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ArtifactError, match="model"):
        inspect_file(cut)


def test_bytes_of_another_kind_are_refused(float_artifact: Artifact, tmp_path: Path) -> None:
    """Noise under a model's suffix is refused in the reader's child."""
    noise = tmp_path / float_artifact.path.name
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ArtifactError):
        inspect_file(noise)
