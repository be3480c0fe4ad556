"""The sensing front-end: `Sensor` measures, `Reader` is the user's network behind a linear decoder.

    student = sense(student, (torch.zeros(1, 3, 32, 32),), SenseOptions(ratio=0.25, block=8), train_set, seed=0)

The student stays one module from signal to output (`Sensed`), so that every later step trains, prunes and judges it
as any other; `deployment` splits it for shipping. Reading measurements by a network goes back to compressed learning
(Calderbank, Jafarpour, Schapire 2009); a linear estimate first, then a CNN, is Lohit, Kulkarni and Turaga 2016, and
the matrix trained with the network is Adler, Elad and Zibulevsky 2016.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from edgekit.compress.student import SensingEdit, Student
from edgekit.errors import RecipeError, WorkloadError
from edgekit.sensing.linear import MAX_SIGNAL, linear_estimate, pseudoinverse
from edgekit.sensing.matrices import measurement_count, measurement_matrix

if TYPE_CHECKING:
    from edgekit.compress.steps import StepContext, StepResult
    from edgekit.sensing.options import SenseOptions
    from edgekit.workload import MapDataset

__all__ = ["LinearDecoder", "Reader", "Sensed", "Sensor", "restore", "run", "sense"]

MAX_MATRIX = 2**26
"""Entries of a measurement matrix (256 MB as float32); above, blocks are the way."""


class Sensor(nn.Module):
    """What a sensor node computes: `[B, C, H, W]` to `[B, m, H/b, W/b]`, `[B, C, T]` to `[B, m, T/b]`, else `[B, m]`.

    One strided convolution where there are blocks, one matrix product else.
    """

    matrix: Tensor
    """`[m, C · b · b]` (blocks of an image), `[m, C · b]` (of a series) or `[m, n]` (the whole signal)."""

    def __init__(self, matrix: Tensor, shape: Sequence[int], block: int | None, *, learned: bool = False) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.block = block
        if learned:
            self.matrix = nn.Parameter(matrix)
        else:
            self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        if self.block is None:
            return F.linear(x.flatten(1), self.matrix)
        if len(self.shape) == 3:
            kernel = self.matrix.reshape(-1, self.shape[0], self.block, self.block)
            return F.conv2d(x, kernel, stride=self.block)
        return F.conv1d(x, self.matrix.reshape(-1, self.shape[0], self.block), stride=self.block)

    def blocks(self, x: Tensor) -> Tensor:
        """The numbers each measurement is made of: `[B, …]` to `[blocks, n]`, `n` in the order of the matrix."""
        if self.block is None:
            return x.flatten(1)
        channels, *extents = x.shape[1:]
        cut = x.reshape(len(x), channels, *(part for extent in extents for part in (extent // self.block, self.block)))
        order = (0, 2, 4, 1, 3, 5) if len(extents) == 2 else (0, 2, 1, 3)
        return cut.permute(order).reshape(-1, self.matrix.shape[1])


class LinearDecoder(nn.Module):
    """x̂ = W y + v for each block, in the signal's shape: the measurements of `Sensor` to `[B, *shape]`."""

    def __init__(self, measurements: int, shape: Sequence[int], block: int | None) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.block = block
        per_block = block_size(shape, block)
        self.linear: nn.Linear | nn.Conv1d | nn.Conv2d
        if block is None:
            self.linear = nn.Linear(measurements, per_block)
        else:
            self.linear = (nn.Conv2d if len(shape) == 3 else nn.Conv1d)(measurements, per_block, 1)

    def forward(self, y: Tensor) -> Tensor:
        x: Tensor = self.linear(y)
        if self.block is None:
            return x.reshape(-1, *self.shape)
        if len(self.shape) == 3:
            return F.pixel_shuffle(x, self.block)
        channels, length = self.shape
        x = x.reshape(-1, channels, self.block, length // self.block)
        return x.transpose(2, 3).reshape(-1, channels, length)

    def set_estimate(self, weight: Tensor, offset: Tensor) -> None:
        """Take W `[n, m]` and v `[n]`."""
        with torch.no_grad():
            self.linear.weight.copy_(weight.reshape(self.linear.weight.shape))
            if self.linear.bias is not None:
                self.linear.bias.copy_(offset)


class Reader(nn.Module):
    """The part of a student that runs where measurements arrive: decoder, then the user's network.

    Takes the model's inputs, that at `position` being measurements.
    """

    def __init__(self, decoder: LinearDecoder, network: nn.Module, position: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.network = network
        self.position = position

    def forward(self, *inputs: Tensor) -> Tensor:
        given = list(inputs)
        given[self.position] = self.decoder(given[self.position])
        outputs: Tensor = self.network(*given)
        return outputs


class Sensed(nn.Module):
    """A student from signal to outputs: `reader(…, sensor(x), …)`."""

    def __init__(self, sensor: Sensor, reader: Reader) -> None:
        super().__init__()
        self.sensor = sensor
        self.reader = reader

    def forward(self, *inputs: Tensor) -> Tensor:
        given = list(inputs)
        given[self.reader.position] = self.sensor(given[self.reader.position])
        outputs: Tensor = self.reader(*given)
        return outputs


def run(student: Student, options: SenseOptions, context: StepContext) -> StepResult:
    """The recipe's `sense` step."""
    from edgekit.compress.steps import StepResult

    workload = context.workload
    sensed = sense(student, workload.example_inputs, options, workload.train, seed=context.seed)
    told = f"{_told(sensed.module)} ({options.matrix}{', to be trained' if options.learned else ''})"
    return StepResult(student=sensed, summary=told)


def sense(
    student: Student,
    example_inputs: Sequence[Tensor],
    options: SenseOptions,
    train: MapDataset | None = None,
    *,
    seed: int,
) -> Student:
    """A new student that reads measurements of one input; its outputs keep their shape, its network its weights.

    `train` is what the linear decoder is fitted to. Raises RecipeError for a block that does not divide the signal,
    an input that is not there or holds integers, a student that senses already; UserError unless 0 < m < n.
    """
    if any(isinstance(module, Sensed) for module in student.module.modules()):
        raise RecipeError("the student senses already", hint="keep one sense step")
    shape = _signal_shape(example_inputs, options)
    edit = SensingEdit(
        input=options.input,
        block=options.block,
        measurements=measurement_count(options.ratio, block_size(shape, options.block)),
        matrix=options.matrix,
        seed=seed,
        learned=options.learned,
    )
    module = _fronted(student.module, edit, shape)
    _fit_decoder(module.sensor, module.reader.decoder, options, train)
    constraints = tuple(
        constraint.model_copy(update={"parameter": f"reader.network.{constraint.parameter}"})
        for constraint in student.constraints
    )
    return replace(student, module=module, edits=(*student.edits, edit), constraints=constraints)


def restore(module: nn.Module, edits: Sequence[SensingEdit], example_inputs: Sequence[Tensor]) -> nn.Module:
    """A copy of `module` behind the front-end of each edit; the decoder's weights are not in the edit.

    Raises ValueError for an edit that does not fit the inputs.
    """
    for edit in edits:
        if edit.input >= len(example_inputs):
            raise ValueError(f"input {edit.input} is measured, the model has {len(example_inputs)}")
        module = _fronted(module, edit, tuple(example_inputs[edit.input].shape[1:]))
    return module


def _fronted(module: nn.Module, edit: SensingEdit, shape: tuple[int, ...]) -> Sensed:
    size = block_size(shape, edit.block)
    rows = measurement_matrix(edit.matrix, edit.measurements, size, seed=edit.seed)
    sensor = Sensor(torch.from_numpy(rows).float(), shape, edit.block, learned=edit.learned)
    decoder = LinearDecoder(edit.measurements, shape, edit.block)
    decoder.set_estimate(torch.zeros(size, edit.measurements), torch.zeros(size))
    fronted = Sensed(sensor, Reader(decoder, copy.deepcopy(module), edit.input))
    fronted.eval()
    return fronted


def block_size(shape: Sequence[int], block: int | None) -> int:
    """Numbers of one block of a signal of `shape`; raises ValueError where blocks do not tile it."""
    if block is None:
        return math.prod(shape)
    if len(shape) not in (2, 3):
        raise ValueError(f"blocks need an image [C, H, W] or a series [C, T], the signal is {list(shape)}")
    for extent in shape[1:]:
        if extent % block:
            known = [str(b) for b in range(2, extent + 1) if all(e % b == 0 for e in shape[1:])]
            raise ValueError(
                f"blocks of {block} do not divide a signal of {'x'.join(map(str, shape[1:]))}; "
                + (f"{', '.join(known)} would" if known else "no size would: measure it as a whole")
            )
    return math.prod((shape[0], *(block for _ in shape[1:])))


def _signal_shape(example_inputs: Sequence[Tensor], options: SenseOptions) -> tuple[int, ...]:
    if options.input >= len(example_inputs):
        raise RecipeError(f"sense.input is {options.input}; the model's inputs are 0 to {len(example_inputs) - 1}")
    example = example_inputs[options.input]
    if not example.dtype.is_floating_point:
        raise RecipeError(
            f"sense.input {options.input} is {str(example.dtype).removeprefix('torch.')}; only real numbers can be "
            "measured by a matrix",
            hint="sense an input of another kind, or leave the step out",
        )
    shape = tuple(example.shape[1:])
    try:
        size = block_size(shape, options.block)
    except ValueError as e:
        raise RecipeError(f"sense.block: {e}") from e
    if size * size * options.ratio > MAX_MATRIX:
        raise RecipeError(
            f"a matrix of {options.ratio:g} · {size} x {size} numbers is too large for a sensor node",
            hint="measure by blocks: sense: {block: 8}",
        )
    return shape


def _fit_decoder(sensor: Sensor, decoder: LinearDecoder, options: SenseOptions, train: MapDataset | None) -> None:
    if options.decoder == "pseudoinverse":
        decoder.set_estimate(pseudoinverse(sensor.matrix.detach()), torch.zeros(sensor.matrix.shape[1]))
        return
    if train is None:
        raise WorkloadError(
            "the sense step's linear decoder is fitted to training data, and train is None",
            hint="give the workload a train data set, or sense: {decoder: pseudoinverse}",
        )
    if sensor.matrix.shape[1] > MAX_SIGNAL:
        raise RecipeError(
            f"a linear decoder for {sensor.matrix.shape[1]} numbers needs their covariance; {MAX_SIGNAL} at most",
            hint="sense: {decoder: pseudoinverse}, or measure by blocks",
        )
    decoder.set_estimate(*linear_estimate(sensor, train, options.input))


def _told(module: nn.Module) -> str:
    """`measures 64 of 256 numbers of each block of 16x16`."""
    sensor = next(part for part in module.modules() if isinstance(part, Sensor))
    count, size = sensor.matrix.shape
    where = (
        "" if sensor.block is None else " of each block of " + "x".join([str(sensor.block)] * (len(sensor.shape) - 1))
    )
    return f"measures {count} of {size} numbers{where}"
