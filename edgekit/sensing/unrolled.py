"""Recovery as a network: the iterations of a solver laid out as layers and trained (algorithm unrolling).

    sensor = image_sensor(0.25, block=8)
    model = UnrolledRecovery(sensor)                              # measurements [B, m, H/8, W/8] to images [B, 1, H, W]
    model = train_recovery(model, sensor, images, TrainOptions(epochs=5), seed=0, work_dir=work)
    edgekit.convert(model, (sensor(example),), targets=["tflite"], scheme="fp32")

Plain convolutions, matrix products and ReLUs, so that every backend runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from edgekit.errors import UserError
from edgekit.schema import digest
from edgekit.sensing.acquisition import LinearDecoder, Sensor, block_size
from edgekit.sensing.linear import linear_estimate, pseudoinverse
from edgekit.sensing.matrices import measurement_count, measurement_matrix
from edgekit.training.fitting import fit, weights_digest
from edgekit.training.objective import Batch, Objective, StepOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekit.compress.options import TrainOptions
    from edgekit.training.fitting import TrainProgress
    from edgekit.workload import MapDataset

__all__ = ["Lista", "UnrolledRecovery", "image_sensor", "psnr", "train_recovery"]


def image_sensor(
    ratio: float, *, block: int, channels: int = 1, kind: str = "orthogonal", seed: int = 0, learned: bool = False
) -> Sensor:
    """A block-wise Sensor for images `[B, channels, H, W]` of any H and W that `block` divides."""
    shape = (channels, block, block)
    size = block_size(shape, block)
    rows = measurement_matrix(kind, measurement_count(ratio, size), size, seed=seed)
    return Sensor(torch.from_numpy(rows).float(), shape, block, learned=learned).eval()


def shrink(values: Tensor, threshold: Tensor) -> Tensor:
    """Soft thresholding of `values` `[B, C, …]` by `threshold` ≥ 0, by ReLUs alone: every backend has those."""
    return F.relu(values - threshold) - F.relu(-values - threshold)


class Lista(nn.Module):
    """Sparse codes `[B, n]` of measurements `[B, m]`: s ← shrink(S s + W y, θ_k), S and W shared by all steps.

    Learned ISTA (Gregor and LeCun 2010, eq. 5 and algorithm 3): made with W = Dᵀ/L, S = I − DᵀD/L and θ = λ/L, it is
    ISTA of `iterations` steps, and training goes on from there. `dictionary` D is `[m, n]`.
    """

    def __init__(self, dictionary: Tensor, *, iterations: int = 12, penalty: float = 0.1) -> None:
        super().__init__()
        rows, columns = dictionary.shape
        if rows >= columns:
            raise UserError(
                f"{rows} measurements of {columns} numbers: recovery is for fewer measurements than numbers"
            )
        exact = dictionary.double()
        bound = float(torch.linalg.matrix_norm(exact, ord=2)) ** 2
        self.iterations = iterations
        self.encode = nn.Linear(rows, columns, bias=False)
        self.mutual = nn.Linear(columns, columns, bias=False)
        self.thresholds = nn.Parameter(torch.full((iterations, columns), penalty / bound))
        with torch.no_grad():
            self.encode.weight.copy_(exact.T / bound)
            self.mutual.weight.copy_(torch.eye(columns, dtype=torch.float64) - exact.T @ exact / bound)

    def forward(self, y: Tensor) -> Tensor:
        pulled = self.encode(y)
        s = shrink(pulled, self.thresholds[0])
        for step in range(1, self.iterations):
            s = shrink(self.mutual(s) + pulled, self.thresholds[step])
        return s


class UnrolledRecovery(nn.Module):
    """Images `[B, C, H, W]` of block-wise measurements `[B, m, H/b, W/b]`, for any H and W.

    Begins with the linear estimate; each stage is a gradient step of ½‖y − A x‖² in every block and a learned proximal
    step over the whole image: transform, soft threshold, transform back, added to what it was given. After ISTA-Net+
    (Zhang and Ghanem 2018, eqs. 5 and 15), whose stages see one block and whose loss also asks the transforms to be
    each other's inverse; here they see across blocks, and the loss is the mean square error alone.
    """

    def __init__(self, sensor: Sensor, *, stages: int = 6, channels: int = 16) -> None:
        super().__init__()
        if sensor.block is None or len(sensor.shape) != 3:
            raise UserError("unrolled recovery of images needs a sensor that measures by blocks of [C, H, W]")
        count = sensor.matrix.shape[0]
        self.start = LinearDecoder(count, sensor.shape, sensor.block)
        self.start.set_estimate(pseudoinverse(sensor.matrix.detach()), torch.zeros(sensor.matrix.shape[1]))
        self.stages = nn.ModuleList(_Stage(sensor, channels) for _ in range(stages))

    def forward(self, y: Tensor) -> Tensor:
        x: Tensor = self.start(y)
        for stage in self.stages:
            x = stage(x, y)
        return x


class _Stage(nn.Module):
    def __init__(self, sensor: Sensor, channels: int) -> None:
        super().__init__()
        images, block = sensor.shape[0], sensor.block
        count, size = sensor.matrix.shape
        self.block = block or 1
        self.measure = nn.Conv2d(images, count, self.block, stride=self.block, bias=False)
        self.spread = nn.Conv2d(count, size, 1, bias=False)
        self.analysis = _transform(images, channels)
        self.threshold = nn.Parameter(torch.full((1, channels, 1, 1), 0.01))
        self.synthesis = _transform(channels, images)
        with torch.no_grad():
            matrix = sensor.matrix.detach()
            largest = float(torch.linalg.matrix_norm(matrix, ord=2)) ** 2
            self.measure.weight.copy_(matrix.reshape(self.measure.weight.shape))
            self.spread.weight.copy_((matrix.T / largest)[:, :, None, None])
        self.measure.weight.requires_grad_(False)  # A is what the node has

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        moved = x - F.pixel_shuffle(self.spread(self.measure(x) - y), self.block)
        recovered: Tensor = moved + self.synthesis(shrink(self.analysis(moved), self.threshold))
        return recovered


def _transform(inputs: int, outputs: int) -> nn.Sequential:
    wide = max(inputs, outputs)
    return nn.Sequential(
        nn.Conv2d(inputs, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, outputs, 3, padding=1)
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryError(Objective):
    """Mean square error of signals recovered from their own measurements; the data's targets are not looked at."""

    sensor: Sensor

    @property
    def key(self) -> str:
        return digest("recovery", weights_digest(self.sensor))

    @property
    def needs_targets(self) -> bool:
        return False

    def to(self, device: torch.device) -> None:
        """The sensor goes with the model."""
        self.sensor.to(device)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean over all numbers of the batch."""
        return F.mse_loss(outputs, batch.inputs[0])

    def step(self, model: nn.Module, batch: Batch) -> StepOutcome:
        with torch.no_grad():
            measured = self.sensor(batch.inputs[0])
        return StepOutcome(loss=self.loss(model(measured), batch))

    def after_step(self, model: nn.Module, step: int, total_steps: int) -> None:
        """A negative threshold would not be one."""
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in ("threshold", "thresholds"):
                parameter.clamp_(min=0)


def train_recovery(
    model: nn.Module,
    sensor: Sensor,
    data: MapDataset,
    options: TrainOptions,
    *,
    seed: int,
    work_dir: Path,
    augment: Callable[[Tensor], Tensor] | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> nn.Module:
    """`model` trained in place to recover the signals of `data` from what `sensor` measures of them, in eval mode.

    An UnrolledRecovery first takes the best linear estimate of `data` for its start. For Lista, `data` are sparse
    codes and the sensor's matrix is the dictionary. Resumes from `work_dir`. Raises UserError for data that are not
    finite.
    """
    if isinstance(model, UnrolledRecovery):
        model.start.set_estimate(*linear_estimate(sensor, data, 0, labelled=False))
    result = fit(
        model,
        RecoveryError(sensor=sensor),
        data,
        options,
        seed=seed,
        work_dir=work_dir,
        augment=augment,
        on_progress=on_progress,
    )
    return result.module


def psnr(recovered: Tensor, original: Tensor, *, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB over all numbers: 10 log₁₀(peak² / mean square error); inf where equal."""
    error = float(torch.mean((recovered.double() - original.double()) ** 2))
    return float("inf") if error == 0 else float(10 * torch.log10(torch.tensor(peak**2 / error, dtype=torch.float64)))
