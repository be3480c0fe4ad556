"""Packs: the very bytes come back, small; broken and hostile ones are refused with a sentence, never half expanded."""

from __future__ import annotations

import ast
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from edgekit.errors import ArtifactError, UserError
from edgekit.packing import pack, pack_bytes, unpack, unpacker_source
from edgekit.packing.coder import Encoder, edges_of_counts, entropy_bytes
from edgekit.packing.numbers import varint
from edgekit.packing.stretches import find_stretches
from edgekit.runtimes.device_scripts import unpack as reading
from edgekit.runtimes.device_scripts.unpack import MAGIC, PackError, expand

HEAD = len(MAGIC) + 5


def shared_weights(count: int, *, density: float, codes: int = 16, seed: int = 0) -> np.ndarray:
    """`float32 [count]` of `codes` values, a share of them set to zero."""
    generator = np.random.default_rng(seed)
    book = generator.standard_normal(codes).astype(np.float32)
    weights = book[generator.integers(0, codes, count)]
    weights[generator.random(count) >= density] = 0
    return weights


def resealed(pack: bytes, body: bytes) -> bytes:
    """The pack with another body, and the crc32 of that."""
    return pack[: HEAD - 4] + zlib.crc32(body).to_bytes(4, "little") + body


def example_pack() -> tuple[dict[str, bytes], dict[str, bytes], bytes]:
    """Files, their base, and a small pack that uses every kind of segment."""
    base = save({"a": shared_weights(2000, density=0.2).reshape(40, 50), "b": np.arange(300, dtype=np.float32)})
    other = np.frombuffer(base, dtype=np.uint8).copy()
    header = 8 + struct.unpack_from("<Q", base)[0]
    weights = other[header : header + 8000].view(np.float32)
    weights *= np.float32(1.5)  # other centroids: conditional
    floats = np.random.default_rng(1).uniform(1, 2, 2500).astype(np.float32)  # all different, alike in their high bytes
    files = {
        "m.safetensors": other.tobytes(),
        "n.safetensors": save({"c": shared_weights(1500, density=0.3, seed=3).reshape(30, 50), "d": floats}),
        "notes.txt": b"what it is\n" * 3,
    }
    bases = {"m.safetensors": base}
    return files, bases, pack_bytes(files, bases)


FILES, BASES, PACK = example_pack()


def test_every_kind_of_segment_comes_back() -> None:
    """Plain, copied, masked, by codebook, byte by byte and by what the base had: the same bytes."""
    contents, _ = reading.split(PACK, reading.MAX_BYTES)
    segments = [segment for file in contents.files for segment in file.segments]
    assert {segment.kind for segment in segments} == {0, 1, 2}
    flags = {segment.span.flags for segment in segments if segment.span is not None}
    assert reading.HAS_CODEBOOK | reading.IS_CONDITIONAL in flags
    assert reading.HAS_CODEBOOK | reading.HAS_MASK in flags
    assert 0 in flags
    assert expand(PACK, list(BASES.values())) == FILES


@settings(max_examples=30, deadline=None)
@given(data=st.data(), width=st.sampled_from(["u1", "<u2", "<u4"]), size=st.integers(0, 60), seed=st.integers(0, 99))
def test_any_weights_come_back(data: st.DataObject, width: str, size: int, seed: int) -> None:
    """Any width, density and number of values, in one matrix or a vector, alone or as a difference."""
    generator = np.random.default_rng(seed)
    different = data.draw(st.integers(1, 700))
    density = data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    values = generator.integers(0, np.iinfo(width).max, different, endpoint=True).astype(width)
    weights = values[generator.integers(0, different, 50 * size)]
    weights[generator.random(len(weights)) >= density] = 0
    weights = weights.view({"u1": np.int8, "<u2": np.float16, "<u4": np.float32}[width]).reshape(size, 50)
    file = save({"w": weights})
    assert expand(pack_bytes({"w.safetensors": file}), []) == {"w.safetensors": file}
    older = file[:-40] + bytes(generator.integers(0, 256, 40, dtype=np.uint8)) if size else file
    assert expand(pack_bytes({"w.safetensors": file}, {"w.safetensors": older}), [older]) == {"w.safetensors": file}


@settings(max_examples=30, deadline=None)
@given(
    content=st.binary(max_size=3000), repeat=st.integers(1, 8), name=st.sampled_from(["m.tflite", "m.onnx", "m.pte"])
)
def test_any_bytes_come_back(content: bytes, repeat: int, name: str) -> None:
    """A file that is not what its name says is packed all the same."""
    file = content * repeat
    assert expand(pack_bytes({name: file}), []) == {name: file}
    assert expand(pack_bytes({name: file}, {name: content}, use_lzma=False), [content]) == {name: file}


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, len(PACK) - 1), flip=st.integers(1, 255))
def test_a_damaged_pack_is_refused(position: int, flip: int) -> None:
    """Any changed byte is found."""
    damaged = bytearray(PACK)
    damaged[position] ^= flip
    with pytest.raises(PackError):
        expand(bytes(damaged), list(BASES.values()))


@settings(max_examples=40, deadline=None)
@given(length=st.integers(0, len(PACK) - 1))
def test_a_truncated_pack_is_refused(length: int) -> None:
    """A download that was cut off, with and without a crc32 made to fit."""
    with pytest.raises(PackError):
        expand(PACK[:length], list(BASES.values()))
    if length > HEAD:
        with pytest.raises(PackError):
            expand(resealed(PACK, PACK[HEAD:length]), list(BASES.values()))


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_a_hostile_pack_gives_an_error_or_the_files(data: st.DataObject) -> None:
    """Bytes changed, taken out or put in, and the crc32 made to fit: a PackError, or what was packed; nothing else."""
    body = bytearray(PACK[HEAD:])
    for _ in range(data.draw(st.integers(1, 4))):
        # The head is where lengths and places are; half of the changes go there.
        position = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(body) - 1))) % len(body)
        kind = data.draw(st.sampled_from(["set", "cut", "put"]))
        if kind == "set":
            body[position] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del body[position]
        else:
            body.insert(position, data.draw(st.integers(0, 255)))
    try:
        files = expand(resealed(PACK, bytes(body)), list(BASES.values()), 1 << 20)
    except PackError:
        return
    assert {name: file for name, file in files.items() if name in FILES}.items() <= FILES.items()


@pytest.mark.parametrize(
    "name",
    [
        "../up",
        "/etc/passwd",
        "a/../b",
        "a//b",
        "",
        ".",
        "-rf",
        "a\\b",
        "c:x",
        "a/",
        "a\0b",
        "a\nb",
        "~root",
        "x ",
        "x.",
    ],
)
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    """On writing and on reading: a pack whose name was changed is no better."""
    with pytest.raises(PackError):
        pack_bytes({name: b"x"})
    raw = name.encode()
    honest = pack_bytes({"n" * len(raw) or "n": b"x"})
    with pytest.raises(PackError):
        expand(resealed(honest, honest[HEAD:].replace(b"n" * max(1, len(raw)), raw or b"\xff")), [])


def test_two_names_that_are_one_on_some_disks_are_refused() -> None:
    honest = pack_bytes({"model.onnx": b"x", "mod_l.onnx": b"x"})
    with pytest.raises(PackError, match="there twice"):
        expand(resealed(honest, honest[HEAD:].replace(b"mod_l.onnx", b"Model.onnx")), [])


def test_a_file_that_is_a_folder_too_is_refused() -> None:
    honest = pack_bytes({"model": b"x", "mode_/b": b"x"})
    with pytest.raises(PackError, match="a file and a folder"):
        expand(resealed(honest, honest[HEAD:].replace(b"mode_/b", b"Model/b")), [])


def bomb(size: int, segment: bytes, tail: bytes) -> bytes:
    """A pack of one file of `size` bytes, its only segment and its streams as given."""
    body = b"\0" + b"\1" + b"\1a" + varint(size) + bytes(32) + b"\1" + segment + tail
    return MAGIC + b"\1" + zlib.crc32(body).to_bytes(4, "little") + body


def test_a_pack_cannot_ask_for_more_than_is_allowed() -> None:
    """Sizes that add up to more than the limit, a compressed stream larger than it says, one lane for millions."""
    with pytest.raises(PackError, match="size of 'a'"):
        expand(bomb(1 << 40, b"\0" + varint(1 << 40), b"\0\0\0\0\0"), [])
    zeros = zlib.compressobj(9, zlib.DEFLATED, -15)
    stored = zeros.compress(bytes(100_000_000)) + zeros.flush()
    with pytest.raises(PackError, match="not the 1000 it says"):
        expand(bomb(1000, b"\0" + varint(1000), b"\1" + varint(1000) + varint(len(stored)) + stored + b"\0\0"), [])
    count = 400_000_000
    span = b"\2" + varint(count) + bytes([1, reading.HAS_CODEBOOK, 1])
    stream = b"\0" + varint(2) + varint(2) + b"\0\1" + b"\1\0" + struct.pack("<I", 1 << 16)
    with pytest.raises(PackError, match="1 lanes for 400000000 symbols"):
        expand(bomb(count, span, stream), [])


def test_a_pack_of_another_version_or_kind_says_so() -> None:
    with pytest.raises(PackError, match="not a pack"):
        expand(b"PK\3\4" + bytes(100), [])
    with pytest.raises(PackError, match="version 9"):
        expand(MAGIC + b"\x09" + PACK[9:], [])


def test_a_difference_wants_its_base() -> None:
    """Without it, and with another file: the sha256 it needs is named."""
    for bases in ([], [b"something else"]):
        with pytest.raises(PackError, match=r"difference from a file with sha256 [0-9a-f]{64}"):
            expand(PACK, bases)


def test_the_coder_reaches_the_entropy() -> None:
    """20,000 symbols of a skewed distribution: the 1-byte table costs at most 4.4 % of a frequency, which is
    under 0.1 % of the size; the lanes 2 bytes each, here 10."""
    values = np.random.default_rng(0).geometric(0.35, 20_000).clip(1, 16) - 1
    counts = np.bincount(values)
    _, edges = edges_of_counts(counts)
    encoder = Encoder(lanes=5)
    encoder.symbols(edges[np.newaxis], values.astype(np.int64))
    states, words = encoder.finish()
    assert len(states) + len(words) <= entropy_bytes(counts) * 1.002 + 20


def test_zeros_that_lie_in_columns_take_less() -> None:
    """Half of the columns empty: the model of zeros finds it out. Learning which takes it less than the
    15 % that one density for all would lose."""
    generator = np.random.default_rng(0)
    is_one = generator.random((300, 400)) < np.where(np.arange(400) % 2, 0.2, 0.0)
    encoder = Encoder(lanes=16)
    encoder.mask(is_one.reshape(-1), 400)
    states, words = encoder.finish()
    ones = int(is_one.sum())
    plain = entropy_bytes(np.array([ones, is_one.size - ones]))
    by_column = entropy_bytes(np.array([ones, is_one.size // 2 - ones]))
    assert by_column < len(states) + len(words) < 0.85 * plain


@pytest.mark.parametrize("lanes", [1, 3, 64, 700])
def test_any_number_of_lanes_gives_the_arrays_back(lanes: int) -> None:
    """More lanes than symbols, rows of a matrix across the lanes, several arrays in one stream."""
    generator = np.random.default_rng(lanes)
    masks = [generator.random(size) < 0.2 for size in (1, 50, 999)]
    codes = [generator.integers(0, 7, size) for size in (1, 640)]
    encoder = Encoder(lanes)
    _, edges = edges_of_counts(np.array([1, 5, 20, 1, 1, 300, 1]))
    for mask in masks:
        encoder.mask(mask, 50 if len(mask) > 50 else 1)
    for values in codes:
        encoder.symbols(edges[np.newaxis], values)
    states, words = encoder.finish()
    decoder = reading.Decoder(np.frombuffer(states, "<u4"), np.frombuffer(words, "<u2"))
    for mask in masks:
        assert np.array_equal(decoder.mask(len(mask), 50 if len(mask) > 50 else 1), mask)
    for values in codes:
        assert np.array_equal(decoder.symbols(edges[np.newaxis], len(values)), values)
    decoder.end()


def test_weights_are_found_without_a_format() -> None:
    """In a file of unknown structure two layers with codebooks of their own are two stretches, told by their values."""
    layers = [shared_weights(20_000, density=0.1, seed=seed).tobytes() for seed in (1, 2)]
    file = b"head" * 100 + layers[0] + layers[1] + bytes(range(256)) * 8
    found = find_stretches("model.pte", file)
    assert [s.width for s in found[:2]] == [4, 4]
    cut = found[0].offset + found[0].length
    assert abs(cut - 400 - len(layers[0])) <= 4 * 64 * 4  # within the windows that are looked at together
    packed = pack_bytes({"model.pte": file})
    # each layer: 20,000 · (H(0.1) + 0.1 · 4 bits) / 8 = 2,172 bytes; a codebook for both would be 0.1 · 1 bit more
    assert len(packed) < 2 * 2172 * 1.06 + 1000
    assert expand(packed, []) == {"model.pte": file}


def test_a_new_version_of_shared_weights_is_its_codebook() -> None:
    """Centroids that moved, zeros that stayed: a difference of 100,000 weights takes less than a kilobyte."""
    weights = shared_weights(100_000, density=0.1, codes=32).reshape(250, 400)
    old, new = (save({"w": value}) for value in (weights, weights * np.float32(1.1)))
    packed = pack_bytes({"w.safetensors": new}, {"w.safetensors": old})
    assert len(packed) < 1000 < len(pack_bytes({"w.safetensors": new}))
    assert expand(packed, [old]) == {"w.safetensors": new}


def test_structure_that_moved_is_copied() -> None:
    """A header that grew by a few bytes: what follows is found in the base all the same."""
    structure = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes()
    old, new = b"name: a\n" + structure, b"name: another\n" + structure
    packed = pack_bytes({"m.bin": new}, {"m.bin": old})
    assert len(packed) < 250
    assert expand(packed, [old]) == {"m.bin": new}


def test_the_unpacker_runs_on_a_board(tmp_path: Path) -> None:
    """Alone, without edgekit: Python 3.9's syntax, the standard library and numpy, exit statuses and one line."""
    source = unpacker_source()
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= {*sys.stdlib_module_names, "numpy"}
    script = tmp_path / "unpack.py"
    script.write_text(source)
    (tmp_path / "m.ekpack").write_bytes(PACK)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.bin").write_bytes(BASES["m.safetensors"])
    command = [sys.executable, "-I", str(script), str(tmp_path / "m.ekpack"), "-o", str(tmp_path / "out")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, (tmp_path / "out").exists()) == (6, False)
    assert "was not given" in refused.stderr
    done = subprocess.run([*command, "--base", str(tmp_path / "old")], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(FILES)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES


def test_what_cannot_be_packed_says_why(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        pack(tmp_path / "missing", tmp_path / "p.ekpack")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="neither"):
        pack(tmp_path / "empty", tmp_path / "p.ekpack")
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(ArtifactError, match="not a model format"):
        pack(tmp_path / "model.pt", tmp_path / "p.ekpack")
    (tmp_path / "m.onnx").write_bytes(bytes(5000))
    with pytest.raises(UserError, match="more than the 4096"):
        pack(tmp_path / "m.onnx", tmp_path / "p.ekpack", max_bytes=4096)
    with pytest.raises(ArtifactError, match="not a pack"):
        unpack(tmp_path / "m.onnx", tmp_path / "out")
    assert not (tmp_path / "p.ekpack").exists()
    assert not (tmp_path / "out").exists()
