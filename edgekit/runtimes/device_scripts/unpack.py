"""Expand a pack of model files: `python3 unpack.py MODEL.ekpack -o DIR [--base PATH ...]`.

One file, Python 3.9 or newer and numpy: copy it to a board as it is. `edgekit pack` writes packs and
docs/packing.md tells their use. Every number in a pack is checked before it is used, nothing is written unless
every file has the sha256 that the pack names, and names cannot leave DIR. Exit status 0, or 6 with one line that
says what is wrong (2 for the command line, 5 when a file cannot be written).

A pack is, in this order (`varint`: 7 bits a byte, low ones first, the last byte below 128; integers little-endian):

    "EDGEPACK", version 1 (a byte), crc32 (4 bytes) of all that follows
    varint bases; of each: varint size, sha256
    varint files; of each: varint length and UTF-8 name, varint size, sha256, varint segments, the segments
        segment: kind (a byte), varint length in bytes, and for
            0 plain: nothing; the bytes come from the plain stream
            1 copy:  varint base, varint offset
            2 coded: see `Span`
    plain stream: codec (0 stored, 1 deflate, 2 LZMA2), varint raw size, varint stored size, bytes
    coded stream: varint lanes, varint words, a 4-byte state a lane, 2-byte words

The coded stream is rANS (Duda 2013) with 32-bit states, 16-bit words and probabilities of 14 bits; symbol i of an array
is lane i mod lanes, so that numpy decodes a whole row of lanes at a time. Zeros are told from the rest by an adaptive
model of density (`MaskModel`), the rest by tables of frequencies, in the plain stream beside the codebooks.
"""

import argparse
import hashlib
import os
import sys
import zlib
from typing import Any, NamedTuple, Optional

import numpy as np

MAGIC = b"EDGEPACK"
VERSION = 1
PROBABILITY_BITS = 14
ONE = 1 << PROBABILITY_BITS
LOW = 1 << 16
"""A state is at least this, and below 2**32."""
PLAIN, COPY, CODED = 0, 1, 2
STORED, DEFLATE, LZMA2 = 0, 1, 2
LZMA_FILTERS = [{"id": 0x21, "dict_size": 1 << 23, "lc": 3, "lp": 0, "pb": 2}]
HAS_MASK, HAS_CODEBOOK, IS_DIFFERENCE, IS_CONDITIONAL = 1, 2, 4, 8
MAX_CODEBOOK = 512
MAX_COLUMNS = 1 << 20
MAX_LANES = 1 << 14
SYMBOLS_PER_LANE = 1 << 16
"""A stream of more symbols a lane, below MAX_LANES, is refused: it would take Python hours."""
MAX_BYTES = 1 << 30
DTYPES: "dict[int, Any]" = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}


class PackError(Exception):
    """The pack is broken, not one, or not for this base; the message says which."""


class Reader:
    """Reads a byte string from its start; anything beyond its end is a PackError."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data = memoryview(data)
        self.what = what
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > len(self.data) - self.position:
            raise PackError(f"{self.what} ends early")
        self.position += count
        return bytes(self.data[self.position - count : self.position])

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, at_most: int, what: str) -> int:
        """The next number; a PackError when it is more than `at_most`."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                break
        else:
            raise PackError(f"{self.what}: {what} is no number")
        if value > at_most:
            raise PackError(f"{self.what}: {what} is {value}, more than the {at_most} possible")
        return value

    def end(self) -> None:
        """A PackError unless everything was read."""
        if self.position != len(self.data):
            raise PackError(f"{self.what} has {len(self.data) - self.position} bytes too many")


class Span(NamedTuple):
    """A stretch of equally wide weights, and how they are coded.

    After kind and length: `width` (1, 2 or 4 bytes a weight), flags; with HAS_MASK varint `columns` (weights in a row
    of the matrix); with HAS_CODEBOOK varint `codes`; with IS_DIFFERENCE or IS_CONDITIONAL varint `base` and
    `offset`.
    """

    size: int
    width: int
    flags: int
    columns: int = 1
    codes: int = 0
    base: int = 0
    offset: int = 0


class Segment(NamedTuple):
    """A stretch of a file."""

    kind: int
    length: int
    base: int = 0
    offset: int = 0
    span: Optional[Span] = None


class File(NamedTuple):
    """One file in a pack."""

    name: str
    size: int
    sha256: bytes
    segments: "list[Segment]"


class Base(NamedTuple):
    """A file that must be there already."""

    size: int
    sha256: bytes


class Contents(NamedTuple):
    """What a pack says it holds."""

    bases: "list[Base]"
    files: "list[File]"


# --- frequencies ---


_EIGHTHS = (256, 279, 304, 332, 362, 395, 431, 470)
WEIGHTS = np.array([0] + [(_EIGHTHS[i % 8] << (i // 8)) >> 8 for i in range(113)], dtype=np.int64)
"""What a byte of a table stands for: nothing, then eighths of octaves from 1 to 2**14."""


def frequencies(table: np.ndarray) -> np.ndarray:
    """Frequencies `int64 [K]` that sum to ONE, from the bytes of a table; a PackError where there are none."""
    if table.size == 0 or int(table.max()) >= len(WEIGHTS) or not table.any():
        raise PackError("a table of frequencies is empty or out of range")
    weights = WEIGHTS[table]
    result = np.maximum(weights * ONE // weights.sum(), weights > 0)
    largest = int(result.argmax())
    result[largest] += ONE - result.sum()
    if result[largest] < 1:
        raise PackError("a table of frequencies cannot be scaled")
    return np.asarray(result)


# --- the model of zeros ---


BIT_LENGTHS = np.array([i.bit_length() for i in range(256)], dtype=np.int64)
HALF_OCTAVES = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024, 1448, 2048, 2896)
DENSITIES = np.searchsorted(np.array(HALF_OCTAVES), np.arange(4097), side="right")
"""The level of a density in 1/4096: 0 for none, then half octaves."""
LEVELS = len(HALF_OCTAVES) + 1
EXPECTED = np.array((0, *HALF_OCTAVES), dtype=np.int64)
ROW_RATIOS = (64, 128, 192, 256, 362, 512, 1024)
ROW_LEVELS = len(ROW_RATIOS) + 1
ROW_ENOUGH = 16
PATIENCE = 32
"""Weights that a context's first chance counts for."""


class MaskModel:
    """How likely a weight is not zero, from the weights before it in its column and in its row.

    A context is how often the column was not zero so far, of how many, and how much denser than the rest the row was;
    it learns its chance as it goes, over all layers of a pack. Integers only: the same on every machine.
    """

    def __init__(self) -> None:
        contexts = 8 * LEVELS * ROW_LEVELS
        expected = EXPECTED[np.arange(contexts) // ROW_LEVELS % LEVELS]
        self.ones = np.maximum(1, expected * PATIENCE // 4096)
        self.totals = np.full(contexts, PATIENCE, dtype=np.int64) + self.ones

    def begin(self, columns: int) -> None:
        """A new array, `columns` weights a row."""
        self.columns = columns
        self.hits = np.zeros(columns, dtype=np.int64)
        self.all_hits = self.row_hits = self.done = 0

    def chances(self, count: int) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
        """Of the next `count` weights: column, context, and the chance of not being zero in 1/ONE."""
        columns = self.columns
        place = np.arange(self.done, self.done + count)
        column = place % columns
        seen = (self.done + columns - 1 - column) // columns
        density = DENSITIES[np.minimum((self.hits[column] << 12) // np.maximum(seen, 1), 4096)]
        context = (BIT_LENGTHS[np.minimum(seen, 127)] * LEVELS + density) * ROW_LEVELS
        rest = columns - self.done % columns
        context[:rest] += self.row_level()
        context[rest:] += ROW_RATIOS.index(256)
        chance = self.ones[context] * ONE // self.totals[context]
        return column, context, np.minimum(np.maximum(chance, 1), ONE - 1)

    def row_level(self) -> int:
        """How dense the row was up to here, against all rows before."""
        in_row = self.done % self.columns
        if in_row < ROW_ENOUGH or self.done < 4 * self.columns:
            return ROW_RATIOS.index(256)
        expected = 2 * self.all_hits * in_row // self.done + 1
        ratio = (2 * self.row_hits + 1) * 256 // expected
        return sum(ratio >= limit for limit in ROW_RATIOS)

    def learn(self, column: np.ndarray, context: np.ndarray, is_one: np.ndarray) -> None:
        """Take in what those weights were."""
        size = len(self.ones)
        self.ones += np.bincount(context[is_one], minlength=size)
        self.totals += np.bincount(context, minlength=size)
        if len(column) <= self.columns:
            self.hits[column[is_one]] += 1
        else:
            self.hits += np.bincount(column[is_one], minlength=self.columns)
        self.all_hits += int(np.count_nonzero(is_one))
        in_row = self.done % self.columns
        self.done += len(column)
        left = self.done % self.columns  # weights of the last row that are done
        if in_row + len(column) < self.columns:
            self.row_hits += int(np.count_nonzero(is_one))
        else:
            self.row_hits = int(np.count_nonzero(is_one[len(is_one) - left :]))


# --- the coded stream ---


class Decoder:
    """Takes arrays of symbols off a coded stream, one after another; all share its lanes."""

    def __init__(self, states: np.ndarray, words: np.ndarray) -> None:
        self.states = states.astype(np.int64)
        self.words = words.astype(np.int64)
        self.position = 0
        self.model = MaskModel()
        if (self.states < LOW).any():
            raise PackError("coded stream: a state is out of range")

    def symbols(self, cumulative: np.ndarray, count: int, contexts: Optional[np.ndarray] = None) -> np.ndarray:
        """`count` symbols `int16`; `cumulative` `[contexts, K + 1]` are the edges of their frequencies."""
        slots = np.empty((len(cumulative), ONE), dtype=np.int16)
        for row, edges in enumerate(cumulative):
            slots[row] = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
        flat, width = slots.reshape(-1), cumulative.shape[1]
        low = cumulative.reshape(-1)
        out = np.empty(count, dtype=np.int16)
        lanes = len(self.states)
        for start in range(0, count, lanes):
            stop = min(start + lanes, count)
            state = self.states[: stop - start]
            slot = state & (ONE - 1)
            if contexts is None:
                symbol = flat[slot].astype(np.int64)
                edge = symbol
            else:
                rows = contexts[start:stop]
                symbol = flat[(rows << PROBABILITY_BITS) + slot].astype(np.int64)
                edge = rows * width + symbol
            out[start:stop] = symbol
            bottom = low[edge]
            self._advance(state, low[edge + 1] - bottom, bottom, slot)
        return out

    def mask(self, count: int, columns: int) -> np.ndarray:
        """`count` booleans: which weights are not zero."""
        model = self.model
        model.begin(columns)
        out = np.empty(count, dtype=bool)
        lanes = len(self.states)
        for start in range(0, count, lanes):
            stop = min(start + lanes, count)
            state = self.states[: stop - start]
            column, context, chance = model.chances(stop - start)
            slot = state & (ONE - 1)
            is_one = slot < chance
            out[start:stop] = is_one
            self._advance(state, np.where(is_one, chance, ONE - chance), np.where(is_one, 0, chance), slot)
            model.learn(column, context, is_one)
        return out

    def _advance(self, state: np.ndarray, frequency: np.ndarray, bottom: np.ndarray, slot: np.ndarray) -> None:
        """The states before these symbols were put in, in place."""
        state[:] = frequency * (state >> PROBABILITY_BITS) + slot - bottom
        short = np.flatnonzero(state < LOW)
        if short.size:
            stop = self.position + short.size
            if stop > len(self.words):
                raise PackError("coded stream ends early")
            state[short] = state[short] << 16 | self.words[self.position : stop]
            self.position = stop

    def end(self) -> None:
        """A PackError unless the stream was read to its end, and its lanes are where they began."""
        if self.position != len(self.words) or (self.states != LOW).any():
            raise PackError("coded stream does not end where its arrays do")


# --- reading ---


def read_contents(reader: Reader, max_bytes: int) -> Contents:
    """The bases and files of a pack; a PackError for sizes, names and places that cannot be."""
    bases = [
        Base(reader.varint(max_bytes, "size of a base"), reader.take(32))
        for _ in range(reader.varint(64, "number of bases"))
    ]
    files: list[File] = []
    left = max_bytes
    for _ in range(reader.varint(4096, "number of files")):
        name = checked_name(reader.take(reader.varint(255, "length of a name")))
        if name.casefold() in {f.name.casefold() for f in files}:
            raise PackError(f"'{name}' is there twice")
        size = reader.varint(left, f"size of '{name}'")
        left -= size
        sha256 = reader.take(32)
        segments = []
        missing = size
        for _ in range(reader.varint(1 << 20, "number of segments")):
            segments.append(read_segment(reader, bases, missing))
            missing -= segments[-1].length
        if missing:
            raise PackError(f"'{name}': its segments leave {missing} bytes out")
        files.append(File(name, size, sha256, segments))
    folders = {parent for file in files for parent in parents(file.name)}
    for file in files:
        if file.name.casefold() in folders:
            raise PackError(f"'{file.name}' is a file and a folder")
    return Contents(bases, files)


def parents(name: str) -> "list[str]":
    """The folders a name lies in, lower-case."""
    parts = name.casefold().split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def checked_name(raw: bytes) -> str:
    """A relative name of plain parts; a PackError for any that could leave the folder or look like an option."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise PackError("a file name is no UTF-8") from None
    parts = name.split("/")
    if any(part in ("", ".", "..") or part[0] in "-~ " or part[-1] in ". " for part in parts) or any(
        ord(c) < 32 or c in '\\:*?"<>|\x7f' for c in name
    ):
        raise PackError(f"file name {name!r} is not one a pack may hold")
    return name


def read_segment(reader: Reader, bases: "list[Base]", missing: int) -> Segment:
    """The next segment, of at most `missing` bytes."""
    kind = reader.byte()
    length = reader.varint(missing, "length of a segment")
    if kind == PLAIN:
        return Segment(PLAIN, length)
    if kind == COPY:
        base, offset = read_place(reader, bases, length)
        return Segment(COPY, length, base, offset)
    if kind == CODED:
        return Segment(CODED, length, span=read_span(reader, bases, length))
    raise PackError(f"a segment is of kind {kind}, which this version does not know")


def read_place(reader: Reader, bases: "list[Base]", length: int) -> "tuple[int, int]":
    """A base and an offset in it, with `length` bytes there."""
    if not bases:
        raise PackError("a segment is of a base, and the pack names none")
    base = reader.varint(len(bases) - 1, "a base")
    if length > bases[base].size:
        raise PackError("a segment is longer than its base")
    return base, reader.varint(bases[base].size - length, "offset in a base")


def read_span(reader: Reader, bases: "list[Base]", length: int) -> Span:
    """How a coded segment is coded."""
    width, flags = reader.byte(), reader.byte()
    if width not in DTYPES or length % width or flags & ~15:
        raise PackError("a coded segment has an unknown width or flags")
    if flags & IS_CONDITIONAL and flags != IS_CONDITIONAL | HAS_CODEBOOK:
        raise PackError("a coded segment has flags that exclude each other")
    count = length // width
    columns, codes, base, offset = 1, 0, 0, 0
    if flags & HAS_MASK:
        columns = reader.varint(min(max(count, 1), MAX_COLUMNS), "columns of a segment")
        if columns < 1:
            raise PackError("a coded segment has no columns")
    if flags & HAS_CODEBOOK:
        codes = reader.varint(MAX_CODEBOOK, "size of a codebook")
    if flags & (IS_DIFFERENCE | IS_CONDITIONAL):
        base, offset = read_place(reader, bases, length)
    return Span(count, width, flags, columns, codes, base, offset)


def read_plain(reader: Reader, max_bytes: int) -> bytes:
    """The plain stream, decompressed, at most as many bytes as it says."""
    codec = reader.byte()
    raw = reader.varint(max_bytes, "size of the plain stream")
    stored = reader.take(reader.varint(len(reader.data), "stored size of the plain stream"))
    try:
        data = decompress(codec, stored, raw)
    except PackError:
        raise
    except Exception as e:
        raise PackError(f"plain stream cannot be decompressed: {e}") from e
    if len(data) != raw:
        raise PackError(f"plain stream is {len(data)} bytes, not the {raw} it says")
    return data


def decompress(codec: int, stored: bytes, raw: int) -> bytes:
    """`stored` decompressed, one byte more than `raw` at most."""
    if codec == STORED:
        return stored
    if codec == DEFLATE:
        return zlib.decompressobj(-15).decompress(stored, raw + 1)
    if codec == LZMA2:
        try:
            import lzma
        except ImportError:
            raise PackError("this Python has no lzma module; pack again with --no-lzma") from None
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA_FILTERS).decompress(stored, raw + 1)
    raise PackError(f"plain stream has codec {codec}, which this version does not know")


def read_decoder(reader: Reader, symbols: int) -> Decoder:
    """The coded stream, ready to be read."""
    lanes = reader.varint(MAX_LANES, "number of lanes")
    words = reader.varint(len(reader.data) // 2, "number of words")
    if symbols and lanes < min(MAX_LANES, symbols // SYMBOLS_PER_LANE + 1):
        raise PackError(
            f"coded stream has {lanes} lanes for {symbols} symbols, too few to be decoded in reasonable time"
        )
    states = np.frombuffer(reader.take(4 * lanes), dtype="<u4")
    return Decoder(states, np.frombuffer(reader.take(2 * words), dtype="<u2"))


# --- expanding ---


class Expander:
    """Makes the files of a pack, in order."""

    def __init__(self, plain: bytes, decoder: Decoder, bases: "list[bytes]") -> None:
        self.plain = Reader(plain, "plain stream")
        self.decoder = decoder
        self.bases = bases

    def file(self, file: File) -> bytes:
        """The bytes of one file; a PackError where they are not those the pack names."""
        data = b"".join(self.segment(segment) for segment in file.segments)
        if hashlib.sha256(data).digest() != file.sha256:
            raise PackError(f"'{file.name}' comes out different from what was packed (sha256)")
        return data

    def segment(self, segment: Segment) -> bytes:
        if segment.kind == PLAIN:
            return self.plain.take(segment.length)
        if segment.kind == COPY:
            return self.bases[segment.base][segment.offset : segment.offset + segment.length]
        return self.span(segment.span).tobytes()

    def span(self, span: Any) -> np.ndarray:
        """The weights of a coded segment as unsigned integers of their width."""
        if span.size == 0:
            return np.zeros(0, dtype=DTYPES[span.width])
        if span.flags & IS_CONDITIONAL:
            return self.conditional(span)
        mask = None
        if span.flags & HAS_MASK:
            mask = self.decoder.mask(span.size, span.columns)
        count = span.size if mask is None else int(np.count_nonzero(mask))
        values = self.coded(span, count) if span.flags & HAS_CODEBOOK else self.planes(span, count)
        if mask is not None:
            scattered = np.zeros(span.size, dtype=values.dtype)
            scattered[mask] = values
            values = scattered
        if span.flags & IS_DIFFERENCE:
            values = values + self.old(span)  # modulo 2**(8 * width)
        return np.asarray(values, dtype=DTYPES[span.width])

    def old(self, span: Span) -> np.ndarray:
        """The weights of the base in the place of a span."""
        return np.frombuffer(self.bases[span.base], DTYPES[span.width], span.size, span.offset)

    def book(self, span: Span) -> np.ndarray:
        return np.frombuffer(self.plain.take(span.codes * span.width), dtype=DTYPES[span.width])

    def coded(self, span: Span, count: int) -> np.ndarray:
        """`count` values from a codebook."""
        book = self.book(span)
        if count == 0:
            return book[:0]
        return np.asarray(book[self.decoder.symbols(self.edges(len(book)), count)])

    def planes(self, span: Span, count: int) -> np.ndarray:
        """`count` values byte by byte, the low bytes first."""
        values = np.zeros(count, dtype=DTYPES[span.width])
        for plane in range(span.width):
            if count:
                values |= self.decoder.symbols(self.edges(256), count).astype(values.dtype) << np.array(
                    8 * plane, dtype=values.dtype
                )
        return values

    def conditional(self, span: Span) -> np.ndarray:
        """Values from a codebook, with frequencies for each different value the base has in their place."""
        book = self.book(span)
        old, context = np.unique(self.old(span), return_inverse=True)
        if not 0 < len(old) <= MAX_CODEBOOK:
            raise PackError("a segment depends on a base that has no codebook there")
        edges = np.empty((len(old), len(book) + 1), dtype=np.int64)
        for row in range(len(old)):
            table = np.zeros(len(book), dtype=np.uint8)
            for _ in range(self.plain.varint(len(book), "length of a table")):
                symbol = self.plain.varint(len(book) - 1, "a symbol")
                table[symbol] = self.plain.byte()
            edges[row] = edges_of(table)
        return np.asarray(book[self.decoder.symbols(edges, span.size, context.reshape(-1).astype(np.int64))])

    def edges(self, count: int) -> np.ndarray:
        """A table of `count` frequencies from the plain stream."""
        return edges_of(np.frombuffer(self.plain.take(count), dtype=np.uint8))[np.newaxis]


def edges_of(table: np.ndarray) -> np.ndarray:
    """Where each symbol's slots begin, and the last one's end: `int64 [K + 1]`."""
    return np.concatenate(([0], np.cumsum(frequencies(table))))


def split(pack: bytes, max_bytes: int) -> "tuple[Contents, Reader]":
    """What a pack holds, and the reader at its streams; a PackError where it is no whole pack."""
    if pack[: len(MAGIC)] != MAGIC:
        raise PackError("not a pack (it does not begin with EDGEPACK)")
    head = len(MAGIC) + 5
    if len(pack) < head:
        raise PackError("pack ends early")
    if pack[len(MAGIC)] != VERSION:
        raise PackError(f"pack of version {pack[len(MAGIC)]}; this unpacker reads version {VERSION}")
    if zlib.crc32(pack[head:]) != int.from_bytes(pack[head - 4 : head], "little"):
        raise PackError("pack is cut short or damaged (crc32)")
    reader = Reader(pack[head:], "pack")
    return read_contents(reader, max_bytes), reader


def expand(pack: bytes, bases: "list[bytes]", max_bytes: int = MAX_BYTES) -> "dict[str, bytes]":
    """Name to bytes of every file in a pack, each with the sha256 the pack names.

    `bases` are files of an older version, in any order; those the pack wants are found by sha256. `max_bytes` limits
    what it may expand to. Raises PackError.
    """
    contents, reader = split(pack, max_bytes)
    given = {hashlib.sha256(base).digest(): base for base in bases}
    for base in contents.bases:
        if base.sha256 not in given or len(given[base.sha256]) != base.size:
            raise PackError(f"pack is a difference from a file with sha256 {base.sha256.hex()}, which was not given")
    spans = [s.span for file in contents.files for s in file.segments if s.span is not None]
    plain = read_plain(reader, max_bytes + (1 << 24))
    decoder = read_decoder(reader, sum(span.size * span.width for span in spans))
    reader.end()
    expander = Expander(plain, decoder, [given[base.sha256] for base in contents.bases])
    files = {file.name: expander.file(file) for file in contents.files}
    expander.plain.end()
    decoder.end()
    return files


# --- the command ---


def write_files(files: "dict[str, bytes]", folder: str, force: bool) -> None:
    """Write all files into `folder`, each by rename; FileExistsError for one that is there and differs."""
    for name, data in files.items():
        path = os.path.join(folder, *name.split("/"))
        if not force and os.path.lexists(path):
            with open(path, "rb") as f:
                if f.read() != data:
                    raise FileExistsError(f"{path} is there and is another file; --force overwrites it")
    for name, data in files.items():
        path = os.path.join(folder, *name.split("/"))
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        partial = f"{path}.{os.getpid()}.partial"
        try:
            with open(partial, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.unlink(partial)


def main(arguments: "list[str]") -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Expand a pack of model files.")
    parser.add_argument("pack")
    parser.add_argument("-o", "--output", required=True, metavar="DIR")
    parser.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="PATH",
        help="a file of the version before, or a folder of its files",
    )
    parser.add_argument("--max-mb", type=int, default=MAX_BYTES >> 20, help="refuse a pack that expands to more")
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")
    options = parser.parse_args(arguments)
    try:
        pack, bases = read_file(options.pack), [data for path in options.base for data in read_bases(path)]
        files = expand(pack, bases, options.max_mb << 20)
        write_files(files, options.output, options.force)
    except PackError as e:
        print(f"{options.pack}: {e}", file=sys.stderr)
        return 6
    except (OSError, MemoryError) as e:
        print(str(e) or "not enough memory", file=sys.stderr)
        return 5
    for name, data in files.items():
        print(f"{hashlib.sha256(data).hexdigest()}  {os.path.join(options.output, name)}")
    return 0


def read_bases(path: str) -> "list[bytes]":
    """A file, or every file in a folder."""
    if not os.path.isdir(path):
        return [read_file(path)]
    found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in sorted(names)]
    return [read_file(name) for name in found if os.path.isfile(name)]


def read_file(path: str) -> bytes:
    with open(path, "rb") as f:
        return f.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
