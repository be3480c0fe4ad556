"""Files to one pack: what is weights is coded, what a base has is copied, the rest is compressed as it is."""

from __future__ import annotations

import hashlib
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import PurePosixPath

import numpy as np

from edgekit.packing.coder import Encoder, lanes_for
from edgekit.packing.coding import Coding, Old, best_coding, write_coding
from edgekit.packing.numbers import varint
from edgekit.packing.stretches import Stretch, find_stretches
from edgekit.runtimes.device_scripts import unpack
from edgekit.runtimes.device_scripts.unpack import CODED, COPY, PLAIN, Segment

__all__ = ["pack_bytes"]

BLOCK = 16
MIN_COPY = 32
MAX_SEARCHED = 4 << 20
"""Structure larger than this is only looked for in the same place of a base, not everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """A segment to be written: coded, copied, or the plain bytes."""

    segment: Segment
    coding: Coding | None = None
    old: Old | None = None
    plain: bytes = b""


@dataclass(slots=True)
class _Base:
    number: int
    content: bytes
    stretches: list[Stretch]
    blocks: dict[bytes, int] = field(default_factory=dict)


def pack_bytes(files: Mapping[str, bytes], bases: Mapping[str, bytes] | None = None, *, use_lzma: bool = True) -> bytes:
    """A pack of `files` (name to content), as a difference from `bases` where that is smaller.

    Without lzma the plain stream is deflated, for a Python that was built without it. Raises ValueError for a name that
    a pack may not hold.
    """
    names = [unpack.checked_name(name.encode()) for name in files]
    opened = _opened(bases or {})
    planned = {name: list(_plan(name, files[name], _base_for(name, opened))) for name in names}
    codings = [item.coding for items in planned.values() for item in items if item.coding is not None]
    symbols = sum(coding.span.size * coding.span.width for coding in codings)
    encoder = Encoder(lanes_for(sum(coding.coded_bytes for coding in codings), symbols))
    plain = bytearray()
    for items in planned.values():
        for item in items:
            plain += item.plain if item.coding is None else write_coding(item.coding, encoder, item.old)
    used = sorted({base for items in planned.values() for item in items for base in _bases_of(item.segment)})
    body = _contents(files, planned, [opened_base for opened_base in opened.values() if opened_base.number in used])
    states, words = encoder.finish()
    body += _plain_stream(bytes(plain), use_lzma=use_lzma)
    body += varint(len(states) // 4) + varint(len(words) // 2) + states + words
    return unpack.MAGIC + bytes([unpack.VERSION]) + zlib.crc32(body).to_bytes(4, "little") + body


def _opened(bases: Mapping[str, bytes]) -> dict[str, _Base]:
    return {
        name: _Base(number=number, content=content, stretches=find_stretches(name, content))
        for number, (name, content) in enumerate(bases.items())
    }


def _base_for(name: str, bases: Mapping[str, _Base]) -> _Base | None:
    """The base a file is compared with: of the same name, else the only one of its kind."""
    if name in bases:
        return bases[name]
    alike = [base for other, base in bases.items() if PurePosixPath(other).suffix == PurePosixPath(name).suffix]
    return alike[0] if len(alike) == 1 else None


def _bases_of(segment: Segment) -> tuple[int, ...]:
    if segment.kind == COPY:
        return (segment.base,)
    span = segment.span
    depends = span is not None and span.flags & (unpack.IS_DIFFERENCE | unpack.IS_CONDITIONAL)
    return (span.base,) if span is not None and depends else ()


def _plan(name: str, content: bytes, base: _Base | None) -> Iterator[_Planned]:
    """The segments of one file, in order."""
    stretches = find_stretches(name, content)
    places = _places(stretches, len(content), base)
    position = 0
    for stretch, place in zip(stretches, places, strict=True):
        item = _planned_stretch(stretch, content, base, place)
        if item is not None:
            yield from _structure(content, position, stretch.offset, base)
            yield item
            position = stretch.offset + stretch.length
    yield from _structure(content, position, len(content), base)


def _places(stretches: Sequence[Stretch], size: int, base: _Base | None) -> list[int | None]:
    """Where the base has the same weights: the stretches of equal size in the same order, else the same offset."""
    if base is None:
        return [None] * len(stretches)
    is_same_size = size == len(base.content)
    places: list[int | None] = [stretch.offset if is_same_size else None for stretch in stretches]
    matcher = SequenceMatcher(
        None, [(s.length, s.width) for s in base.stretches], [(s.length, s.width) for s in stretches], autojunk=False
    )
    for old, new, count in matcher.get_matching_blocks():
        for i in range(count):
            places[new + i] = base.stretches[old + i].offset
    return places


def _planned_stretch(stretch: Stretch, content: bytes, base: _Base | None, place: int | None) -> _Planned | None:
    """A copy, or the best coding; None where the stretch is better left to the structure around it."""
    length = stretch.length
    old = None
    if base is not None and place is not None:
        if base.content[place : place + length] == content[stretch.offset : stretch.offset + length]:
            return _Planned(segment=Segment(COPY, length, base.number, place))
        values = np.frombuffer(base.content, unpack.DTYPES[stretch.width], length // stretch.width, place)
        old = Old(base=base.number, offset=place, values=values)
    coding = best_coding(stretch, content, old)
    if coding is None:
        return None
    return _Planned(segment=Segment(CODED, length, span=coding.span), coding=coding, old=old)


def _structure(content: bytes, begin: int, end: int, base: _Base | None) -> Iterator[_Planned]:
    """Plain bytes, and copies of what the base has."""
    position = begin
    for start, length, place in _copies(content, begin, end, base):
        if base is not None:
            yield from _plain(content[position:start])
            yield _Planned(segment=Segment(COPY, length, base.number, place))
            position = start + length
    yield from _plain(content[position:end])


def _plain(data: bytes) -> Iterator[_Planned]:
    if data:
        yield _Planned(segment=Segment(PLAIN, len(data)), plain=data)


def _copies(content: bytes, begin: int, end: int, base: _Base | None) -> Iterator[tuple[int, int, int]]:
    """(start, length, place in the base) of stretches that the base has too, found by blocks as rsync does."""
    if base is None:
        return
    if end - begin > MAX_SEARCHED or len(base.content) > 16 * MAX_SEARCHED:
        if base.content[begin:end] == content[begin:end]:
            yield begin, end - begin, begin
        return
    if not base.blocks:
        for offset in range(0, len(base.content) - BLOCK + 1, BLOCK):
            base.blocks.setdefault(base.content[offset : offset + BLOCK], offset)
    position = begin
    while position + BLOCK <= end:
        place = base.blocks.get(content[position : position + BLOCK])
        length = 0 if place is None else _common(content, position, end, base.content, place)
        if place is not None and length >= MIN_COPY:
            yield position, length, place
            position += length
        else:
            position += 1


def _common(new: bytes, position: int, end: int, old: bytes, place: int) -> int:
    """How many bytes are equal from there on."""
    most = min(end - position, len(old) - place)
    length, step = 0, 4096
    while length < most:
        size = min(step, most - length)
        if new[position + length : position + length + size] == old[place + length : place + length + size]:
            length += size
        elif size == 1:
            break
        else:
            step = max(1, size // 2)
    return length


def _contents(files: Mapping[str, bytes], planned: Mapping[str, list[_Planned]], bases: Sequence[_Base]) -> bytes:
    """The head of a pack: bases that are used, files, segments."""
    renumbered = {base.number: number for number, base in enumerate(bases)}
    body = varint(len(bases))
    for base in bases:
        body += varint(len(base.content)) + hashlib.sha256(base.content).digest()
    body += varint(len(files))
    for name, content in files.items():
        segments = b"".join(_segment(item.segment, renumbered) for item in planned[name])
        encoded = name.encode()
        body += varint(len(encoded)) + encoded + varint(len(content)) + hashlib.sha256(content).digest()
        body += varint(len(planned[name])) + segments
    return body


def _segment(segment: Segment, numbers: Mapping[int, int]) -> bytes:
    head = bytes([segment.kind]) + varint(segment.length)
    if segment.kind == COPY:
        return head + varint(numbers[segment.base]) + varint(segment.offset)
    span = segment.span
    if span is None:
        return head
    body = bytes([span.width, span.flags])
    if span.flags & unpack.HAS_MASK:
        body += varint(span.columns)
    if span.flags & unpack.HAS_CODEBOOK:
        body += varint(span.codes)
    if _bases_of(segment):
        body += varint(numbers[span.base]) + varint(span.offset)
    return head + body


def _plain_stream(plain: bytes, *, use_lzma: bool) -> bytes:
    """The smallest of stored, deflated and LZMA2."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    forms = [(unpack.STORED, plain), (unpack.DEFLATE, deflate.compress(plain) + deflate.flush())]
    if use_lzma:
        forms.append((unpack.LZMA2, lzma.compress(plain, lzma.FORMAT_RAW, filters=unpack.LZMA_FILTERS)))
    codec, stored = min(forms, key=lambda form: len(form[1]))
    return bytes([codec]) + varint(len(plain)) + varint(len(stored)) + stored
