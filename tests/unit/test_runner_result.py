"""Results from devices are untrusted: every way to break the format is one error that names the field."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import doubles

from edgekit.artifact import Passport, QuantizationParams, Scheme, TensorSpec
from edgekit.benchmarks.inputs import dequantize, outputs_limit, quantize, read_outputs
from edgekit.benchmarks.result import MAX_RESULT_BYTES, parse_result, read_result
from edgekit.errors import InvalidResultError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "result.v2.json").read_text())


def parse(text: bytes) -> object:
    return parse_result(text, device="d", job="k.1", plan=doubles.QUICK, inputs=10)


def test_the_golden_result_is_accepted() -> None:
    """The check refuses what is wrong, not what is right."""
    assert parse(json.dumps(GOLDEN).encode())


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """An edit: the last of `path` becomes the value at the place the others name."""

    def edit(result: Any) -> None:
        *places, last, value = path
        for place in places:
            result = result[place]
        result[last] = value

    return edit


HOSTILE: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "unknown key": ("surprise", put("surprise", 1)),
    "missing key": ("flags", lambda r: r.pop("flags")),
    "wrong version": ("schema_version", put("schema_version", 3)),
    "another job": ("job", put("job", "k.2")),
    "unknown status": ("status", put("status", "great")),
    "ok with an error": ("error", put("error", "but")),
    "failed without an error": ("error", put("status", "failed")),
    "signal without a crash": ("signal", put("signal", 11)),
    "true as a number": ("latency_ns.0", put("latency_ns", 0, True)),
    "text as a number": ("latency_ns.0", put("latency_ns", 0, "5000")),
    "float as a number": ("latency_ns.0", put("latency_ns", 0, 5000.5)),
    "negative latency": ("latency_ns.3", put("latency_ns", 3, -1)),
    "zero latency": ("latency_ns.3", put("latency_ns", 3, 0)),
    "a year of latency": ("latency_ns.3", put("latency_ns", 3, 10**9 * 86400 * 365)),
    "too many samples": ("latency_ns", put("latency_ns", [1] * 20_001)),
    "no samples in an ok run": ("latency_ns", put("latency_ns", [])),
    "fewer than the minimum": ("latency_ns", lambda r: r["latency_ns"].pop()),
    "samples longer than their phase": ("latency_ns", put("phase_ns", "warm", 1000)),
    "cold start missing": ("cold_starts", lambda r: r["cold_starts"].pop()),
    "cold start too many": ("cold_starts", lambda r: r["cold_starts"].append(r["cold_starts"][0])),
    "parts longer than the whole": ("cold_starts", put("cold_starts", 0, "load_ns", 10**12)),
    "infinite load": ("(file)", put("before", "load_average_1m", float("inf"))),
    "negative memory": ("memory.peak_rss_bytes", put("memory", "peak_rss_bytes", -1)),
    "peak under loaded": ("memory", put("memory", "peak_rss_bytes", 1)),
    "memory not told": ("memory", put("memory", None)),
    "other number of inputs": ("evaluated", put("evaluated", 9)),
    "outputs without evaluation": ("evaluated", put("evaluated", None)),
    "a path as a hash": ("outputs.sha256", put("outputs", "sha256", "../../etc/passwd")),
    "unknown phase": ("phase_ns", put("phase_ns", "party", 1)),
    "a million flags": ("flags", put("flags", ["x"] * 65)),
    "a novel as a flag": ("flags.0", put("flags", ["x" * 20_000])),
    "time runs backwards": ("after", put("after", "monotonic_ns", 1)),
    "threads zero": ("runtime.threads", put("runtime", "threads", 0)),
    "not an object": ("(top level)", lambda r: None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_result_is_refused_by_field(name: str) -> None:
    """Each break is an InvalidResultError that names where."""
    field, edit = HOSTILE[name]
    result = copy.deepcopy(GOLDEN)
    edit(result)
    text = b"[]" if name == "not an object" else json.dumps(result).encode()
    with pytest.raises(InvalidResultError) as caught:
        parse(text)
    assert caught.value.field.startswith(field), caught.value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"job": "k.1", "job": "k.1"}',
        b'{"a": NaN}',
        b"[" * 100_000,
        json.dumps(GOLDEN).encode()[:-40],
    ],
    ids=["empty", "cut", "not text", "doubled key", "NaN", "deep", "truncated"],
)
def test_what_is_not_json_is_refused(text: bytes) -> None:
    """Broken text is one error too, however it is broken."""
    with pytest.raises(InvalidResultError, match="file"):
        parse(text)


def test_text_that_is_no_unicode_is_refused() -> None:
    """A lone surrogate in a name would fail later, where it is stored; it is refused here."""
    result = copy.deepcopy(GOLDEN)
    text = json.dumps(result).replace('"performance"', '"\\ud800"').encode()
    with pytest.raises(InvalidResultError):
        parse(text)


def test_an_infinity_by_exponent_is_refused() -> None:
    """1e999 is valid JSON text and an infinite float."""
    text = json.dumps(GOLDEN).replace('"load_average_1m": 0.5', '"load_average_1m": 1e999').encode()
    with pytest.raises(InvalidResultError):
        parse(text)


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Size is looked at first, so a hostile file costs neither time nor memory."""
    path = tmp_path / "result.json"
    with path.open("wb") as f:
        f.truncate(MAX_RESULT_BYTES + 1)
    monkeypatch.setattr("edgekit.benchmarks.result.parse_json", lambda *_a, **_k: pytest.fail("parsed"))
    with pytest.raises(InvalidResultError, match="bytes"):
        read_result(path, device="d", job="k.1", plan=doubles.QUICK, inputs=10)


PARAMS = QuantizationParams(scale=(0.5,), zero_point=(3,))


def passport(quantized: bool = False) -> Passport:
    spec = TensorSpec(
        name="y", shape=(1, 3), dtype="int8" if quantized else "float32", quantization=PARAMS if quantized else None
    )
    return Passport(
        name="p", format="tflite", scheme=Scheme.FP32, file="f", sha256="0" * 64, size_bytes=1,
        inputs=(), outputs=(spec,), ops=(),
    )  # fmt: skip


def test_outputs_come_back_in_real_numbers(tmp_path: Path) -> None:
    """int8 outputs are dequantized by the passport's scale and zero point."""
    np.savez(tmp_path / "o.npz", output_0=np.array([[3, 4, -1]], np.int8))
    (out,) = read_outputs(tmp_path / "o.npz", passport(quantized=True), 1, device="d")
    np.testing.assert_array_equal(out, np.array([[0.0, 0.5, -2.0]], np.float32))


def test_quantization_rounds_half_to_even_and_clips() -> None:
    """Halves go to the even neighbour; what lies outside int8 is clipped, the rest comes back within half a step."""
    real = np.array([0.25, 0.75, 1000.0, -1000.0], np.float32)
    np.testing.assert_array_equal(quantize(real, PARAMS, "int8"), np.array([3, 5, 127, -128], np.int8))
    inside = np.linspace(-60, 60, 1001, dtype=np.float32)
    back = dequantize(quantize(inside, PARAMS, "int8"), PARAMS)
    assert np.abs(back - inside).max() <= 0.25  # half of scale 0.5


@pytest.mark.parametrize(
    "arrays",
    [
        {"output_0": np.zeros((2, 3), np.float64)},
        {"output_0": np.zeros((2, 4), np.float32)},
        {"output_0": np.zeros((3, 3), np.float32)},
        {"output_0": np.zeros((2, 3), np.float32), "more": np.zeros(1)},
        {"other": np.zeros((2, 3), np.float32)},
        {"output_0": np.array([[object()] * 3] * 2)},
    ],
    ids=["dtype", "shape", "count", "extra array", "name", "pickle"],
)
def test_hostile_outputs_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Names, types and shapes must be the passport's; a pickle is never opened."""
    np.savez(tmp_path / "o.npz", **arrays)
    with pytest.raises(InvalidResultError) as caught:
        read_outputs(tmp_path / "o.npz", passport(), 2, device="d")
    assert caught.value.field == "outputs"


def test_a_compressed_outputs_file_is_refused(tmp_path: Path) -> None:
    """A small file must not unfold into a large one."""
    np.savez_compressed(tmp_path / "o.npz", output_0=np.zeros((2, 3), np.float32))
    with pytest.raises(InvalidResultError, match="compressed"):
        read_outputs(tmp_path / "o.npz", passport(), 2, device="d")


def test_the_outputs_limit_holds_an_honest_file(tmp_path: Path) -> None:
    """The bound on what is pulled is over what numpy writes, and not by much."""
    path = tmp_path / "o.npz"
    np.savez(path, output_0=np.zeros((1000, 3), np.float32))
    assert path.stat().st_size < outputs_limit(passport(), 1000) < path.stat().st_size + 20_000
