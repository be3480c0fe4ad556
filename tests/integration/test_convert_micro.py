"""`tflite-micro`: files that TensorFlow Lite Micro runs, as C++ source and with their memory; or the op it lacks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit.artifact import Artifact, Format, Scheme  # noqa: E402
from edgekit.converters.base import ConversionRequest, MicroBudget  # noqa: E402
from edgekit.converters.conversion import ConversionOptions, ConversionOutcome, convert_model  # noqa: E402
from edgekit.converters.passports import inspect_file  # noqa: E402
from edgekit.converters.registry import load_converter  # noqa: E402
from edgekit.errors import ConversionError, MissingDependencyError, UnsupportedError  # noqa: E402
from edgekit.schema import sha256_of  # noqa: E402

pytest.importorskip("tflite_micro")
pytestmark = [pytest.mark.toolchain, pytest.mark.slow]

BUDGET = MicroBudget(flash_kb=16, ram_kb=16)


class Spotter(torch.nn.Module):
    """What a keyword spotter is made of: convolutions, depthwise too, pooling, a linear layer, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),
            torch.nn.Conv2d(8, 16, 1),
            torch.nn.ReLU6(),
            torch.nn.AdaptiveAvgPool2d(1),
        )
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x):
        return torch.softmax(self.head(self.features(x).flatten(1)), -1)


class Cubes(torch.nn.Module):
    """Two ops that TensorFlow Lite Micro has no kernel for: POW and SIGN."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        y = self.linear(x)
        return torch.sign(y) * torch.pow(torch.abs(y) + 0.5, 1.7)


def images(count: int, seed: int) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(1, 1, 12, 10)).astype(np.float32),) for _ in range(count)]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> ConversionOutcome:
    torch.manual_seed(0)
    return convert_model(
        Spotter(),
        (torch.zeros(1, 1, 12, 10),),
        name="kws-net",
        targets=["tflite-micro"],
        schemes=[Scheme.FP32, Scheme.STATIC_W8A8, Scheme.STATIC_W8A16, Scheme.DYNAMIC_W8],
        output_dir=tmp_path_factory.mktemp("micro"),
        calibration=images(32, seed=1),
        verification=images(32, seed=2),
        options=ConversionOptions(input_layouts=("NCHW",), micro=BUDGET),
    )


@pytest.fixture(params=[Scheme.FP32, Scheme.STATIC_W8A8, Scheme.STATIC_W8A16])
def artifact(request: pytest.FixtureRequest, outcome: ConversionOutcome) -> Artifact:
    made = {a.passport.scheme: a for a in outcome.artifacts}
    assert request.param in made, [(str(f.error), getattr(f.error, "stderr", "")) for f in outcome.failures]
    return made[request.param]


@pytest.fixture(scope="module")
def int8(outcome: ConversionOutcome) -> Artifact:
    return next(a for a in outcome.artifacts if a.passport.scheme is Scheme.STATIC_W8A8)


def test_it_is_verified_in_tflm_itself(artifact: Artifact) -> None:
    """The figures are of TFLM's interpreter; floors as in tests/contract/test_converter.py, 16 bits 6 dB each more.

    Its softmax gives probabilities, all positive, so the SQNR is higher than of logits.
    """
    fidelity = artifact.passport.fidelity
    assert fidelity is not None
    assert fidelity.runtime.startswith("tflite-micro 0.dev")
    assert (fidelity.source, fidelity.samples) == ("held-out", 32)
    sqnr = fidelity.outputs[0].sqnr_db
    floor = {Scheme.FP32: 100.0, Scheme.STATIC_W8A8: 24.0, Scheme.STATIC_W8A16: 40.0}[artifact.passport.scheme]
    assert sqnr is not None
    assert sqnr > floor
    assert any(note.startswith("ai-edge-litert") for note in artifact.passport.notes)


def test_the_folder_is_whole_and_can_be_inspected(artifact: Artifact) -> None:
    """The model, its source and its passport, after the folder was renamed into place; each with the hash it has."""
    passport = Artifact.open(artifact.folder).passport
    assert artifact.folder.name == passport.name == f"kws-net.{passport.scheme}.tflite-micro"
    assert sorted(p.name for p in artifact.folder.iterdir()) == ["model.cc", "model.h", "model.tflite", "passport.json"]
    assert (passport.backend, passport.format) == ("tflite-micro", Format.TFLITE)
    for extra in passport.extra_files:
        file = artifact.folder / extra.path
        assert (sha256_of(file), file.stat().st_size) == (extra.sha256, extra.size_bytes)
    bare = inspect_file(artifact.path)
    assert (bare.ops, bare.sha256) == (passport.ops, passport.sha256)
    assert "tflite-micro" in passport.tool_versions


def test_the_arena_is_the_smallest_it_runs_in(artifact: Artifact) -> None:
    """In an arena of the size stated it runs, in one of 16 bytes less it does not: tried in processes of their own."""
    from edgekit.converters.tflite_micro.attempts import attempt

    micro = artifact.passport.micro
    assert micro is not None
    model = artifact.path.read_bytes()

    def feed(interpreter) -> None:
        interpreter.run([np.zeros(d["shape"], d["dtype"]) for d in interpreter.inputs])

    assert attempt(model, feed, micro.arena_bytes).stage is None
    assert attempt(model, feed, micro.arena_bytes - 16).stage == "allocate"
    # input and the first convolution's output are alive at once: 8 channels of what the input has one of
    width = {Scheme.FP32: 4, Scheme.STATIC_W8A8: 1, Scheme.STATIC_W8A16: 2}[artifact.passport.scheme]
    assert micro.arena_bytes > (1 + 8) * 12 * 10 * width
    assert (micro.flash_bytes, micro.flash_budget_bytes) == (artifact.path.stat().st_size, 16 * 1024)
    assert micro.ram_budget_bytes == 16 * 1024


def test_every_tensor_is_aligned(artifact: Artifact) -> None:
    """Constants begin at multiples of 16 bytes, so that a target may read them where they lie in flash."""
    from edgekit.converters.tflite_micro.alignment import misaligned

    assert misaligned(artifact.path) == 0


def test_kernels_are_those_of_its_ops(int8: Artifact) -> None:
    """The list to register has one kernel for each kind of op in the file, and the header names each."""
    micro = int8.passport.micro
    assert micro is not None
    assert {"AddConv2D", "AddDepthwiseConv2D", "AddMaxPool2D", "AddFullyConnected", "AddSoftmax"} <= set(micro.kernels)
    assert len(micro.kernels) == len({op.name for op in int8.passport.ops})
    header = (int8.folder / "model.h").read_text()
    assert all(f"resolver.{kernel}();" in header for kernel in micro.kernels)
    assert f"MicroMutableOpResolver<{len(micro.kernels)}>" in header


def test_the_source_compiles_to_the_very_bytes_aligned(int8: Artifact, tmp_path: Path) -> None:
    """g++ -Wall -Werror takes both files; the program finds the array aligned, as long as said, and prints it back."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    main = tmp_path / "main.cc"
    main.write_text(
        '#include <cstdint>\n#include <cstdio>\n#include "model.h"\n#include "model.h"\n'
        "static_assert(g_kws_net_static_w8a8_arena_bytes > 0);\n"
        "int main() {\n"
        "  if (reinterpret_cast<std::uintptr_t>(g_kws_net_static_w8a8) % 16 != 0) return 1;\n"
        "  return std::fwrite(g_kws_net_static_w8a8, 1, g_kws_net_static_w8a8_len, stdout)"
        " == g_kws_net_static_w8a8_len ? 0 : 2;\n}\n"
    )
    program = tmp_path / "program"
    argv = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{int8.folder}", "-o", str(program)]
    subprocess.run([*argv, str(main), str(int8.folder / "model.cc")], check=True, capture_output=True, text=True)
    assert subprocess.run([program], check=True, capture_output=True).stdout == int8.path.read_bytes()


def test_the_source_is_licensed_and_the_same_each_time(int8: Artifact, tmp_path: Path) -> None:
    """Licence header, include guard, no date; aligning the aligned file changes nothing, so it is deterministic."""
    from edgekit.converters.tflite_micro.alignment import align

    header = (int8.folder / "model.h").read_text()
    assert header.startswith("// SPDX-License-Identifier: Apache-2.0\n")
    assert "#ifndef EDGEKIT_KWS_NET_STATIC_W8A8_H_\n#define EDGEKIT_KWS_NET_STATIC_W8A8_H_\n" in header
    shutil.copytree(int8.folder, tmp_path / "copy")
    copied = Artifact.open(tmp_path / "copy")
    align(copied)
    assert copied.path.read_bytes() == int8.path.read_bytes()


def test_a_scheme_without_kernels_is_refused_with_the_nearest(outcome: ConversionOutcome) -> None:
    """dynamic_w8 needs hybrid kernels, which TFLM says it has not; the refusal names what it has."""
    (failure,) = [f for f in outcome.failures if f.scheme is Scheme.DYNAMIC_W8]
    assert isinstance(failure.error, UnsupportedError)
    assert "static_w8a8" in str(failure.error)


def test_ops_without_a_kernel_are_all_named(tmp_path: Path) -> None:
    """POW and SIGN at once: op, version, types, where, and what to write instead. Nothing is left behind."""
    torch.manual_seed(0)
    outcome = convert_model(
        Cubes(),
        (torch.zeros(1, 8),),
        name="cubes",
        targets=["tflite-micro"],
        schemes=[Scheme.FP32],
        output_dir=tmp_path,
    )
    (failure,) = outcome.failures
    assert isinstance(failure.error, UnsupportedError), str(failure.error)
    problems = {problem.op: problem for problem in failure.error.problems}
    assert set(problems) == {"POW", "SIGN"}
    assert "POW version 1 on float32 float32 -> float32" in problems["POW"].message
    assert problems["POW"].hint is not None
    assert "x * x" in problems["POW"].hint
    assert list(tmp_path.iterdir()) == []


def test_over_budget_fails_and_names_every_figure(tmp_path: Path) -> None:
    """A model of 9 KB of weights in 4 KB of flash and 1 KB of RAM: both figures, both limits, no artifact."""
    torch.manual_seed(0)
    outcome = convert_model(
        torch.nn.Sequential(torch.nn.Linear(48, 48), torch.nn.ReLU()),
        (torch.zeros(1, 48),),
        name="wide",
        targets=["tflite-micro"],
        schemes=[Scheme.FP32],
        output_dir=tmp_path,
        options=ConversionOptions(micro=MicroBudget(flash_kb=4, ram_kb=1)),
    )
    (failure,) = outcome.failures
    assert isinstance(failure.error, ConversionError)
    assert failure.error.stage == "budget"
    assert "KiB" in str(failure.error)
    assert "of flash, 4 are allowed" in str(failure.error)
    assert "of RAM, 1 are allowed" in str(failure.error)
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_computes_something_else_is_caught(tmp_path: Path) -> None:
    """TFLM's DEQUANTIZE reads one scale where weight_w8 has one per channel, and says nothing: `verified` refuses."""
    from edgekit.converters.tflite_micro.interpreter import MAX_ARENA_BYTES
    from edgekit.converters.tflite_micro.verification import verified

    torch.manual_seed(0)
    model = torch.nn.Linear(32, 6).eval()
    with torch.no_grad():
        model.weight.mul_(torch.tensor([0.1, 1.0, 2.0, 4.0, 8.0, 16.0])[:, None])
    example = (torch.randn(1, 32),)
    outcome = convert_model(
        model, example, name="scaled", targets=["tflite"], schemes=[Scheme.WEIGHT_W8], output_dir=tmp_path
    )
    outcome.raise_failures()
    made = outcome.artifacts[0]
    request = ConversionRequest(
        name="scaled", program=torch.export.export(model, example), scheme=Scheme.WEIGHT_W8, output_dir=tmp_path
    )
    samples = [(np.random.default_rng(i).normal(size=(1, 32)).astype(np.float32),) for i in range(4)]
    with pytest.raises(ConversionError, match="answer otherwise"):
        verified(request, made, MAX_ARENA_BYTES, samples, "random")


def test_the_kernel_table_is_what_the_interpreter_has() -> None:
    """Each of the builtin ops is asked of the interpreter: a kernel is in the table if and only if it finds one."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    from edgekit.converters.tflite_micro.attempts import attempt
    from edgekit.converters.tflite_micro.kernels import HINTS, KERNELS

    def file_of(code: int) -> bytes:
        operator_code = schema.OperatorCodeT()
        operator_code.builtinCode, operator_code.deprecatedBuiltinCode = code, min(code, 127)
        tensors = [schema.TensorT(), schema.TensorT()]
        for tensor in tensors:
            tensor.shape = [1]
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = [0], [1]
        graph = schema.SubGraphT()
        graph.tensors, graph.inputs, graph.outputs, graph.operators = tensors, [0], [1], [operator]
        model = schema.ModelT()
        model.version, model.operatorCodes = 3, [operator_code]
        model.buffers, model.subgraphs = [schema.BufferT()], [graph]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    from tflite_micro import runtime

    assert runtime is not None  # imported here, once, not in each fork
    builtin = {name: code for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    found = {
        name
        for name, code in builtin.items()
        if name != "CUSTOM" and "find op" not in attempt(file_of(code), lambda _: None, 65536).said
    }
    assert found == set(KERNELS)
    assert not set(HINTS) & found


def test_without_the_package_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tflite-micro: said before anything is converted, with the extra; no wheel for this machine: an obstacle."""
    import platform

    program = torch.export.export(torch.nn.Linear(4, 4).eval(), (torch.zeros(1, 4),))
    request = ConversionRequest(name="x", program=program, scheme=Scheme.FP32, output_dir=tmp_path)
    converter = load_converter("tflite-micro")
    assert converter.check(request) == ()
    monkeypatch.setitem(__import__("sys").modules, "tflite_micro", None)
    with pytest.raises(MissingDependencyError) as caught:
        converter.convert(request)
    assert caught.value.hint == "pip install 'edgekit[micro]'"
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    (problem,) = converter.check(request)
    assert "x86-64" in problem.message


def test_several_entry_points_are_refused(tmp_path: Path) -> None:
    """TFLM runs the first subgraph only, so further signatures are an obstacle, not dropped."""
    program = torch.export.export(torch.nn.Linear(4, 4).eval(), (torch.zeros(1, 4),))
    request = ConversionRequest(
        name="x", program=program, scheme=Scheme.FP32, output_dir=tmp_path, signatures={"wide": program}
    )
    (problem,) = load_converter("tflite-micro").check(request)
    assert "entry points" in problem.message


def test_the_arena_search_finds_the_smallest() -> None:
    """From guesses below and above, and with a threshold at the first step: the smallest multiple of 16 that works."""
    from edgekit.converters.tflite_micro.trial import smallest_arena

    for needed in (16, 17, 4250, 4256, 100_000):
        for guess in (16, 4256, 4257, 1_000_000):
            answer = smallest_arena(guess, lambda size, needed=needed: size >= needed)
            assert answer == -(-needed // 16) * 16, (needed, guess)


def test_names_become_identifiers() -> None:
    """Whatever an artifact may be called, the C++ names are identifiers."""
    from edgekit.converters.tflite_micro.sources import identifier

    assert identifier("kws-net.v2") == "kws_net_v2"
    assert identifier("8bit") == "model_8bit"
    assert identifier("__") == "model"
