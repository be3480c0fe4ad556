"""Compressed sensing: a front-end at a quarter of the numbers, recovery of photographs, theory, and sparse weights."""

from __future__ import annotations

import functools
import io
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from compression_bench._shared import verdict
from edgekit.compress.options import TrainOptions
from edgekit.compress.student import Student
from edgekit.demo.data import load_images
from edgekit.demo.models import SmallResNet
from edgekit.sensing.acquisition import sense
from edgekit.sensing.linear import linear_estimate
from edgekit.sensing.options import SenseOptions
from edgekit.sensing.phase import crossing, donoho_tanner, success_rate
from edgekit.sensing.pursuit import omp
from edgekit.sensing.recovery import basis_pursuit, fista_continuation
from edgekit.sensing.unrolled import UnrolledRecovery, image_sensor, psnr, train_recovery
from edgekit.sensing.weights import deal, decode_sparse, encode_sparse, entropy_bound_bits, rows_for
from edgekit.train import CrossEntropy, evaluate_outputs, fit, top1_accuracy

if TYPE_CHECKING:
    from bench_compression import Settings

TITLE = "Compressed sensing"
Raw = dict[str, Any]
SEEDS = (0, 1, 2)
RATIO = 0.25
PLOT = Path(__file__).resolve().parents[2] / "docs" / "phase-transition.svg"

TRAINED, TESTED = 8_000, 5_000
TRAINING = TrainOptions(epochs=4, batch_size=64, learning_rate=6e-3, threads=1)
ARMS = {
    "whole signal": None,
    "gaussian": SenseOptions(ratio=RATIO, block=7),
    "bernoulli": SenseOptions(ratio=RATIO, block=7, matrix="bernoulli"),
    "learned": SenseOptions(ratio=RATIO, block=7, learned=True),
}

PATCHES, UNSEEN = 10_000, 500
RECOVERY = TrainOptions(
    epochs=12, batch_size=16, learning_rate=3e-3, weight_decay=0.0, threads=1, precision="bf16", logger="none"
)
STAGES, CHANNELS, BLOCK = 5, 32, 8

SIZE, TRIALS = 200, 30
DELTAS = (0.2, 0.5, 0.8)
AROUND = (-0.12, -0.06, -0.03, 0.0, 0.03, 0.06, 0.12)
SOLVERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1 (basis pursuit)": lambda a, y: basis_pursuit(a, y, iterations=4000).coefficients,
    "FISTA with continuation": lambda a, y: fista_continuation(a, y, stages=12, iterations=400).coefficients,
    "OMP": lambda a, y: omp(a, y, sparsity=len(a)).coefficients,
}

DENSITIES = (0.10, 0.03, 0.01)
WEIGHT_BLOCK, WEIGHT_BITS, SENDERS = 512, 16, 16


def cells(settings: Settings) -> Iterator[tuple[str, Callable[[], Raw]]]:
    """Front-ends, recovery, the phase transition at each δ, sparse weights at each density."""
    for seed in SEEDS:
        for arm in ARMS:
            yield f"front-end {arm} {seed}", functools.partial(_front_end, arm, seed)
    if settings.data is not None:
        yield "recovery of photographs", functools.partial(_recovery, settings.data)
    for delta in DELTAS:
        yield f"phase {delta}", functools.partial(_phase, delta)
    for density in DENSITIES:
        yield f"weights {density}", functools.partial(_weights, density)
    yield "sums of weights", _sums


def _front_end(arm: str, seed: int) -> Raw:
    """Accuracy on held-out images of one network trained from the same initial weights, for as long."""
    images = load_images("fashion-mnist")
    train = _tensors(images.train_images[:TRAINED], images.train_labels[:TRAINED])
    test = _tensors(images.test_images[:TESTED], images.test_labels[:TESTED])
    torch.manual_seed(seed)
    student = Student(module=SmallResNet(channels=(16, 32)).eval())
    options = ARMS[arm]
    if options is not None:
        student = sense(student, (torch.zeros(1, 1, 28, 28),), options, train, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        module = fit(student.module, CrossEntropy(), train, TRAINING, seed=seed, work_dir=Path(folder)).module
    outputs, targets = evaluate_outputs(module, test)
    sent = 784 if options is None else student.module.sensor.matrix.shape[0] * 16
    return {"accuracy": top1_accuracy(outputs, targets), "numbers": sent, "data": images.name}


def _tensors(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    pixels = torch.from_numpy(images.astype(np.float32)) / 255
    return TensorDataset(((pixels - 0.286) / 0.353)[:, None], torch.from_numpy(labels))


def _recovery(data: Path) -> Raw:
    """An unrolled network trained on small gray CIFAR-10 images, on photographs it never saw."""
    from sklearn.datasets import load_sample_images

    images = TensorDataset(_gray_cifar(data / "cifar10" / "train.parquet", PATCHES))
    sensor = image_sensor(RATIO, block=BLOCK)
    torch.manual_seed(0)
    model = UnrolledRecovery(sensor, stages=STAGES, channels=CHANNELS)
    linear = UnrolledRecovery(sensor, stages=0)
    linear.start.set_estimate(*linear_estimate(sensor, images, 0, labelled=False))
    with tempfile.TemporaryDirectory() as folder:
        train_recovery(model, sensor, images, RECOVERY, seed=0, work_dir=Path(folder), augment=_flipped)
    found = load_sample_images()
    photos = dict(zip((Path(name).stem for name in found.filenames), map(_luminance, found.images), strict=True))
    unseen = _gray_cifar(data / "cifar10" / "test.parquet", UNSEEN)

    def judged(picture: Tensor) -> Raw:
        with torch.no_grad():
            measured = sensor(picture)
            return {
                "linear_db": psnr(linear(measured).clamp(0, 1), picture),
                "unrolled_db": psnr(model(measured).clamp(0, 1), picture),
                "fista_db": psnr(_fista_dct(sensor.matrix, sensor.blocks(picture), picture), picture),
            }

    small = [judged(picture[None]) for picture in unseen]
    return {
        "photos": {name: judged(photo) for name, photo in photos.items()},
        "small": {key: statistics.fmean(picture[key] for picture in small) for key in small[0]},
        "small_gains": [picture["unrolled_db"] - picture["linear_db"] for picture in small],
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _flipped(batch: Tensor) -> Tensor:
    return batch.flip(-1) if torch.rand(()) < 0.5 else batch


def _fista_dct(matrix: Tensor, blocks: Tensor, photo: Tensor) -> Tensor:
    """The photograph from FISTA in the DCT of each block, nothing learned."""
    from edgekit.sensing.bases import basis
    from edgekit.sensing.recovery import fista

    atoms = torch.from_numpy(basis("dct", (BLOCK, BLOCK))).float()
    found = fista(matrix @ atoms, blocks @ matrix.T, penalty=2e-3, iterations=400, tolerance=1e-4)
    height, width = (extent // BLOCK for extent in photo.shape[2:])
    rows = (found.coefficients @ atoms.T).reshape(1, height, width, BLOCK * BLOCK).permute(0, 3, 1, 2)
    return torch.nn.functional.pixel_shuffle(rows, BLOCK).clamp(0, 1)


def _gray_cifar(path: Path, count: int) -> Tensor:
    import pyarrow.parquet as pq
    from PIL import Image

    blobs = [value.as_py() for value in pq.read_table(path).column("image").slice(0, count)]
    blobs = [blob["bytes"] if isinstance(blob, dict) else blob for blob in blobs]
    return torch.from_numpy(
        np.stack([np.asarray(Image.open(io.BytesIO(blob)).convert("L"), np.float32) / 255 for blob in blobs])
    )[:, None]


def _luminance(picture: np.ndarray) -> Tensor:
    """`[1, 1, H, W]` in 0 to 1, cut to whole blocks (ITU-R BT.601)."""
    light = (picture @ np.array([0.299, 0.587, 0.114]) / 255).astype(np.float32)
    height, width = (extent - extent % BLOCK for extent in light.shape)
    return torch.from_numpy(light[:height, :width])[None, None]


def _phase(delta: float) -> Raw:
    """Success rates of each solver around the curve at one δ, and where they cross 50 %."""
    rows, curve = round(delta * SIZE), donoho_tanner(delta)
    found: Raw = {"curve": curve, "rows": rows, "size": SIZE, "trials": TRIALS, "rates": {}, "crossing": {}}
    for name, solve in SOLVERS.items():
        shift = 0.05 if name == "OMP" and delta < 0.5 else 0.0  # normal nonzeros are easier for OMP
        counts = sorted({max(1, round((curve + shift + part) * rows)) for part in AROUND})
        rates = [
            success_rate(solve, size=SIZE, rows=rows, nonzeros=k, trials=TRIALS, seed=0) for k in counts if k < rows
        ]
        found["rates"][name] = [[r.rho, r.solved, r.trials] for r in rates]
        found["crossing"][name] = crossing(rates)
    return found


def _trained_layer() -> tuple[np.ndarray, nn.Module, TensorDataset]:
    """Weights `[300, 784]` of the first layer of LeNet-300-100, trained on Fashion-MNIST for two epochs."""
    images = load_images("fashion-mnist")
    train = _tensors(images.train_images[:TRAINED], images.train_labels[:TRAINED])
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    options = TrainOptions(epochs=2, batch_size=64, learning_rate=2e-3, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        fit(network, CrossEntropy(), train, options, seed=0, work_dir=Path(folder))
    return network[1].weight.detach().numpy(), network, train


def _kept(values: np.ndarray, density: float) -> np.ndarray:
    """`values` with all but the largest `density` of them 0."""
    keep = round(density * values.size)
    threshold = np.partition(np.abs(values).ravel(), -keep)[-keep]
    return np.where(np.abs(values) >= threshold, values, 0.0).astype(np.float32)


def _fewest_rows(weights: np.ndarray, nonzeros: int, value_bits: Any) -> tuple[int, float] | None:
    """The fewest projections a block from which every block is solved, in steps of 10 %, and the error that is left."""
    start = nonzeros + 1
    while start < WEIGHT_BLOCK:
        code = encode_sparse(weights, rows=start, block=WEIGHT_BLOCK, seed=0, value_bits=value_bits)
        decoded = decode_sparse(code, nonzeros=nonzeros)
        error = float(np.linalg.norm(decoded.weights - weights) / np.linalg.norm(weights))
        if decoded.unsolved == 0 and error < 0.02:
            return start, error
        start = int(start * 1.1) + 1
    return None


def _fullest(weights: np.ndarray) -> int:
    """Nonzeros of the fullest block, as the encoder deals them."""
    places = -(-weights.size // WEIGHT_BLOCK) * WEIGHT_BLOCK
    dealt = np.zeros(places, bool)
    dealt[deal(weights.size, places, 0)] = weights.ravel() != 0
    return int(dealt.reshape(-1, WEIGHT_BLOCK).sum(1).max())


def _weights(density: float) -> Raw:
    """Bytes of 32,768 pruned weights as projections, beside the entropy bound at the same bits a value."""
    layer, _, _ = _trained_layer()
    weights = _kept(layer, density).ravel()[: 64 * WEIGHT_BLOCK]
    nonzeros = int(np.count_nonzero(weights))
    bound = entropy_bound_bits(weights.size, nonzeros, value_bits=WEIGHT_BITS) / 8
    dense = weights.size * WEIGHT_BITS / 8
    found = _fewest_rows(weights, _fullest(weights), WEIGHT_BITS)
    return {
        "weights": weights.size,
        "nonzeros": nonzeros,
        "entropy_bytes": bound,
        "dense_bytes": dense,
        "rows": found and found[0],
        "projection_bytes": found and found[0] * 64 * WEIGHT_BITS / 8,
        "relative_error": found and found[1],
    }


def _sums() -> Raw:
    """A relay that can only add, below it 16 nodes that each send 1 % of a real gradient."""
    _, network, train = _trained_layer()
    total, each = np.zeros(64 * WEIGHT_BLOCK, np.float32), 0.0
    for node in range(SENDERS):
        network.zero_grad()
        inputs, targets = (column[node * 128 : (node + 1) * 128] for column in train.tensors)
        nn.functional.cross_entropy(network(inputs), targets).backward()
        gradient = _kept(network[1].weight.grad.numpy().ravel()[: total.size], 0.01)
        total += gradient
        each += entropy_bound_bits(total.size, int(np.count_nonzero(gradient)), value_bits=WEIGHT_BITS) / 8
    union = int(np.count_nonzero(total))
    found = _fewest_rows(total, _fullest(total), WEIGHT_BITS)
    return {
        "senders": SENDERS,
        "union": union,
        "all_messages_bytes": each,
        "merged_entropy_bytes": entropy_bound_bits(total.size, union, value_bits=WEIGHT_BITS) / 8,
        "rows": found and found[0],
        "projection_bytes": found and found[0] * 64 * WEIGHT_BITS / 8,
        "predicted_rows": rows_for(_fullest(total), WEIGHT_BLOCK, margin=1.0),
    }


def table(cells: Mapping[str, Raw]) -> list[str]:
    """Markdown of what is there; draws the phase transition where all of it is."""
    lines = [*_front_end_table(cells), *_recovery_table(cells), *_phase_table(cells), *_weights_table(cells)]
    phases = {delta: cells[f"phase {delta}"] for delta in DELTAS if f"phase {delta}" in cells}
    if len(phases) == len(DELTAS):
        draw(phases, PLOT)
    return lines


def _front_end_table(cells: Mapping[str, Raw]) -> list[str]:
    found = {arm: {s: c for s in SEEDS if (c := cells.get(f"front-end {arm} {s}")) is not None} for arm in ARMS}
    whole = found["whole signal"]
    if not whole:
        return []
    data = next(iter(whole.values()))["data"]
    lines = [
        f"Front-end on {data}: the first {TRAINED:,} training images for {TRAINING.epochs} epochs, {TESTED:,} test "
        "images; SmallResNet of 16 and 32 channels from the same initial weights in every arm; blocks of 7x7. Goal: at "
        "m/n = 25 % no more than 4 points under the whole signal.\n",
        "| front-end | numbers sent | accuracy, mean of seeds | loss in points, each seed | goal | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for arm, runs in found.items():
        if not runs:
            continue
        mean = 100 * statistics.mean(run["accuracy"] for run in runs.values())
        losses = [100 * (whole[seed]["accuracy"] - run["accuracy"]) for seed, run in runs.items() if seed in whole]
        told = ", ".join(f"{loss:+.1f}" for loss in losses)
        is_base = arm == "whole signal"
        told_verdict = (
            "" if is_base or not losses else verdict(statistics.mean(losses) <= 4, seeds=len(losses), of=len(SEEDS))
        )
        sent = next(iter(runs.values()))["numbers"]
        lines.append(
            f"| {arm} | {sent} | {mean:.1f} % ({len(runs)} seeds) | {'' if is_base else told} | "
            f"{'' if is_base else '4.0 at most'} | {told_verdict} |"
        )
    return [*lines, ""]


def _recovery_table(cells: Mapping[str, Raw]) -> list[str]:
    cell = cells.get("recovery of photographs")
    if cell is None:
        return []
    lines = [
        f"Recovery at 25 %, blocks of {BLOCK}x{BLOCK}, orthonormal rows: {STAGES} unrolled stages of {CHANNELS} "
        f"channels ({cell['parameters']:,} parameters), trained on {PATCHES:,} gray CIFAR-10 images for "
        f"{RECOVERY.epochs} epochs (one seed), on scikit-learn's two photographs and on "
        "test images. Linear: the best linear estimate by "
        "the same training images.\n",
        "| photograph | linear | FISTA, DCT of a block | unrolled | gain over linear | goal | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    gains = []
    for name, photo in cell["photos"].items():
        gains.append(photo["unrolled_db"] - photo["linear_db"])
        lines.append(
            f"| {name} | {photo['linear_db']:.2f} dB | {photo['fista_db']:.2f} dB | {photo['unrolled_db']:.2f} dB | "
            f"{gains[-1]:+.2f} dB | | |"
        )
    mean = statistics.mean(gains)
    lines.append(f"| mean of photographs | | | | {mean:+.2f} dB | at least +2.0 dB | {verdict(mean >= 2)} |")
    small, gain = cell["small"], statistics.fmean(cell["small_gains"])
    return [
        *lines,
        f"| {UNSEEN} other CIFAR-10 images | {small['linear_db']:.2f} dB | {small['fista_db']:.2f} dB | "
        f"{small['unrolled_db']:.2f} dB | {gain:+.2f} dB | at least +2.0 dB | {verdict(gain >= 2)} |",
        "",
    ]


def _phase_table(cells: Mapping[str, Raw]) -> list[str]:
    phases = {delta: cells[f"phase {delta}"] for delta in DELTAS if f"phase {delta}" in cells}
    if not phases:
        return []
    lines = [
        f"Phase transition: n = {SIZE}, Gaussian matrices, normal nonzeros, {TRIALS} trials at each ρ (5 matrices), "
        "solved to 0.1 %; the ρ of 50 % success by a logistic fit. Goal: l1 within 0.05 of the Donoho-Tanner curve.\n",
        "| δ = m/n | curve | " + " | ".join(SOLVERS) + " | goal | verdict |",
        "|---|---|" + "---|" * len(SOLVERS) + "---|---|",
    ]
    for delta, cell in phases.items():
        crossings = [cell["crossing"][name] for name in SOLVERS]
        told = " | ".join("outside" if c is None else f"{c:.3f}" for c in crossings)
        reached = crossings[0] is not None and abs(crossings[0] - cell["curve"]) <= 0.05
        lines.append(f"| {delta} | {cell['curve']:.3f} | {told} | ± 0.05 | {verdict(reached)} |")
    return [*lines, ""]


def _weights_table(cells: Mapping[str, Raw]) -> list[str]:
    rows = [(density, cells[f"weights {density}"]) for density in DENSITIES if f"weights {density}" in cells]
    lines: list[str] = []
    if rows:
        lines = [
            "Sparse weights: 32,768 of the first layer of LeNet-300-100 (Fashion-MNIST), pruned by magnitude, as "
            f"Gaussian projections of blocks of {WEIGHT_BLOCK} decoded by OMP; {WEIGHT_BITS} bits a value on both "
            "sides. The fewest projections (in steps of 10 %) from which every block came back.\n",
            "| kept | dense | entropy bound | projections | projections / bound | error left |",
            "|---|---|---|---|---|---|",
        ]
        for density, cell in rows:
            bytes_ = cell["projection_bytes"]
            told = "never" if bytes_ is None else f"{bytes_:,.0f} B"
            ratio = "" if bytes_ is None else f"{bytes_ / cell['entropy_bytes']:.2f}x"
            error = "" if bytes_ is None else f"{100 * cell['relative_error']:.2f} %"
            lines.append(
                f"| {100 * density:.0f} % | {cell['dense_bytes']:,.0f} B | {cell['entropy_bytes']:,.0f} B | {told} | "
                f"{ratio} | {error} |"
            )
        lines.append("")
    return lines + _sums_table(cells.get("sums of weights"))


def _sums_table(cell: Raw | None) -> list[str]:
    if cell is None:
        return []
    projected = "never" if cell["projection_bytes"] is None else f"{cell['projection_bytes']:,.0f} B"
    return [
        f"Sums, the case made for projections: a link that carries the sum of {cell['senders']} nodes' sparse "
        f"gradients (1 % each, {cell['union']} places in all) through relays that only add; {WEIGHT_BITS} bits a "
        "value.\n",
        "| sent over the link | bytes |",
        "|---|---|",
        f"| {cell['senders']} entropy-coded messages (bound) | {cell['all_messages_bytes']:,.0f} B |",
        f"| the sum of {cell['senders']} codes of projections | {projected} |",
        f"| one message, if a relay can decode and merge (bound) | {cell['merged_entropy_bytes']:,.0f} B |",
        "",
    ]


def draw(phases: Mapping[float, Raw], path: Path) -> None:
    """The curve, and each solver's 50 % with its 10 and 90 % of success, as an SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    # Two runs that measured the same write the same file.
    with plt.rc_context({"svg.hashsalt": "edgekit", "svg.fonttype": "none", "font.size": 10}):
        figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
        deltas = np.linspace(0.02, 0.98, 97)
        axes.plot(
            deltas, [donoho_tanner(float(d)) for d in deltas], color="black", label="Donoho-Tanner, weak threshold"
        )
        for offset, (name, marker) in zip((-0.012, 0.0, 0.012), zip(SOLVERS, "os^", strict=True), strict=True):
            at = [
                (d, c["crossing"][name], c["rates"][name]) for d, c in phases.items() if c["crossing"][name] is not None
            ]
            if not at:
                continue
            low, high = zip(*(_span(rates) for _, _, rates in at), strict=True)
            middle = np.array([c for _, c, _ in at])
            spread = np.clip([middle - np.array(low), np.array(high) - middle], 0, None)
            axes.errorbar(
                [d + offset for d, _, _ in at], middle, yerr=spread, fmt=marker, capsize=3, label=f"{name}, 50 %"
            )
        axes.set(xlabel="δ = m/n", ylabel="ρ = k/m", xlim=(0, 1), ylim=(0, 1))
        axes.set_title(f"Recovery of k-sparse vectors, n = {SIZE}, {TRIALS} trials a point", fontsize=10)
        axes.legend(loc="upper left", frameon=False)
        axes.grid(alpha=0.3)
        drawn = path.with_suffix(".partial.svg")
        figure.savefig(drawn, metadata={"Date": None})
        plt.close(figure)
    shutil.move(drawn, path)


def _span(rates: list[list[float]]) -> tuple[float, float]:
    """The highest ρ solved 90 % of the time and the lowest solved 10 %, of those tried."""
    solved = [rho for rho, good, trials in rates if good >= 0.9 * trials]
    failed = [rho for rho, good, trials in rates if good <= 0.1 * trials]
    return (max(solved) if solved else rates[0][0]), (min(failed) if failed else rates[-1][0])
