"""Distillation of a small student on Fashion-MNIST: how much of the gap to the teacher it closes, and where none.

One teacher (the demo's SmallResNet, 118 k parameters, 8.3 MMAC) taught by all 60,000 labels. Students are three strided
convolutions and a linear layer (72 k parameters), as static int8 TFLite files. Every arm of a comparison makes
the same number of steps on batches of the same size, with the same optimizer and schedule. Learning rate, temperature
and width were chosen with seed 7 on training images that no student sees.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import edgekit
from compression_bench._shared import moved
from edgekit.artifact import Format
from edgekit.compress.options import TrainOptions
from edgekit.converters.host_runtimes import load_runtime
from edgekit.demo.models import SmallResNet
from edgekit.demo.workload import workload
from edgekit.distill import DistillOptions, WeightDistillOptions, distill, weight_distill
from edgekit.train import CrossEntropy, collect_outputs, evaluate_outputs, fit, load_weights, top1_accuracy
from edgekit.training.batches import generators_kept, seed_generators
from edgekit.training.weights import safetensors_function

if TYPE_CHECKING:
    from bench_compression import Settings

TITLE = "Distillation"
Raw = dict[str, Any]
SEEDS = (0, 1, 2)
IMAGES, COPIES, FEW = 6_000, 8, 500
"""Images the students see; how often, as they are and shifted and flipped; how many have labels in the second part."""
SAMPLES = 384_000
"""Samples an arm sees, repetitions counted."""
QUIET: dict[str, Any] = {"threads": 1, "logger": "none"}
TEACHER = TrainOptions(epochs=6, batch_size=128, **QUIET)
STUDENT: dict[str, Any] = {"batch_size": 125, "learning_rate": 1e-2, **QUIET}
TAUGHT: dict[str, Any] = {"temperature": 2.0, "weight": 0.9}
WIDTH = 28
"""Channels of a student's first layer; the next have twice and four times as many."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of a comparison."""

    is_distilled: bool
    images: int = IMAGES
    """With labels."""
    has_unlabelled: bool = False
    width: int = WIDTH
    samples: int = SAMPLES
    int8: bool = False


ARMS = {
    "alone": Arm(is_distilled=False, int8=True),
    "distilled": Arm(is_distilled=True, int8=True),
    "few alone": Arm(is_distilled=False, images=FEW, samples=SAMPLES // 2, int8=True),
    "few distilled": Arm(is_distilled=True, images=FEW, samples=SAMPLES // 2, int8=True),
    "few distilled unlabelled": Arm(
        is_distilled=True, images=FEW, has_unlabelled=True, samples=SAMPLES // 2, int8=True
    ),
    "short alone": Arm(is_distilled=False, samples=SAMPLES // 8),
    "short distilled": Arm(is_distilled=True, samples=SAMPLES // 8),
    "tiny alone": Arm(is_distilled=False, width=1),
    "tiny distilled": Arm(is_distilled=True, width=1),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Pool:
    """What the students learn from: `IMAGES` images, COPIES times, and the teacher's outputs on them."""

    images: Tensor
    labels: Tensor
    outputs: np.ndarray[Any, np.dtype[np.float32]]

    def rows(self, images: int) -> Tensor:
        """The rows of the first so many images, all copies."""
        return torch.cat([torch.arange(images) + copy * IMAGES for copy in range(COPIES)])


def cells(settings: Settings) -> Iterator[tuple[str, Callable[[], Raw]]]:
    """The teacher, the students of every comparison, seed by seed, and other ways to distil."""
    yield "teacher", functools.partial(_teacher_cell, settings)
    for name, arm in ARMS.items():
        for seed in SEEDS:
            yield f"{name} seed {seed}", functools.partial(_arm, settings, name, arm, seed)
    for name, arm in ARMS.items():
        for seed in SEEDS if arm.int8 else ():
            yield f"{name} int8 seed {seed}", functools.partial(_as_file, settings, name, arm, seed)
    for name in OTHERS:
        yield f"other {name}", functools.partial(_other, settings, name)


# ---- teacher and data -------------------------------------------------------------------------------------------


@functools.cache
def _data() -> Any:
    return workload("fashion-mnist")


def _shifted(batch: Tensor) -> Tensor:
    """The batch moved by up to two pixels, one move for all of it, and half of its images flipped."""
    shifted = moved(batch, 2, value=float(batch.min()))
    flipped = torch.rand(len(batch)) < 0.5
    shifted[flipped] = shifted[flipped].flip(-1)
    return shifted


def _teacher(settings: Settings) -> nn.Module:
    """The teacher, trained once; its weights stay in the cache."""
    path = settings.cache / "distillation-teacher.safetensors"
    with generators_kept():
        seed_generators(0)
        module = SmallResNet()
    if not path.is_file():
        work = settings.cache / "distillation-teacher"
        fit(module, CrossEntropy(), _data().train, TEACHER, seed=0, work_dir=work, augment=_shifted)
        safetensors_function("save_model")(module, str(path))
    load_weights(module, path)
    return module.eval()


def _teacher_cell(settings: Settings) -> Raw:
    return {"accuracy": top1_accuracy(*evaluate_outputs(_teacher(settings), _data().evaluation)), "images": 60_000}


@functools.cache
def _pool(settings: Settings) -> Pool:
    images, labels = (column[:IMAGES] for column in _data().train.tensors)
    with generators_kept():
        seed_generators(1)
        copies = [images, *(torch.cat([_shifted(part) for part in images.split(60)]) for _ in range(COPIES - 1))]
    pool, path = torch.cat(copies), settings.cache / f"distillation-outputs-{IMAGES}x{COPIES}.npy"
    if not path.is_file():
        np.save(path, collect_outputs(_teacher(settings), TensorDataset(pool)))
    return Pool(pool, labels.repeat(COPIES), np.load(path))


# ---- arms -------------------------------------------------------------------------------------------------------


def _student(width: int, seed: int) -> nn.Module:
    with generators_kept():
        seed_generators(1000 + seed)
        return _network(width)


def _network(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for read, written, kernel in ((1, width, 5), (width, 2 * width, 3), (2 * width, 4 * width, 3)):
        layers += [nn.Conv2d(read, written, kernel, 2, kernel // 2, bias=False), nn.BatchNorm2d(written), nn.ReLU()]
    names = [f"{kind}{index}" for index in (1, 2, 3) for kind in ("conv", "norm", "relu")]
    head = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(4 * width, 10)}
    return nn.Sequential(OrderedDict([*zip(names, layers, strict=True), *head.items()]))


def _arm(settings: Settings, name: str, arm: Arm, seed: int) -> Raw:
    pool = _pool(settings)
    rows = pool.rows(arm.images)
    data, student = TensorDataset(pool.images[rows], pool.labels[rows]), _student(arm.width, seed)
    began = time.process_time()
    if arm.is_distilled:
        module = _taught(student, data, rows, pool, arm, seed)
    else:
        options = TrainOptions(epochs=arm.samples // len(data), **STUDENT)
        with tempfile.TemporaryDirectory() as work:
            module = fit(student, CrossEntropy(), data, options, seed=seed, work_dir=Path(work)).module
    found = _measured(module, began)
    safetensors_function("save_model")(module, str(_place(settings, name, seed)))
    return found


def _taught(student: nn.Module, data: TensorDataset, rows: Tensor, pool: Pool, arm: Arm, seed: int) -> nn.Module:
    extra, outputs = None, pool.outputs[rows.numpy()]
    if arm.has_unlabelled:
        everything = torch.arange(len(pool.images))
        others = everything[~torch.isin(everything, rows)]
        extra = TensorDataset(pool.images[others])
        outputs = np.concatenate([outputs, pool.outputs[others.numpy()]])
    options = DistillOptions(epochs=arm.samples // len(outputs), **TAUGHT, **STUDENT)
    return distill(student, outputs, data, options, unlabelled=extra, seed=seed)


def _place(settings: Settings, name: str, seed: int) -> Path:
    return settings.cache / f"distillation-{name.replace(' ', '-')}-{seed}.safetensors"


OTHERS: dict[str, dict[str, Any]] = {
    "responses alone": {},
    "hints": {"features": {"pairs": {"relu2": "block2"}, "weight": 1.0}},
    "attention": {"attention": {"pairs": {"relu1": "block1", "relu2": "block2"}}},
    "relations": {"relations": {"pairs": {"pool": "pool"}, "distance": 1.0, "angle": 2.0}},
    "weights": {},
}
"""Terms beside the responses, on an eighth of the samples, for the teacher has to run."""


def _other(settings: Settings, name: str) -> Raw:
    pool, seed, epochs = _pool(settings), 0, SAMPLES // 8 // IMAGES
    data = TensorDataset(pool.images[:IMAGES], pool.labels[:IMAGES])
    shared: dict[str, Any] = {**TAUGHT, **STUDENT, **OTHERS[name]}
    student, teacher = _student(WIDTH, seed), _teacher(settings)
    began = time.process_time()
    if name == "weights":
        halves = WeightDistillOptions(epochs=epochs - epochs // 2, generator_epochs=epochs // 2, **shared)
        return _measured(weight_distill(student, teacher, data, halves, seed=seed), began)
    return _measured(distill(student, teacher, data, DistillOptions(epochs=epochs, **shared), seed=seed), began)


def _measured(module: nn.Module, began: float) -> Raw:
    return {
        "cpu_seconds": round(time.process_time() - began, 1),
        "parameters": sum(p.numel() for p in module.parameters()),
        "accuracy": top1_accuracy(*evaluate_outputs(module, _data().evaluation)),
    }


def _as_file(settings: Settings, name: str, arm: Arm, seed: int) -> Raw:
    """Bytes and accuracy of the static int8 TFLite file, in its runtime, on all 10,000 test images."""
    train, test = _data().train.tensors[0], _data().evaluation.tensors
    module = _network(arm.width)
    load_weights(module, _place(settings, name, seed))
    with tempfile.TemporaryDirectory() as folder:
        (artifact,) = edgekit.convert(
            module.eval(), (torch.zeros(1, 1, 28, 28),), targets=["tflite"], scheme="static_w8a8",
            calibration=[(train[i : i + 1],) for i in range(IMAGES, IMAGES + 100)],
            verification=[(test[0][i : i + 1],) for i in range(32)], output_dir=Path(folder),
        )  # fmt: skip
        run, images = load_runtime(artifact.path, Format.TFLITE), test[0].numpy()
        answers = np.array([run([images[i : i + 1]])[0].argmax() for i in range(len(images))])
        return {
            "tflite_bytes": artifact.path.stat().st_size,
            "accuracy": float(np.mean(answers == test[1].numpy())),
        }


# ---- the table --------------------------------------------------------------------------------------------------


def table(measured: Mapping[str, Raw]) -> list[str]:
    """What each comparison closed of the gap to the teacher, against its goal."""
    if "teacher" not in measured:
        return ["Not measured."]
    teacher = measured["teacher"]["accuracy"]
    lines = [
        f"Teacher: {100 * teacher:.2f} % (fp32, 118 k parameters, 60,000 labels). Students: {IMAGES:,} of those "
        f"images, {COPIES} times each, but for the first time shifted and flipped; {SAMPLES:,} samples an arm "
        f"({SAMPLES // 2:,} with few labels) in batches of 125, T={TAUGHT['temperature']:g}; mean and spread "
        "(seeds); 10,000 test images. Gap closed: (distilled − alone) / (teacher − alone).\n",
        "| what | goal | alone | distilled | gap closed | verdict |",
        "|---|---|---|---|---|---|",
    ]
    headline = _row(measured, teacher, "alone", "distilled")
    few = _row(measured, teacher, "few alone", "few distilled")
    more = _row(measured, teacher, "few alone", "few distilled unlabelled")
    size = max((cell["tflite_bytes"] for cell in measured.values() if "tflite_bytes" in cell), default=None)
    if headline:
        fits = headline.closed >= 0.3 and size is not None and size <= 100_000
        told = f"small student{'' if size is None else f', {size / 1000:.1f} kB TFLite'}"
        lines.append(headline.told(told, "30 %, at most 100 kB", fits))
    if few and more:
        lines.append(few.told(f"the same with {FEW} labels, distilled on those images", "", None))
        gained, fits = f"20 points more than {100 * few.closed:.0f} %", more.closed - few.closed >= 0.2
        lines.append(more.told(f"and on {IMAGES - FEW:,} images without labels", gained, fits))
    for name, what in (
        ("short", "negative: under-trained, an eighth of the samples"),
        ("tiny", f"negative: far too small, 1, 2 and 4 channels for {WIDTH}, {2 * WIDTH} and {4 * WIDTH}"),
    ):
        row = _row(measured, teacher, f"{name} alone", f"{name} distilled")
        if row:
            lines.append(row.told(what, "told, not promised", None))
    return lines + _others(measured, teacher)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    form: str
    """`int8` where every file of both arms was made, else `fp32`."""
    alone: list[float]
    distilled: list[float]
    closed: float

    def told(self, what: str, goal: str, fits: bool | None) -> str:
        verdict = "" if fits is None else "reached" if fits else "**missed**"
        arms = " | ".join(_spread(values) for values in (self.alone, self.distilled))
        return f"| {what} ({self.form}) | {goal} | {arms} | {100 * self.closed:.0f} % | {verdict} |"


def _row(measured: Mapping[str, Raw], teacher: float, alone: str, distilled: str) -> _Row | None:
    for form in ("int8 seed", "seed"):
        seeds = [s for s in SEEDS if all(f"{arm} {form} {s}" in measured for arm in (alone, distilled))]
        if not seeds or (form == "int8 seed" and len(seeds) < len(SEEDS)):
            continue
        first, last = ([measured[f"{arm} {form} {s}"]["accuracy"] for s in seeds] for arm in (alone, distilled))
        gap = teacher - statistics.mean(first)
        closed = (statistics.mean(last) - statistics.mean(first)) / gap
        return _Row(form="int8" if form == "int8 seed" else "fp32", alone=first, distilled=last, closed=closed)
    return None


def _spread(values: list[float]) -> str:
    points = [100 * value for value in values]
    deviation = f" ± {statistics.stdev(points):.2f}" if len(points) > 1 else ""
    return f"{statistics.mean(points):.2f}{deviation} % ({len(points)})"


def _others(measured: Mapping[str, Raw], teacher: float) -> list[str]:
    names = [name for name in OTHERS if f"other {name}" in measured]
    if not names:
        return []
    told = ", ".join(f"{name} {100 * measured[f'other {name}']['accuracy']:.2f} %" for name in names)
    return [
        f"\nOther terms beside the responses, one seed, fp32, {SAMPLES // 8:,} samples and no copies, so not to be "
        f"compared with the rows above: {told}."
    ]
