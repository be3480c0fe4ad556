"""Quantization-aware training against post-training quantization, on a network that quantization hurts.

A MobileNet-type network (depthwise separable, BN, ReLU), trained here, whose channels are then rescaled by factors
that leave its function as it was (positive homogeneity of ReLU; the inverse of Nagel et al. 2019, section 4.1): ranges
of channels then differ by two orders of magnitude, as those of MobileNets trained on ImageNet do, and one int8 range
for a whole activation is too coarse for most of them. Both files are made and run by TensorFlow Lite. The third arm is
the float network fine-tuned as long as QAT trains, then quantized after training: what training alone would win.
"""

from __future__ import annotations

import functools
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import edgekit
from edgekit.artifact import Artifact, Scheme
from edgekit.compress.cost import count_macs, count_parameters
from edgekit.compress.effects import TeacherReference
from edgekit.compress.qat_options import QatOptions
from edgekit.compress.steps import run_step
from edgekit.compress.storage import load_student, save_student
from edgekit.compress.student import Student
from edgekit.converters.conversion import convert_model
from edgekit.converters.target_run import ConversionOptions
from edgekit.demo.data import load_images
from edgekit.diagnosis.probing import run_file
from edgekit.pipeline.samples import calibration_batches, held_out_batches
from edgekit.pipeline.trained_form import form_of
from edgekit.recipe import DistillOptions, Step, TrainOptions
from edgekit.train import CrossEntropy, evaluate_outputs, fit, top1_accuracy
from edgekit.workload import Workload

if TYPE_CHECKING:
    from bench_compression import Settings

TITLE = "Quantization-aware training"
Raw = dict[str, Any]
SEEDS = (0, 1, 2)
TRAINED, TESTED, CALIBRATED = 6_000, 2_000, 200
SPREAD = 1.2
"""Standard deviation of the natural logarithm of the factors: 95 % within a factor of 10.5 either way."""
QUIET: dict[str, Any] = {"threads": 1}
TEACHER = TrainOptions(epochs=6, batch_size=64, learning_rate=4e-3, **QUIET)
QAT = QatOptions(backends=("tflite",), epochs=3, batch_size=64, learning_rate=1e-3, weight=0.7, **QUIET)
CONTROL = DistillOptions(epochs=3, batch_size=64, learning_rate=1e-3, weight=0.7, temperature=4.0, **QUIET)


class Net(nn.Module):
    """MobileNetV1's blocks (Howard et al. 2017) at 28x28: about 0.9 M MACs."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_conv(1, 16, stride=2)]
        for read, written, stride in ((16, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 1)):
            layers += [*_conv(read, read, stride=stride, groups=read), *_conv(read, written, kernel=1)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[B, 10]` of images `[B, 1, 28, 28]`."""
        logits: torch.Tensor = self.classifier(self.features(x))
        return logits


def _conv(read: int, written: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(read, written, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(written), nn.ReLU()


def unequal(net: Net, *, seed: int) -> None:
    """Scale each channel between two convolutions by a factor drawn once, and undo it in the next; in place."""
    generator = torch.Generator().manual_seed(seed)
    layers = list(net.features)
    for place in range(1, len(layers) - 2, 3):
        norm, following = layers[place], layers[place + 2]
        assert isinstance(norm, nn.BatchNorm2d) and isinstance(following, nn.Conv2d)  # noqa: S101, PT018
        factors = torch.exp(SPREAD * torch.randn(norm.num_features, generator=generator))
        with torch.no_grad():
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
            axis = 0 if following.groups > 1 else 1
            following.weight.div_(factors.view([-1 if i == axis else 1 for i in range(4)]))


def data_of() -> tuple[TensorDataset, TensorDataset, str]:
    """Training and test images, and where they are from."""
    images = load_images("auto")
    train = _dataset(images.train_images, images.train_labels, TRAINED)
    return train, _dataset(images.test_images, images.test_labels, TESTED), images.name


def _dataset(images: Any, labels: Any, count: int) -> TensorDataset:
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    values = torch.tensor(np.asarray(images)[chosen], dtype=torch.float32).reshape(len(chosen), 1, 28, 28)
    return TensorDataset(values / 255, torch.tensor(np.asarray(labels)[chosen], dtype=torch.long))


def student_of(cache: Path, seed: int, train: TensorDataset) -> Student:
    """The network trained from `seed`, its channels rescaled; from the cache where it is there."""
    torch.manual_seed(seed)
    net = Net()
    folder = cache / "qat" / f"net-{seed}"
    if not (folder / "student.json").is_file():
        with tempfile.TemporaryDirectory() as work:
            fit(net, CrossEntropy(), train, TEACHER, seed=seed, work_dir=Path(work))
        save_student(Student(module=net.eval()), folder)
    student = load_student(folder, Net(), (torch.zeros(1, 1, 28, 28),))
    return student


def accuracy_of_file(student: Student, workload: Workload, work: Path) -> tuple[float, Artifact]:
    """Top-1 of the static int8 TFLite file of a student on the whole evaluation set, as its runtime answers."""
    form = form_of(student, workload.example_inputs, "tflite", Scheme.STATIC_W8A8, ConversionOptions(allow_lossy=True))
    outcome = convert_model(
        form.model,
        form.example_inputs,
        name="net",
        targets=["tflite"],
        schemes=[Scheme.STATIC_W8A8],
        output_dir=Path(tempfile.mkdtemp(dir=work)),
        calibration=form.samples(calibration_batches(workload, CALIBRATED, seed=0)),
        verification=form.samples(held_out_batches(workload, 32, seed=0)),
        options=form.options,
    )
    outcome.raise_failures()
    artifact = outcome.artifacts[0]
    samples = held_out_batches(workload, len(workload.evaluation), seed=0)
    outputs = np.concatenate([o[0] for o in run_file(artifact.path, artifact.passport.format, samples, work)])
    targets = workload.evaluation.tensors[1].numpy()  # type: ignore[attr-defined]
    return top1_accuracy(outputs, targets), artifact


def measured(cache: Path, seed: int, *, rescaled: bool) -> Raw:
    """fp32, PTQ, PTQ after as much float training, and QAT, of one network."""
    train, test, name = data_of()
    student = student_of(cache, seed, train)
    plain = top1_accuracy(*evaluate_outputs(student.module, test))
    if rescaled:
        assert isinstance(student.module, Net)  # noqa: S101
        unequal(student.module, seed=seed)
    workload = edgekit.Workload(
        name="net", model=student.module, example_inputs=(torch.zeros(1, 1, 28, 28),), train=train, evaluation=test
    )
    teacher = TeacherReference(student.module, workload)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found: Raw = {
            "data": name,
            "parameters": count_parameters(student.module),
            "macs": count_macs(student.module, workload.example_inputs),
            "fp32_before_rescaling": plain,
            "fp32": top1_accuracy(*evaluate_outputs(student.module, test)),
            "ptq": accuracy_of_file(student, workload, work)[0],
        }
        tuned = run_step(student, teacher, Step(distill=CONTROL), workload, seed=seed, work_dir=work / "control")
        found["ptq_after_training"] = accuracy_of_file(tuned, workload, work)[0]
        trained = run_step(student, teacher, Step(qat=QAT), workload, seed=seed, work_dir=work / "qat")
        found["qat"], artifact = accuracy_of_file(trained, workload, work)
        found["bytes"] = artifact.passport.size_bytes
        found["settings"] = json.loads(QAT.model_dump_json())
    return found


def cells(settings: Settings) -> Iterator[tuple[str, Callable[[], Raw]]]:
    """Three seeds of the rescaled network, one of it as it was trained."""
    for seed in SEEDS:
        yield f"rescaled seed {seed}", functools.partial(measured, settings.cache, seed, rescaled=True)
    yield "as trained seed 0", functools.partial(measured, settings.cache, 0, rescaled=False)


def regained(cell: Raw) -> float | None:
    """The share of what PTQ lost that QAT wins back; None where PTQ lost nothing."""
    gap = cell["fp32"] - cell["ptq"]
    return None if gap <= 0 else (cell["qat"] - cell["ptq"]) / gap


def table(cells: Mapping[str, Raw]) -> list[str]:
    """Markdown lines."""
    rescaled = [cell for key, cell in cells.items() if key.startswith("rescaled")]
    if not rescaled:
        return ["Not measured yet."]
    first = rescaled[0]
    shares = [share for share in map(regained, rescaled) if share is not None]
    lines = [
        f"MobileNet-type network ({first['parameters']:,} parameters, {first['macs'] / 1e6:.2f} M MACs), "
        f"{TEACHER.epochs} epochs on {TRAINED:,} images of {first['data']}; top-1 on {TESTED:,} test images, int8 "
        f"TFLite as its runtime answers. QAT: {QAT.epochs} epochs towards the float network; control: as many of "
        "float training, then PTQ. *Rescaled*: channels between layers multiplied by factors that leave the function "
        f"as it was (log-normal, sigma {SPREAD:g}).\n",
        "| network | fp32, % | PTQ, % | as much float training, then PTQ, % | QAT, % | gap regained |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key, cell in cells.items():
        share = regained(cell)
        shown = "no gap" if share is None else f"{share:.0%}"
        values = (cell[name] for name in ("fp32", "ptq", "ptq_after_training", "qat"))
        lines.append(f"| {key} | {' | '.join(f'{100 * value:.2f}' for value in values)} | {shown} |")
    mean = statistics.fmean(shares) if shares else 0.0
    verdict = "reached" if shares and min(shares) >= 0.5 and len(rescaled) == len(SEEDS) else "**missed**"
    lines += [
        "",
        "| goal | reached | verdict | seeds |",
        "| --- | --- | --- | --- |",
        f"| at least half of the gap between PTQ and fp32 regained | {mean:.0%} on average, at least "
        f"{min(shares, default=0.0):.0%} | {verdict} | {len(rescaled)} |",
    ]
    return lines
