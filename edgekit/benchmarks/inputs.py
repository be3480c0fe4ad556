"""Evaluation inputs, in the type each artifact takes, and its outputs back in real numbers.

An int8 artifact gets int8: inputs are quantized here by the passport's scale and zero point, so the device
measures what an app that feeds it would pay, and the outputs are dequantized here after they were pulled.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.artifact import Passport, QuantizationParams, TensorSpec
from edgekit.errors import InvalidResultError, WorkloadError
from edgekit.schema import digest

__all__ = [
    "InputFiles",
    "InputSet",
    "batch_of",
    "dequantize",
    "outputs_limit",
    "prepare_inputs",
    "quantize",
    "random_inputs",
    "read_outputs",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSet:
    """One array `[N, …]` per model input, in the model's own (real) numbers; `labels` `[N]` where there are any.

    `layouts` says how the arrays lie (`NCHW`), where an artifact may want them otherwise.
    """

    arrays: tuple[np.ndarray, ...]
    labels: np.ndarray | None = None
    layouts: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.arrays or any(a.ndim < 1 for a in self.arrays):
            raise WorkloadError("the evaluation inputs are empty", hint="give one array [N, ...] per model input")
        counts = {len(a) for a in self.arrays}
        if len(counts) != 1 or 0 in counts or (self.labels is not None and len(self.labels) not in counts):
            raise WorkloadError(f"the evaluation inputs (and labels) differ in length or are empty: {sorted(counts)}")

    def __len__(self) -> int:
        return len(self.arrays[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFiles:
    """The inputs as one `.npy` per model input, named by content; `sha256` is of all of them together."""

    files: tuple[tuple[str, Path], ...]
    count: int
    sha256: str


def random_inputs(passport: Passport, *, seed: int, count: int = 32) -> InputSet:
    """`count` standard-normal inputs (small integers for integer inputs) in the shapes of `passport`."""
    rng = np.random.default_rng(seed)
    arrays = []
    for spec in passport.inputs:
        shape = (count, *(1 if isinstance(n, str) else n for n in spec.shape[1:]))
        dtype = np.dtype(spec.dtype)
        if spec.quantization is None and dtype.kind in "iu":
            arrays.append(rng.integers(0, 2, shape).astype(dtype))
        elif dtype.kind == "b":
            arrays.append(rng.integers(0, 2, shape).astype(bool))
        else:
            arrays.append(rng.standard_normal(shape).astype(np.float32))
    return InputSet(arrays=tuple(arrays))


def batch_of(passport: Passport) -> int:
    """The leading extent of one inference; 1 where the artifact leaves it free."""
    first = passport.inputs[0].shape[0] if passport.inputs and passport.inputs[0].shape else 1
    return first if isinstance(first, int) else 1


def quantize(array: np.ndarray, params: QuantizationParams, dtype: str) -> np.ndarray:
    """`clip(round_half_even(x / scale) + zero_point)` in `dtype`; per slice along `params.axis` where there is one."""
    info = np.iinfo(dtype)
    scale, zero_point = _along(params, array.ndim)
    real = np.rint(array.astype(np.float64) / scale) + zero_point
    quantized: np.ndarray = np.clip(real, info.min, info.max).astype(dtype)
    return quantized


def dequantize(array: np.ndarray, params: QuantizationParams | None) -> np.ndarray:
    """`(q - zero_point) * scale` as float32; floats pass through unchanged."""
    if params is None:
        return array
    scale, zero_point = _along(params, array.ndim)
    real: np.ndarray = ((array.astype(np.float64) - zero_point) * scale).astype(np.float32)
    return real


def _along(params: QuantizationParams, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    shape = [1] * ndim
    if params.axis is not None and len(params.scale) > 1:
        shape[params.axis] = len(params.scale)
    elif len(params.scale) != 1:
        raise WorkloadError(f"{len(params.scale)} scales and no axis in a passport")
    return np.asarray(params.scale, np.float64).reshape(shape), np.asarray(params.zero_point, np.float64).reshape(shape)


def prepare_inputs(inputs: InputSet, passport: Passport, folder: Path) -> InputFiles:
    """Write `inputs` as this artifact takes them; artifacts with the same input types share the files.

    Raises WorkloadError where number, shape or type do not fit.
    """
    if len(inputs.arrays) != len(passport.inputs):
        raise WorkloadError(
            f"{passport.name} takes {len(passport.inputs)} inputs, the evaluation data give {len(inputs.arrays)}"
        )
    layouts = inputs.layouts or (None,) * len(inputs.arrays)
    files = []
    for array, layout, spec in zip(inputs.arrays, layouts, passport.inputs, strict=True):
        files.append((spec.name, _write(_as_taken(array, layout, spec, passport.name), folder)))
    return InputFiles(files=tuple(files), count=len(inputs), sha256=digest([f.stem for _, f in files]))


def _as_taken(array: np.ndarray, layout: str | None, spec: TensorSpec, who: str) -> np.ndarray:
    """`array` in the layout and dtype of `spec`."""
    wanted = spec.shape[1:]
    if array.ndim in (4, 5) and spec.layout is not None:  # a layout is only told where it is an image's
        is_last, wants_last = (layout or "NCHW").endswith("C"), spec.layout.endswith("C")
        if is_last != wants_last:
            array = np.moveaxis(array, 1, -1) if wants_last else np.moveaxis(array, -1, 1)
    if not _fits(array.shape[1:], wanted):
        raise WorkloadError(f"{who}: input '{spec.name}' takes {list(wanted)}, the data give {list(array.shape[1:])}")
    target = np.dtype(spec.dtype)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise WorkloadError(f"the evaluation data for input '{spec.name}' hold values that are not finite")
        if spec.quantization is not None:
            return quantize(array, spec.quantization, spec.dtype)
        if target.kind != "f":
            raise WorkloadError(f"{who}: input '{spec.name}' takes {spec.dtype}, the data are {array.dtype}")
    elif target.kind in "iu" and not np.array_equal(array.astype(target).astype(array.dtype), array):
        raise WorkloadError(f"the evaluation data for input '{spec.name}' do not fit into {spec.dtype}")
    return array.astype(target)


def _fits(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    return len(shape) == len(wanted) and all(isinstance(w, str) or s == w for s, w in zip(shape, wanted, strict=True))


def _write(array: np.ndarray, folder: Path) -> Path:
    """The array as `<sha256 of its content>.npy` in `folder`; written once."""
    array = np.ascontiguousarray(array)
    content = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    content.update(array.data)
    key = content.hexdigest()
    path = folder / f"{key}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{key}.{os.getpid()}.partial.npy")
        np.save(partial, array, allow_pickle=False)
        os.replace(partial, path)
    return path


def read_outputs(path: Path, passport: Passport, count: int, *, device: str) -> tuple[np.ndarray, ...]:
    """The outputs a device gave for `count` inputs, dequantized: one array `[count, …]` per output.

    The file is untrusted: names, types and shapes must be the passport's and no byte more. Raises InvalidResultError.
    """
    expected = {f"output_{i}": spec for i, spec in enumerate(passport.outputs)}
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, expected, count, device)
        with np.load(path, allow_pickle=False) as loaded:
            raw = [loaded[name] for name in expected]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise InvalidResultError(f"cannot be read: {e}", device=device, field="outputs") from e
    for array, spec in zip(raw, passport.outputs, strict=True):
        if array.dtype != np.dtype(spec.dtype) or len(array) != count or not _fits(array.shape[1:], spec.shape[1:]):
            raise InvalidResultError(
                f"'{spec.name}' is {array.dtype}{list(array.shape)}, the passport says {spec.dtype} "
                f"{[count, *spec.shape[1:]]}",
                device=device,
                field="outputs",
            )
    return tuple(dequantize(array, spec.quantization) for array, spec in zip(raw, passport.outputs, strict=True))


def _check_members(archive: zipfile.ZipFile, expected: dict[str, TensorSpec], count: int, device: str) -> None:
    """Exactly the expected arrays, stored, each of the size its passport gives (plus a .npy header)."""
    members = {m.filename: m for m in archive.infolist()}
    if sorted(members) != sorted(f"{name}.npy" for name in expected) or len(members) != len(archive.infolist()):
        raise InvalidResultError(f"holds {sorted(members)[:8]}", device=device, field="outputs")
    for name, spec in expected.items():
        member = members[f"{name}.npy"]
        if member.compress_type != zipfile.ZIP_STORED:
            raise InvalidResultError(f"{name} is compressed", device=device, field="outputs")
        if any(isinstance(n, str) for n in spec.shape[1:]):
            continue
        size = count * int(np.prod([int(n) for n in spec.shape[1:]], dtype=np.int64)) * np.dtype(spec.dtype).itemsize
        if not size < member.file_size <= size + 4096:
            raise InvalidResultError(f"{name} has {member.file_size} bytes", device=device, field="outputs")


def outputs_limit(passport: Passport, count: int) -> int:
    """The most bytes an honest outputs file of `count` inputs can have; 1 GiB where a shape is free."""
    total = 0
    for spec in passport.outputs:
        if any(isinstance(n, str) for n in spec.shape[1:]):
            return 1 << 30
        total += count * int(np.prod([int(n) for n in spec.shape[1:]], dtype=np.int64)) * np.dtype(spec.dtype).itemsize
    return total + 8192 * (len(passport.outputs) + 1)
