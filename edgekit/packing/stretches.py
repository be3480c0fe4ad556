"""Where the weights lie in a model file: stretches of equally wide numbers, by the file's own structure where edgekit
reads it (.safetensors, .tflite, .onnx), else by what the bytes look like."""

from __future__ import annotations

import importlib
import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import numpy as np

__all__ = ["Stretch", "find_stretches"]

logger = getLogger(__name__)

MIN_BYTES = 64
WINDOW = 64
"""Words that are looked at together where the structure is unknown."""
FEW = 0.6
"""Share of different words in a window, up to which it is taken for one of a codebook."""
NOVEL = 0.3
"""Share of a window's different words that, not seen before, begin another codebook."""
_UNREADABLE = (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error, OverflowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """`length` bytes from `offset` on, `width` bytes a number; `columns` are row lengths worth trying."""

    offset: int
    length: int
    width: int
    columns: tuple[int, ...] = ()


def find_stretches(name: str, content: bytes) -> list[Stretch]:
    """The stretches of a file, ascending and apart; what is between them is structure."""
    found = _by_structure(name.lower(), content)
    stretches = _by_content(content) if found is None else found
    result: list[Stretch] = []
    for stretch in sorted(stretches, key=lambda s: (s.offset, -s.length)):
        last = result[-1].offset + result[-1].length if result else 0
        if stretch.length >= MIN_BYTES and stretch.offset >= last:  # a buffer that two tensors share is one stretch
            result.append(stretch)
    return result


def _by_structure(name: str, content: bytes) -> list[Stretch] | None:
    """What the file's format says; None where edgekit cannot read it."""
    readers = {".safetensors": _safetensors, ".tflite": _tflite, ".onnx": _onnx}
    reader = next((r for suffix, r in readers.items() if name.endswith(suffix)), None)
    if reader is None:
        return None
    try:
        return list(reader(content))
    except (*_UNREADABLE, ImportError) as e:
        logger.info("%s: its structure cannot be read (%s: %s); weights are looked for", name, type(e).__name__, e)
        return None


def _stretch(offset: int, length: int, width: int, shape: Sequence[int]) -> Stretch:
    extents = [int(n) for n in shape]
    rows = {math.prod(extents[1:]), *extents[-1:], math.prod(extents[1:-1])} if len(extents) > 1 else set()
    return Stretch(offset=offset, length=length, width=width, columns=tuple(sorted(n for n in rows if n > 1)))


def _safetensors(content: bytes) -> Iterator[Stretch]:
    widths = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "I32": 4, "I16": 2}
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    for key, entry in header.items():
        if key != "__metadata__" and entry["dtype"] in widths:
            begin, end = entry["data_offsets"]
            if 0 <= begin <= end <= len(content) - 8 - length:
                yield _stretch(8 + length + begin, end - begin, widths[entry["dtype"]], entry["shape"])


def _tflite(content: bytes) -> Iterator[Stretch]:
    from ai_edge_litert import schema_py_generated as schema

    widths = {
        schema.TensorType.FLOAT32: 4,
        schema.TensorType.FLOAT16: 2,
        schema.TensorType.INT8: 1,
        schema.TensorType.UINT8: 1,
        schema.TensorType.INT16: 2,
        schema.TensorType.INT32: 4,
    }
    if content[4:8] != b"TFL3":
        raise ValueError("no TFL3 mark")
    model = schema.Model.GetRootAs(bytearray(content), 0)
    seen: set[int] = set()
    for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
        for tensor in (graph.Tensors(i) for i in range(graph.TensorsLength())):
            buffer = model.Buffers(tensor.Buffer())
            if tensor.Buffer() in seen or buffer.DataIsNone() or tensor.Type() not in widths:
                continue
            seen.add(tensor.Buffer())
            data = buffer.DataAsNumpy()
            field = buffer._tab.Offset(4)
            offset = int(buffer._tab.Vector(field))
            if offset + len(data) <= len(content):
                shape = tensor.ShapeAsNumpy() if not tensor.ShapeIsNone() else ()
                yield _stretch(offset, len(data), widths[tensor.Type()], shape)


def _onnx(content: bytes) -> Iterator[Stretch]:
    import onnx

    broken: Any = importlib.import_module("google.protobuf.message").DecodeError

    widths = {1: 4, 2: 1, 3: 1, 5: 2, 6: 4, 10: 2, 16: 2}  # TensorProto.DataType
    try:
        model = onnx.load_model_from_string(content)
    except broken as e:
        raise ValueError(str(e)) from e
    position = 0
    for tensor in _onnx_tensors(model):
        offset = content.find(tensor.raw_data, position) if tensor.data_type in widths else -1
        if len(tensor.raw_data) >= MIN_BYTES and offset >= 0:
            position = offset + len(tensor.raw_data)
            yield _stretch(offset, len(tensor.raw_data), widths[tensor.data_type], tensor.dims)


def _onnx_tensors(model: Any) -> Iterator[Any]:
    """Constants in nodes and initializers, in the order of the file (nodes come first)."""
    for node in model.graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
    yield from model.graph.initializer


def _by_content(content: bytes) -> list[Stretch]:
    """Stretches of 4-byte words that take few values, and the rest, if it is large, as bytes or words by entropy."""
    words = np.frombuffer(content, dtype="<u4", count=len(content) // 4)
    count = len(words) // WINDOW
    if count == 0:
        return []
    windows = words[: count * WINDOW].reshape(count, WINDOW)
    ordered = np.sort(windows, axis=1)
    different = 1 + (np.diff(ordered, axis=1) != 0).sum(axis=1)
    is_few = (different <= FEW * WINDOW) & (different > 1)
    stretches: list[Stretch] = []
    edges = np.flatnonzero(np.diff(np.concatenate(([0], is_few.astype(np.int8), [0]))))
    position = 0
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        if last - first >= 2:
            stretches += _unlike(content, position, int(first) * WINDOW * 4)
            stretches += _codebooks(windows, int(first), int(last))
            position = int(last) * WINDOW * 4
    return stretches + _unlike(content, position, len(content))


def _codebooks(windows: np.ndarray[Any, Any], first: int, last: int) -> Iterator[Stretch]:
    """A run of windows, cut where the values become others."""
    known: set[int] = set()
    begin = first
    for number in range(first, last):
        values = set(windows[number].tolist()) - {0}
        if number - begin >= 4 and len(values - known) > max(3, NOVEL * len(values)):
            yield Stretch(offset=begin * WINDOW * 4, length=(number - begin) * WINDOW * 4, width=4)
            begin, known = number, set()
        known |= values
    yield Stretch(offset=begin * WINDOW * 4, length=(last - begin) * WINDOW * 4, width=4)


def _unlike(content: bytes, begin: int, end: int) -> list[Stretch]:
    """What lies between, if it is large: as words where their high bytes say little (floats), else as bytes."""
    length = (end - begin) // 4 * 4
    if length < 4096:
        return []
    planes = np.frombuffer(content, dtype=np.uint8, count=length, offset=begin).reshape(-1, 4)
    separate = sum(_bits(planes[:, i]) for i in range(4)) / 4
    return [Stretch(offset=begin, length=length, width=4 if separate < 0.98 * _bits(planes) else 1)]


def _bits(values: np.ndarray[Any, Any]) -> float:
    """Order-0 entropy in bits a byte."""
    counts = np.bincount(values.reshape(-1), minlength=256)
    share = counts[counts > 0] / values.size
    return float(-(share * np.log2(share)).sum())
