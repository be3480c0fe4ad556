"""Structured pruning and low rank: what is left of cost and accuracy, on the networks and goals of issue 4.

    python scripts/bench_compression.py --parts structured --data ../shared/data --models ../shared/models

Trained networks stay in the cache (`structured/` below it), each with what its training took, so cells that only
measure can be measured again. `python scripts/compression_bench/structured.py NAME --data … --models …` trains one
network alone, which lets several be trained at a time.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bench_networks
import host_timing
import numpy as np
import torch
from torch import nn

import edgekit
from compression_bench._shared import verdict
from compression_bench._structured_networks import cifar_split, dataset, jittered, pretrained_resnet56, shifted
from edgekit.compress.cost import count_macs, count_parameters
from edgekit.compress.effects import TeacherReference
from edgekit.compress.latency import LatencyTable
from edgekit.compress.options import TrainOptions
from edgekit.compress.prune import prune
from edgekit.compress.prune_options import LowRankOptions, PruneOptions
from edgekit.compress.steps import first_student, run_step
from edgekit.compress.storage import STUDENT_NAME, load_student, save_student
from edgekit.compress.student import Student
from edgekit.converters.host_runtimes import load_runtime
from edgekit.distill.options import DistillOptions
from edgekit.recipe import Step
from edgekit.train import evaluate_outputs, top1_accuracy
from edgekit.workload import Workload

if TYPE_CHECKING:
    from bench_compression import Settings

TITLE = "Structured pruning and low rank"
Raw = dict[str, Any]
SEEDS = (0, 1, 2)
EXAMPLE = (torch.zeros(1, 3, 32, 32),)
QUIET: dict[str, Any] = {"threads": 1, "logger": "none", "accelerator": "cpu", "precision": "bf16"}

RECOVERY = DistillOptions(epochs=8, batch_size=64, learning_rate=2e-3, temperature=4.0, weight=0.9, **QUIET)
"""After pruning a network of MNIST-5k: its 4,000 images, shifted. Fixed before the first run of any seed."""
TEACHER56 = TrainOptions(epochs=3, learning_rate=1e-3, **{**QUIET, "precision": "fp32"})
TEACHER56_IMAGES, ARM56_IMAGES = 20_000, 20_000
ARM56 = {"epochs": 4, "batch_size": 128, "learning_rate": 2e-3}
"""Each arm of ResNet-56: the same images, epochs, rate, schedule and loss."""
TAUGHT56 = {"temperature": 4.0, "weight": 0.9}
KEPT56 = {"resnet56 half": 0.5, "resnet56 2.5x": 0.4}
UNPRUNED56 = ("resnet56 unpruned", "resnet56 unpruned, labels")
PRUNING56: dict[str, Any] = {"importance": "taylor", "ranking": "global", "round_to": 2, "samples": 1024}

LABELS = TrainOptions(**{name: getattr(RECOVERY, name) for name in TrainOptions.model_fields})
SMALL: dict[str, tuple[str, tuple[Step, ...]]] = {
    "resnet18 pruned": ("resnet18", (Step(prune=PruneOptions(macs_ratio=0.37)), Step(distill=RECOVERY))),
    "resnet18 chain": ("resnet18", (Step(prune=PruneOptions(macs_ratio=0.175)), Step(distill=RECOVERY))),
    "mobilenet_v2 pruned": ("mobilenet_v2", (Step(prune=PruneOptions(macs_ratio=0.34)), Step(distill=RECOVERY))),
    "resnet18 pruned, labels": ("resnet18", (Step(prune=PruneOptions(macs_ratio=0.37)), Step(finetune=LABELS))),
    "resnet18 unpruned, trained on": ("resnet18", (Step(distill=RECOVERY),)),
    "mobilenet_v2 unpruned, trained on": ("mobilenet_v2", (Step(distill=RECOVERY),)),
    "resnet18 low rank": ("resnet18", (Step(low_rank=LowRankOptions(parameters_ratio=0.3)), Step(distill=RECOVERY))),
}
"""Network and steps; MNIST-5k."""
COMPARISONS = tuple(SMALL)[3:]
"""One seed each: what the goals' rows are read beside."""


def cells(settings: Settings) -> Iterator[tuple[str, Callable[[], Raw]]]:
    """The small networks, then ResNet-56, which needs --data and --models, then what is only compared with."""
    for name, (network, _) in SMALL.items():
        for seed in () if name in COMPARISONS else SEEDS:
            measure = _chain if name == "resnet18 chain" else _measured
            yield f"{name} seed {seed}", functools.partial(measure, settings, name, network, seed)
    if settings.data is not None and settings.models is not None:
        for name in ("resnet56 teacher", *KEPT56, *UNPRUNED56):
            yield name, functools.partial(_judged56, settings, name)
    for name in COMPARISONS:
        yield f"{name} seed 0", functools.partial(_measured, settings, name, SMALL[name][0], 0)
    yield "resnet18 latency table", functools.partial(_table_judged, settings)


# --- networks, trained once ---


def _kept(settings: Settings, name: str, fresh: nn.Module, build: Callable[[Path], Student]) -> Student:
    """The student `build(work_dir)` makes, or the one it made before."""
    folder = settings.cache / "structured" / name.replace(" ", "-").replace(",", "")
    if not (folder / STUDENT_NAME).is_file():
        save_student(build(folder / "work"), folder)
    return load_student(folder, fresh, EXAMPLE)


def _training(student: Student) -> list[Raw]:
    """What was done to it, and the wall time each step took."""
    return [{"did": step.summary, "seconds": step.seconds} for step in student.lineage]


@functools.cache
def _mnist() -> bench_networks.Images:
    return bench_networks.load_images(None)


def _small_workload(network: str) -> Workload:
    images = _mnist()
    return Workload(
        name=network,
        model=bench_networks.trained(network, images),
        example_inputs=EXAMPLE,
        train=dataset(images.train, images.train_labels),
        evaluation=dataset(images.test[:1000], images.test_labels[:1000]),
        augment=shifted,
    )


def _stepped(workload: Workload, steps: tuple[Step, ...], work_dir: Path, seed: int = 0) -> Student:
    teacher = workload.build_model().eval()
    student, reference = first_student(teacher), TeacherReference(teacher, workload)
    for number, step in enumerate(steps):
        finished = work_dir / f"{number}-{step.kind}"
        if (finished / STUDENT_NAME).is_file():
            student = load_student(finished, teacher, EXAMPLE)
            continue
        student = run_step(student, reference, step, workload, seed=seed, work_dir=work_dir / str(number))
        save_student(student, finished)
    return student


def small(settings: Settings, name: str, seed: int) -> tuple[Workload, Student]:
    """The workload and the student of one of SMALL."""
    network, steps = SMALL[name]
    workload = _small_workload(network)

    def made(work: Path) -> Student:
        return _stepped(workload, steps, work, seed)

    return workload, _kept(settings, f"{name} {seed}", workload.build_model(), made)


def _cifar(settings: Settings, teacher: nn.Module, train: int) -> Workload:
    assert settings.data is not None  # noqa: S101 - cells() has looked
    split = cifar_split(settings.data, train)
    return Workload(
        name="resnet56", model=teacher, example_inputs=EXAMPLE, train=split.train, evaluation=split.test,
        augment=jittered,
    )  # fmt: skip


def arm56(settings: Settings, name: str) -> Student:
    """ResNet-56 as pretrained and fine-tuned on JPEG images (the teacher), and the arms that start from it."""
    assert settings.models is not None  # noqa: S101 - cells() has looked
    fresh = pretrained_resnet56(settings.models)

    def teacher_made(work: Path) -> Student:
        return _stepped(_cifar(settings, fresh, TEACHER56_IMAGES), (Step(finetune=TEACHER56),), work)

    teacher = _kept(settings, "resnet56 teacher", fresh, teacher_made)
    if name == "resnet56 teacher":
        return teacher
    steps: tuple[Step, ...] = (Step(distill=DistillOptions(**ARM56, **TAUGHT56, **QUIET)),)
    if name == "resnet56 unpruned, labels":
        steps = (Step(finetune=TrainOptions(**ARM56, **QUIET)),)
    elif name in KEPT56:
        steps = (Step(prune=PruneOptions(macs_ratio=KEPT56[name], **PRUNING56)), *steps)

    def arm_made(work: Path) -> Student:
        module = teacher.module.to(memory_format=torch.channels_last)
        return _stepped(_cifar(settings, module, ARM56_IMAGES), steps, work)

    return _kept(settings, name, fresh, arm_made)


# --- what cells measure ---


def _judged56(settings: Settings, name: str) -> Raw:
    student = arm56(settings, name)
    after = student.lineage[-1].after
    assert settings.models is not None  # noqa: S101 - cells() has looked
    whole = count_macs(pretrained_resnet56(settings.models), EXAMPLE)
    return {
        "accuracy": after.accuracy,
        "before_training": student.lineage[0].after.accuracy,
        "macs": after.macs,
        "macs_times": whole / (after.macs or 1),
        "parameters": after.parameters,
        "training": _training(student),
    }


def _measured(settings: Settings, name: str, network: str, seed: int) -> Raw:
    """Cost and accuracy of the student beside its teacher, and both files' latency in turns."""
    workload, student = small(settings, name, seed)
    teacher = workload.build_model().eval()
    found = _compared(teacher, student.module, workload)
    with tempfile.TemporaryDirectory() as folder:
        for target in ("tflite", "onnx"):
            files = [_file(m, target, "fp32", Path(folder) / who) for who, m in (("t", teacher), ("s", student.module))]
            found[target] = _in_turns(files[0], files[1])
    return {**found, "training": _training(student)}


def _chain(settings: Settings, name: str, network: str, seed: int) -> Raw:
    """fp32 teacher to pruned, distilled, int8 student, as TFLite files on this host."""
    workload, student = small(settings, name, seed)
    teacher = workload.build_model().eval()
    found = _compared(teacher, student.module, workload)
    with tempfile.TemporaryDirectory() as folder:
        first = _file(teacher, "tflite", "fp32", Path(folder) / "t")
        last = _file(student.module, "tflite", "static_w8a8", Path(folder) / "s")
        found["tflite"] = _in_turns(first, last)
        found["sizes"] = [first.stat().st_size, last.stat().st_size]
        found["file_accuracy"] = [_file_accuracy(first), _file_accuracy(last)]
    return {**found, "training": _training(student)}


def _table_judged(settings: Settings) -> Raw:
    """What the latency table foresees of pruned ResNet-18s beside what ONNX Runtime takes."""
    teacher = bench_networks.trained("resnet18", _mnist())
    table = LatencyTable.measure(teacher, EXAMPLE)
    whole = table.total(teacher, EXAMPLE)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        first = _file(teacher, "onnx", "fp32", Path(folder) / "t")
        for ratio in (0.6, 0.4, 0.25):
            student = prune(teacher, EXAMPLE, PruneOptions(latency_ratio=ratio), table=table)
            file = _file(student.module, "onnx", "fp32", Path(folder) / f"{ratio}")
            timing = _in_turns(first, file)
            rows.append({
                "asked": ratio,
                "foreseen": table.total(student.module, EXAMPLE) / whole,
                "macs": count_macs(student.module, EXAMPLE) / count_macs(teacher, EXAMPLE),
                "measured": 1 / timing["min_times"],
                "measured_median": 1 / timing["median_times"],
            })  # fmt: skip
    return {"rows": rows, "points": sum(len(points) for points in table.families.values())}


def _compared(teacher: nn.Module, student: nn.Module, workload: Workload) -> Raw:
    def accuracy(module: nn.Module) -> float:
        return top1_accuracy(*evaluate_outputs(module, workload.evaluation))

    return {
        "macs_times": count_macs(teacher, EXAMPLE) / count_macs(student, EXAMPLE),
        "parameters_times": count_parameters(teacher) / count_parameters(student),
        "accuracy": [accuracy(teacher), accuracy(student)],
        "images": len(workload.evaluation),
    }


def _file(module: nn.Module, target: str, scheme: str, folder: Path) -> Path:
    """The module as one model file; contiguous memory, as a user's model is."""
    images = _mnist()
    calibration = images.samples(0, 64) if scheme != "fp32" else ()
    (artifact,) = edgekit.convert(
        module.to(memory_format=torch.contiguous_format), EXAMPLE, targets=[target], scheme=scheme,
        calibration=calibration, verification=images.samples(0, 32, held_out=True), output_dir=folder,
        io_dtype="float32",
    )  # fmt: skip
    return artifact.path


def _in_turns(first: Path, second: Path) -> Raw:
    sample = (_mnist().test[:1],)
    times = host_timing.measure([first, second], sample)
    a, b = times[str(first)], times[str(second)]
    _, _, is_busy = host_timing.disagreement(a, b)
    return {
        "median_times": statistics.median(a) / statistics.median(b),
        "min_times": min(a) / min(b),
        "min_ms": [min(a) / 1e6, min(b) / 1e6],
        "too_busy": is_busy,
    }


def _file_accuracy(path: Path) -> float:
    """Top-1 of a file over the evaluation images, in its runtime."""
    from edgekit.artifact import Format

    images = _mnist()
    run = load_runtime(path, Format.TFLITE)
    answers = [run([images.test[index : index + 1]])[0].argmax() for index in range(1000)]
    return float((np.asarray(answers) == images.test_labels[:1000]).mean())


# --- the table ---


def table(cells: Mapping[str, Raw]) -> list[str]:
    """Goals of issue 4 and what was reached."""
    lines = ["| network | goal | reached, mean of seeds | verdict |", "|---|---|---|---|"]
    for name, goal, drop in (
        ("resnet18 pruned", (2.5, 2.4), 0.5),
        ("mobilenet_v2 pruned", (None, 2.2), 1.0),
        *((name, None, None) for name in COMPARISONS),
    ):
        found = _seeds(name, cells)
        if found:
            lines.append(_small_row(name, found, goal, drop))
    if chains := _seeds("resnet18 chain", cells):
        lines.append(_chain_row(chains))
    lines += [_row56(name, cells) for name in KEPT56 if name in cells and any(n in cells for n in UNPRUNED56)]
    lines += ["", _setting(cells)]
    if "resnet18 latency table" in cells:
        lines += ["", *_table_lines(cells["resnet18 latency table"])]
    return lines


def _seeds(name: str, cells: Mapping[str, Raw]) -> list[Raw]:
    return [cells[key] for key in (f"{name} seed {seed}" for seed in SEEDS) if key in cells]


def _points(found: list[Raw], key: str) -> list[float]:
    return [100 * (cell[key][1] - cell[key][0]) for cell in found]


def _change(found: list[Raw], key: str) -> str:
    """`97.1 → 97.0 % (-0.10: -0.3, +0.1, -0.1)`."""
    points = _points(found, key)
    first, last = (100 * statistics.fmean(cell[key][side] for cell in found) for side in (0, 1))
    each = ": " + ", ".join(f"{p:+.1f}" for p in points) if len(points) > 1 else ""
    return f"{first:.1f} → {last:.1f} % ({statistics.fmean(points):+.2f}{each})"


def _small_row(name: str, found: list[Raw], goal: tuple[float | None, float] | None, drop: float | None) -> str:
    quickest = {t: statistics.fmean(cell[t]["median_times"] for cell in found) for t in ("tflite", "onnx")}
    busy = sum(cell[t]["too_busy"] for cell in found for t in quickest)
    noisy = f" ({busy} of {2 * len(found)} pairs taken on a busy machine)" if busy else ""
    macs_times, smaller = (statistics.fmean(cell[key] for cell in found) for key in ("macs_times", "parameters_times"))
    reached = (
        f"{macs_times:.2f}x MACs, {smaller:.2f}x parameters, {quickest['tflite']:.2f}x TFLite and "
        f"{quickest['onnx']:.2f}x ONNX Runtime latency{noisy}, {_change(found, 'accuracy')}"
    )
    if goal is None or drop is None:
        return f"| {name} | for comparison, one seed | {reached} | |"
    macs, latency = goal
    wanted = (f"≥ {macs}x MACs, " if macs else "") + f"≥ {latency}x latency, ≤ {drop} points"
    loss = -statistics.fmean(_points(found, "accuracy"))
    fits = (macs is None or macs_times >= macs) and loss <= drop
    late = [name for name, target in (("TFLite", "tflite"), ("ONNX Runtime", "onnx")) if quickest[target] < latency]
    told = verdict(fits and len(late) < len(quickest), seeds=len(found), of=len(SEEDS))
    if fits and len(late) == 1:
        told += f", but for {late[0]}, where it was **missed**"
    return f"| {name} | {wanted} | {reached} | {told} |"


def _chain_row(found: list[Raw]) -> str:
    first, last = (statistics.fmean(cell["sizes"][side] for cell in found) for side in (0, 1))
    speed = statistics.fmean(cell["tflite"]["median_times"] for cell in found)
    reached = (
        f"{first / last:.1f}x smaller ({first / 1e6:.1f} → {last / 1e6:.2f} MB), {speed:.1f}x faster, "
        f"{_change(found, 'file_accuracy')}"
    )
    fits = first / last >= 20 and speed >= 8 and statistics.fmean(_points(found, "file_accuracy")) >= -1
    goal = "≥ 20x smaller, ≥ 8x faster on host TFLite, ≤ 1 point"
    told = verdict(fits, seeds=len(found), of=len(SEEDS))
    return f"| resnet18 fp32 → pruned, distilled, int8 | {goal} | {reached} | {told} |"


def _row56(name: str, cells: Mapping[str, Raw]) -> str:
    """Against the better of the unpruned arms."""
    cell, unpruned = cells[name], max((cells[n] for n in UNPRUNED56 if n in cells), key=lambda c: c["accuracy"])
    change = 100 * (cell["accuracy"] - unpruned["accuracy"])
    reached = (
        f"{cell['macs_times']:.2f}x MACs, {100 * unpruned['accuracy']:.2f} → {100 * cell['accuracy']:.2f} % "
        f"({change:+.2f}; {100 * cell['before_training']:.1f} % before training)"
    )
    goal = "≤ 0.5 points under the unpruned network fine-tuned equally long"
    return f"| {name} | {goal} | {reached} | {verdict(change >= -0.5)} (one seed) |"


def _setting(cells: Mapping[str, Raw]) -> str:
    told = (
        "1 thread, bf16 mixed precision. ResNet-18- and MobileNetV2-type: MNIST-5k, 4,000 images to train on "
        f"({RECOVERY.epochs} epochs, shifted, AdamW, one cycle, T={RECOVERY.temperature:g}), 1,000 to judge by (one "
        "standard error is about 0.5 points); the teacher is the network before pruning; latency by "
        "scripts/host_timing.py, both files in turns in one process. "
    )
    if "resnet56 teacher" in cells:
        teacher = cells["resnet56 teacher"]
        arms = ", ".join(
            f"{name.removeprefix('resnet56 ')} {100 * cells[name]['accuracy']:.2f} %"
            for name in (*UNPRUNED56, *KEPT56) if name in cells
        )  # fmt: skip
        told += (
            f"ResNet-56: CIFAR-10 as JPEG, teacher fine-tuned for {TEACHER56.epochs} epochs of {TEACHER56_IMAGES:,} "
            f"images to {100 * teacher['accuracy']:.2f} % of 8,000 test images; then each arm {ARM56['epochs']} epochs "
            f"of {ARM56_IMAGES:,} images (the paper's tables take 400 of 50,000) with the teacher's responses as well "
            f"as the labels; one arm with the labels alone. The pruned are compared with the better unpruned: {arms}."
        )
    return told


def _table_lines(cell: Raw) -> list[str]:
    lines = [
        f"Latency table of ResNet-18 ({cell['points']} timed layers), against whole pruned networks in ONNX Runtime:",
        "",
        "| asked | foreseen by the table | measured (minima) | measured (medians) | MACs left |",
        "|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row['asked']:.2f} | {row['foreseen']:.2f} | {row['measured']:.2f} | {row['measured_median']:.2f} | "
        f"{row['macs']:.2f} |"
        for row in cell["rows"]
    ]


def main() -> None:
    """Train one network into the cache."""
    from bench_compression import Settings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*SMALL, "resnet56 teacher", *UNPRUNED56, *KEPT56])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--models", type=Path)
    arguments = parser.parse_args()
    cache = Path("~/.cache/edgekit/bench-compression").expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    settings = Settings(data=arguments.data, models=arguments.models, cache=cache)
    student = (
        small(settings, arguments.name, arguments.seed)[1]
        if arguments.name in SMALL
        else arm56(settings, arguments.name)
    )
    print(json.dumps({"training": _training(student), "accuracy": student.lineage[-1].after.accuracy}, indent=1))


if __name__ == "__main__":
    main()
