"""`pack` and `unpack`: artifacts, model files and students to one small file, and back.

>>> report = pack(Path("artifacts/student.fp32.tflite"), Path("student.ekpack"))
>>> report.ratio
21.4
>>> unpack(Path("student.ekpack"), Path("expanded"))
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.artifact import PASSPORT_NAME, Artifact, Format
from edgekit.errors import ArtifactError, HostError, UserError
from edgekit.packing.writing import pack_bytes
from edgekit.runtimes.device_scripts import unpack as reading
from edgekit.schema import write_atomically

__all__ = ["PACK_SUFFIX", "PackReport", "PackedFile", "pack", "unpack", "unpacker_source"]

PACK_SUFFIX = ".ekpack"
WEIGHTS_NAME, STUDENT_NAME = "weights.safetensors", "student.json"
"""As `compress.storage` names them; that module needs torch, and unpacking does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile:
    """One file of a pack."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport:
    """A pack that was written, and expanded again to the same bytes."""

    path: Path
    size_bytes: int
    files: tuple[PackedFile, ...]
    base: Path | None = None

    @property
    def original_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def ratio(self) -> float:
        """How many times smaller the pack is than its files."""
        return self.original_bytes / self.size_bytes


def pack(
    source: Path,
    output: Path,
    *,
    base: Path | None = None,
    with_passport: bool = True,
    use_lzma: bool = True,
    max_bytes: int = reading.MAX_BYTES,
) -> PackReport:
    """`source` (an artifact's folder, a model file, or a student's folder) as the pack `output`.

    A model file goes with its passport and what else belongs to its artifact, where there is one and `with_passport` is
    not off. With `base`, an older version of the same (or its pack), only what is different is packed, and it is needed
    to unpack. The pack is expanded before it is written, so it is known to give the very bytes back.
    Raises ArtifactError or UserError for a source that is none of these, HostError when it cannot be written.
    """
    files = _source_files(source, with_passport=with_passport)
    total = sum(map(len, files.values()))
    if total > max_bytes:
        raise UserError(f"{source}: {total} bytes, more than the {max_bytes} a pack may hold")
    bases = {} if base is None else _base_files(base, with_passport=with_passport)
    try:
        data = pack_bytes(files, bases, use_lzma=use_lzma)
        if reading.expand(data, list(bases.values()), max_bytes) != files:
            raise RuntimeError("a pack did not give its files back; nothing was written")
    except reading.PackError as e:
        raise UserError(f"{source}: {e}") from e
    _write(output, data)
    contents, _ = reading.split(data, max_bytes)
    return PackReport(path=output, size_bytes=len(data), files=_listed(contents), base=base)


def unpack(
    packed: Path,
    output: Path,
    *,
    bases: Sequence[Path] = (),
    max_bytes: int = reading.MAX_BYTES,
    force: bool = False,
) -> tuple[PackedFile, ...]:
    """Expand the pack `packed` into the folder `output`; every file has the sha256 that was packed, or none is written.

    `bases` are files or folders of the older version that a difference was made from, or its whole pack. Raises
    ArtifactError for a pack that is broken or wants another base, UserError for a file that is there and differs
    (unless `force`), HostError when one cannot be written.
    """
    data = _read(packed)
    given = [content for path in bases for content in _given(path)]
    try:
        files = reading.expand(data, given, max_bytes)
    except reading.PackError as e:
        hint = "give that version with --base" if "was not given" in str(e) else "copy it again, or pack again"
        raise ArtifactError(f"{packed}: {e}", hint=hint) from e
    try:
        reading.write_files(files, str(output), force)
    except FileExistsError as e:
        raise UserError(str(e), hint="unpack into another folder, or use --force") from e
    except OSError as e:
        raise HostError(f"{output}: cannot be written: {e}") from e
    contents, _ = reading.split(data, max_bytes)
    return _listed(contents)


def unpacker_source() -> str:
    """The unpacker, a Python file to copy to a board: `python3 unpack.py PACK -o DIR [--base PATH]`."""
    return Path(reading.__file__).read_text(encoding="utf-8")


def _listed(contents: reading.Contents) -> tuple[PackedFile, ...]:
    return tuple(PackedFile(name=f.name, size_bytes=f.size, sha256=f.sha256.hex()) for f in contents.files)


def _source_files(source: Path, *, with_passport: bool) -> dict[str, bytes]:
    """Name to content of what belongs to a source."""
    if source.is_dir() and (source / STUDENT_NAME).is_file():
        return _contents(source, [WEIGHTS_NAME, STUDENT_NAME] if with_passport else [WEIGHTS_NAME])
    if source.is_file() and source.suffix == ".safetensors":
        return _contents(source.parent, [source.name])
    if not source.exists():
        raise ArtifactError(f"{source}: no such file or folder", hint="give an artifact, a model file or a student")
    folder = source if source.is_dir() else source.parent
    if (folder / PASSPORT_NAME).is_file():
        passport = Artifact.open(source).passport
        extra = [file.path for file in passport.extra_files]
        return _contents(folder, [passport.file, *extra, *([PASSPORT_NAME] if with_passport else [])])
    if source.is_dir():
        raise ArtifactError(
            f"{source}: holds neither {PASSPORT_NAME} nor {STUDENT_NAME}",
            hint="give the folder of an artifact or of a student, or a model file",
        )
    Format.of(source)
    return _contents(folder, [source.name])


def _contents(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    return {name: _read(folder / name) for name in names}


def _given(path: Path) -> list[bytes]:
    """What a base to unpack with holds; which files are needed is told by their sha256."""
    if path.suffix == PACK_SUFFIX and path.is_file():
        return list(_base_files(path, with_passport=True).values())
    try:
        return reading.read_bases(str(path))
    except OSError as e:
        raise ArtifactError(f"{path}: cannot be read: {os.strerror(e.errno) if e.errno else e}") from e


def _base_files(base: Path, *, with_passport: bool) -> dict[str, bytes]:
    """The files of an older version: of a folder, a file with what belongs to it, or a pack of its own."""
    if base.is_file() and base.suffix == PACK_SUFFIX:
        try:
            return reading.expand(_read(base), [])
        except reading.PackError as e:
            raise ArtifactError(
                f"{base}: {e}", hint="as a base give a whole pack, or the files it was expanded to"
            ) from e
    return _source_files(base, with_passport=with_passport)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ArtifactError(f"{path}: cannot be read: {os.strerror(e.errno) if e.errno else e}") from e


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as e:
        raise HostError(f"{path}: the pack cannot be written: {e}") from e
