"""Self-supervised pretraining where labels are few: 100 of MNIST-5k's 4,000 training images have one.

Both arms start from the same weights and get the same supervised steps, augmentations and label draw. Learning rates
(each arm its own: from scratch the best of 0.005 to 0.2, fine-tuned of 0.0005 to 0.05), augmentations and SimCLR's
options were chosen on seed 0, which is not among those reported, and on training images, which are not those judged by.
"""

from __future__ import annotations

import copy
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgekit.demo.workload import workload as demo_workload
from edgekit.pretrain import (
    PretrainOptions,
    augmentation_for,
    few_labels,
    knn_accuracy,
    linear_probe,
    pretrain,
    set_probe_head,
)
from edgekit.recipe import TrainOptions
from edgekit.train import CrossEntropy, evaluate_outputs, fit, top1_accuracy, weights_digest
from edgekit.workload import Workload

TITLE = "Self-supervised pretraining, 100 labels"
SEEDS = (1, 2, 3, 4, 5)
LABELS = 100
EPOCHS = 60
SUPERVISED = {"epochs": 100, "batch_size": 20, "threads": 1, "logger": "none", "accelerator": "cpu"}
SCRATCH_RATE, FINETUNE_RATE = 0.2, 0.02
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t, two-sided 95 %, by the number of seeds."""

Raw = dict[str, Any]


def network(seed: int) -> nn.Module:
    """Three convolutions of stride 2, 24 k parameters, 0.55 MMAC on 28x28."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def cells(settings: Any) -> Iterator[tuple[str, Callable[[], Raw]]]:
    """One cell a seed: random, SimCLR, from scratch, fine-tuned."""
    for seed in SEEDS:
        yield f"simclr-{seed}", lambda seed=seed: measure(settings.cache, seed)


def measure(cache: Path, seed: int) -> Raw:
    """Every arm of one seed: accuracies in 0 to 1 on the 1,000 held-out images."""
    data = demo_workload("mnist-5k")
    images, targets = data.train.tensors
    chosen = few_labels(targets.numpy(), LABELS, seed=seed)
    few = TensorDataset(images[chosen], targets[chosen])
    random = network(seed)
    began = time.process_time()
    net, steps = pretrained(cache, seed, data)
    cpu_seconds = time.process_time() - began
    found: Raw = {
        "seed": seed,
        "steps": steps,
        "pretraining_cpu_seconds": round(cpu_seconds, 1),
        "probe_random": probe(random, data, seed),
        "probe_simclr": probe(net, data, seed),
        "probe_random_all": linear_probe(random, data.train, data.evaluation).accuracy,
        "probe_simclr_all": linear_probe(net, data.train, data.evaluation).accuracy,
        "knn_random": knn_accuracy(random, data.train, data.evaluation, labels=LABELS, seed=seed).accuracy,
        "knn_simclr": knn_accuracy(net, data.train, data.evaluation, labels=LABELS, seed=seed).accuracy,
        "scratch": supervised(network(seed), few, data, seed, SCRATCH_RATE),
    }
    set_probe_head(net, few)
    found["finetuned"] = supervised(net, few, data, seed, FINETUNE_RATE)
    headed = network(seed)
    set_probe_head(headed, few)
    found["scratch_probe_head"] = supervised(headed, few, data, seed, SCRATCH_RATE)
    return found


def pretrained(cache: Path, seed: int, data: Workload) -> tuple[nn.Module, int]:
    """SimCLR on all 4,000 training images without labels; resumes in the cache."""
    options = PretrainOptions(
        method="simclr",
        epochs=EPOCHS,
        learning_rate=5e-3,
        temperature=0.5,
        threads=1,
        logger="none",
        accelerator="cpu",
        augmentations=({"random_resized_crop": {"scale": (0.3, 1.0)}}, "random_affine"),
    )
    net = network(seed)
    work = cache / f"pretraining-{weights_digest(net)[:12]}-{EPOCHS}"
    result = pretrain(net, data.train, options, seed=seed, work_dir=work)
    return result.module, result.steps


def probe(net: nn.Module, data: Workload, seed: int) -> float:
    """The linear probe's accuracy with the seed's labels."""
    return linear_probe(net, data.train, data.evaluation, labels=LABELS, seed=seed).accuracy


def supervised(net: nn.Module, few: TensorDataset, data: Workload, seed: int, learning_rate: float) -> float:
    """Accuracy after training all weights on the labels, with crops and small turns."""
    views = augmentation_for("image", ({"random_resized_crop": {"scale": (0.5, 1.0)}}, "random_affine"))

    def augment(x: Tensor) -> Tensor:
        return views(x)

    options = TrainOptions(learning_rate=learning_rate, **SUPERVISED)
    work = Path(f"/tmp/edgekit-pretraining-{seed}-{time.monotonic_ns()}")  # noqa: S108 - removed below
    try:
        fitted = fit(copy.deepcopy(net), CrossEntropy(), few, options, seed=seed, work_dir=work, augment=augment)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return top1_accuracy(*evaluate_outputs(fitted.module, data.evaluation))


def interval(values: list[float]) -> tuple[float, float]:
    """The mean of paired differences and the half width of its 95 % interval (Student's t)."""
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def table(cells: Mapping[str, Raw]) -> list[str]:
    """Goals and what was reached."""
    rows = list(cells.values())
    told = [
        "| what | goal | reached | verdict | seeds, setting |",
        "|---|---|---|---|---|",
    ]
    if len(rows) < 2:
        return [*told, "| SimCLR | | fewer than two seeds measured | | |"]
    setting = f"{len(rows)} seeds; MNIST-5k, {LABELS} labels of 4,000, {EPOCHS} epochs of SimCLR"
    gain, half = interval([100 * (r["probe_simclr"] - r["probe_random"]) for r in rows])
    told.append(
        f"| linear probe: SimCLR {mean(rows, 'probe_simclr')} % against random features {mean(rows, 'probe_random')} % "
        f"| +20 points | {gain:+.1f} ± {half:.1f} points | {'reached' if gain >= 20 else '**missed**'} | {setting} |"
    )
    better, half = interval([100 * (r["finetuned"] - r["scratch"]) for r in rows])
    verdict = "reached" if better > half else "reached on average, the interval holds 0" if better > 0 else "**missed**"
    told.append(
        f"| pretrained + fine-tuned {mean(rows, 'finetuned')} % against from scratch {mean(rows, 'scratch')} % "
        f"| above 0 | {better:+.1f} ± {half:.1f} points | {verdict} | {setting}; both arms "
        f"{SUPERVISED['epochs']} supervised epochs |"
    )
    told.append(
        "\nBeside them: all 4,000 labels, probe "
        f"{mean(rows, 'probe_random_all')} → {mean(rows, 'probe_simclr_all')} %; "
        f"20 nearest neighbours among 100 labels {mean(rows, 'knn_random')} → {mean(rows, 'knn_simclr')} %; "
        "from scratch with its head set by the probe, as the fine-tuned one's is, "
        f"{mean(rows, 'scratch_probe_head')} %. Intervals are "
        "95 %, Student's t, paired over seeds. Pretraining took "
        f"{statistics.fmean(r['pretraining_cpu_seconds'] for r in rows):.0f} s of one core a seed."
    )
    return told


def mean(rows: list[Raw], key: str) -> str:
    """`87.2`: the mean over seeds, in percent."""
    return f"{100 * statistics.fmean(r[key] for r in rows):.1f}"
