"""Every kind of model users bring, converted for real: the right artifact, or a refusal that is listed here.

Each model goes to the backends that could differ on it, to fp32 and static_w8a8 in one child each; about four minutes
of processor time. What the converters say of their files is checked here again without them, on other inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support.zoo import ZOO, Sample  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

from edgekit.artifact import Artifact, Format, Scheme  # noqa: E402
from edgekit.converters.conversion import ConversionOptions, convert_model  # noqa: E402
from edgekit.errors import EdgekitError  # noqa: E402

pytestmark = [pytest.mark.toolchain, pytest.mark.slow]

SCHEMES = (Scheme.FP32, Scheme.STATIC_W8A8)
FLOOR_DB = {Scheme.FP32: 60.0, Scheme.STATIC_W8A8: 15.0}
"""The converters' own floors: a float file that is right has over 100 dB, int8 of a sound model 20 to 40."""
EVERYWHERE = ("executorch", "onnx", "tflite")
TARGETS = {
    "resnet18": ("onnx",),
    "mobilenet_v2": ("executorch",),
    "mobilenet_v3": ("tflite",),
    "efficientnet": ("onnx",),
    "unet_transposed": ("executorch", "tflite"),
    "unet_bilinear": ("tflite",),
    "unet_nearest": ("onnx",),
    "vit": ("executorch",),
    "vit_transformers": ("onnx",),
    "bert": EVERYWHERE,
    "gpt_step": ("executorch", "tflite"),
    "dscnn": ("tflite",),
    "crnn": ("onnx",),
    "lstm": ("executorch", "onnx"),
    "gru": ("tflite",),
    "tcn": ("tflite",),
    "depthwise_multiplier": ("executorch",),
    "multi_io": EVERYWHERE,
    "prelu": ("tflite",),
    "groupnorm": ("executorch",),
    "pixel_shuffle": ("onnx",),
    "densenet": ("executorch",),
    "same_padding": EVERYWHERE,
}
"""Where the backends could differ most; `make conversion-matrix` goes through every pair."""
REFUSED: dict[tuple[str, str, Scheme], str] = {}
"""(model, backend, scheme) to a part of the reason. Anything that is refused beside these fails a test, and so does
one of these that converts."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of one model."""

    artifacts: dict[tuple[str, Scheme], Artifact]
    errors: dict[tuple[str, Scheme], EdgekitError]


def converted(name: str, folder: Path) -> Converted:
    zoo = ZOO[name]
    outcome = convert_model(
        zoo.build(),
        zoo.example_inputs,
        name=name,
        targets=TARGETS[name],
        schemes=SCHEMES,
        output_dir=folder,
        calibration=zoo.samples(24, 1),
        verification=zoo.samples(16, 2),
        options=ConversionOptions(input_layouts=zoo.input_layouts),
    )
    artifacts = {(a.passport.format.value, a.passport.scheme): a for a in outcome.artifacts}
    return Converted(artifacts, {(f.target, f.scheme): f.error for f in outcome.failures})  # type: ignore[arg-type]


def torch_outputs(name: str, samples: Sequence[Sample]) -> list[list[np.ndarray]]:
    """What the model gives, its nested outputs in PyTorch's order."""
    model = ZOO[name].build()
    with torch.no_grad():
        found = [pytree.tree_leaves(model(*(torch.from_numpy(array) for array in sample))) for sample in samples]
    return [[value.numpy() for value in outputs] for outputs in found]


def run_tflite(path: Path, samples: Sequence[Sample]) -> list[list[np.ndarray]]:
    """By ai-edge-litert alone, real numbers in and out."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    found = []
    for sample in samples:
        for array, detail in zip(sample, interpreter.get_input_details(), strict=True):
            scale, zero = detail["quantization"]
            if scale and array.dtype.kind == "f":
                limits = np.iinfo(detail["dtype"])
                array = np.clip(np.round(array / scale) + zero, limits.min, limits.max)
            interpreter.set_tensor(detail["index"], array.astype(detail["dtype"]))
        interpreter.invoke()
        outputs = []
        for detail in interpreter.get_output_details():
            value, (scale, zero) = interpreter.get_tensor(detail["index"]), detail["quantization"]
            outputs.append((value.astype(np.float32) - zero) * scale if scale else value)
        found.append(outputs)
    return found


def run_onnx(path: Path, samples: Sequence[Sample]) -> list[list[np.ndarray]]:
    """By onnxruntime alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [session.run(None, dict(zip(names, sample, strict=True))) for sample in samples]


def run_executorch(path: Path, samples: Sequence[Sample]) -> list[list[np.ndarray]]:
    """By ExecuTorch's runtime alone."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    found = [method.execute([torch.from_numpy(array.copy()) for array in sample]) for sample in samples]
    return [[value.numpy().copy() for value in outputs] for outputs in found]


RUNNERS = {Format.TFLITE: run_tflite, Format.ONNX: run_onnx, Format.EXECUTORCH: run_executorch}


def assert_close(expected: list[list[np.ndarray]], found: list[list[np.ndarray]], floor_db: float, what: str) -> None:
    """Each output, in its place: its shape, and SQNR of floats, equality of at least nine in ten integers."""
    assert [len(outputs) for outputs in found] == [len(outputs) for outputs in expected], what
    for index in range(len(expected[0])):
        reference, value = (np.stack([outputs[index] for outputs in each]) for each in (expected, found))
        assert value.shape == reference.shape, f"{what}, output {index}"
        if reference.dtype.kind != "f":
            assert np.mean(reference == value) >= 0.9, f"{what}, output {index}"
            continue
        noise = float(np.sum((reference.astype(np.float64) - value) ** 2))
        signal = float(np.sum(reference.astype(np.float64) ** 2))
        assert noise <= signal / 10 ** (floor_db / 10), f"{what}, output {index}: {signal=:.3g} {noise=:.3g}"


def assert_signature(name: str, artifact: Artifact, expected: list[np.ndarray]) -> None:
    """The passport's inputs and outputs are PyTorch's: as many, in order, of the same shapes and kinds of number."""
    passport, example = artifact.passport, ZOO[name].example_inputs
    assert [spec.shape for spec in passport.inputs] == [tuple(value.shape) for value in example]
    assert [spec.shape for spec in passport.outputs] == [value.shape for value in expected]
    for spec, value in zip(
        (*passport.inputs, *passport.outputs), (*(v.numpy() for v in example), *expected), strict=True
    ):
        is_real = spec.quantization is not None or np.dtype(spec.dtype).kind == "f"
        assert is_real == (value.dtype.kind == "f"), spec


@pytest.mark.parametrize("name", TARGETS)
def test_each_kind_of_model_is_right_or_refused(name: str, tmp_path: Path) -> None:
    """Every pair gives a file that its runtime answers as PyTorch does, on inputs no converter saw, outputs in
    PyTorch's order; or it is refused with a reason that is listed above. Nothing in between."""
    result = converted(name, tmp_path)
    refused = {(t, s): why for (model, t, s), why in REFUSED.items() if model == name and t in TARGETS[name]}
    told = {key: f"{type(error).__name__}: {error}" for key, error in result.errors.items()}
    assert set(told) == set(refused), told
    assert set(result.artifacts) | set(told) == {(t, s) for t in TARGETS[name] for s in SCHEMES}
    for key, why in refused.items():
        assert why in told[key]
    samples = ZOO[name].samples(12, 77)
    expected = torch_outputs(name, samples)
    for (target, scheme), artifact in result.artifacts.items():
        assert_signature(name, artifact, expected[0])
        found = RUNNERS[artifact.passport.format](artifact.path, samples)
        assert_close(expected, found, FLOOR_DB[scheme], f"{name} {target} {scheme}")


def test_the_table_holds_every_model() -> None:
    """A model added to the zoo is converted here, by at least one backend."""
    assert set(TARGETS) == set(ZOO)
    assert all(set(targets) <= set(EVERYWHERE) and targets for targets in TARGETS.values())


def test_models_of_the_zoo_are_what_they_claim() -> None:
    """Building one twice gives the same weights, and samples differ by seed; else the tests above judge nothing."""
    for name, zoo in ZOO.items():
        first, second = (dict(zoo.build().state_dict()) for _ in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first), name
        one, other = zoo.samples(2, 5), zoo.samples(2, 6)
        assert [[a.shape for a in s] for s in one] == [[tuple(v.shape) for v in zoo.example_inputs]] * 2, name
        assert not all(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True)), name
        values: list[Any] = torch_outputs(name, one)
        assert all(np.isfinite(v).all() for outputs in values for v in outputs), name
