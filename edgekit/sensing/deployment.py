"""A sensed student as it ships: the node's encoder, the hub's reader, and a workload as the reader sees it.

encoder, reader = split(student.module)            # two modules, two artifacts
seen = student_workload(workload, student)         # its inputs are measurements
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgekit.errors import UserError
from edgekit.sensing.acquisition import Reader, Sensed, Sensor
from edgekit.training.batches import BatchSource

if TYPE_CHECKING:
    from edgekit.compress.student import Student
    from edgekit.workload import MapDataset, Workload

__all__ = ["MeasuredData", "deployed", "encoder_of", "encoder_workload", "is_sensed", "split", "student_workload"]


def is_sensed(student: Student) -> bool:
    """Whether the student reads measurements."""
    return isinstance(student.module, Sensed)


def split(module: nn.Module) -> tuple[Sensor, Reader]:
    """The encoder (signal to measurements) and the reader (measurements to outputs), in eval mode, weights shared.

    Raises UserError for a module without a sensing front-end.
    """
    if not isinstance(module, Sensed):
        raise UserError(
            f"{type(module).__name__} has no sensing front-end", hint="edgekit.sensing.acquisition.sense makes one"
        )
    return module.sensor.eval(), module.reader.eval()


def deployed(student: Student, workload: Workload) -> tuple[Student, Workload]:
    """What ships of a student and the workload it is fed: the reader and measurements after a `sense` step, else both
    as they are."""
    if not is_sensed(student):
        return student, workload
    reader = split(student.module)[1]
    kept = tuple(
        c.model_copy(update={"parameter": c.parameter.removeprefix("reader.")})
        for c in student.constraints
        if c.parameter.startswith("reader.")
    )
    return replace(student, module=reader, constraints=kept), student_workload(workload, student)


def encoder_of(student: Student, workload: Workload) -> tuple[Student, Workload]:
    """What a sensor node runs, with the lineage of the student it measures for, and the signals it is fed."""
    sensor = split(student.module)[0]
    return replace(student, module=sensor, constraints=()), encoder_workload(workload, student)


def student_workload(workload: Workload, student: Student) -> Workload:
    """`workload` with measurements where the student reads them; the same object for a student that does not sense."""
    if not is_sensed(student):
        return workload
    sensor, reader = split(student.module)
    place = reader.position
    with torch.no_grad():
        measured = sensor(workload.example_inputs[place])
    layouts = list(workload.input_layouts)
    if place < len(layouts) and measured.ndim != workload.example_inputs[place].ndim:
        layouts[place] = None
    return replace(
        workload,
        model=reader,
        example_inputs=_exchanged(workload.example_inputs, place, measured),
        train=None if workload.train is None else _measured(workload.train, sensor, place),
        calibration=None if workload.calibration is None else _measured(workload.calibration, sensor, place),
        evaluation=_measured(workload.evaluation, sensor, place),
        unlabelled=None,
        augment=None,  # it is made for signals
        input_layouts=tuple(layouts),
    )


def encoder_workload(workload: Workload, student: Student) -> Workload:
    """`workload` with the measured signal as its only input and the encoder as its model."""
    sensor, reader = split(student.module)
    place = reader.position
    if len(workload.example_inputs) == 1:
        return replace(workload, model=sensor, augment=None)
    return replace(
        workload,
        model=sensor,
        example_inputs=(workload.example_inputs[place],),
        train=None if workload.train is None else _OneInput(workload.train, place),
        calibration=None if workload.calibration is None else _OneInput(workload.calibration, place),
        evaluation=_OneInput(workload.evaluation, place),
        unlabelled=None,
        augment=None,
        input_layouts=workload.input_layouts[place : place + 1],
    )


class MeasuredData:
    """A data set whose items' input at `place` is measured when it is asked for."""

    def __init__(self, data: MapDataset, sensor: Sensor, place: int) -> None:
        self.data = data
        self.sensor = copy.deepcopy(sensor)
        self.place = place

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        inputs, target = self.data[index]
        given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        with torch.no_grad():
            measured = self.sensor(torch.as_tensor(given[self.place])[None])[0]
        changed = _exchanged(given, self.place, measured)
        return (changed if isinstance(inputs, tuple | list) else changed[0]), target


class _OneInput:
    """A data set of many inputs, seen as having that at `place` alone."""

    def __init__(self, data: MapDataset, place: int) -> None:
        self.data = data
        self.place = place

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        item = self.data[index]
        inputs, target = item if len(item) == 2 else (item[:-1], item[-1])  # a tensor data set of several columns
        return inputs[self.place], target


def _measured(data: MapDataset, sensor: Sensor, place: int) -> MapDataset:
    """`data` measured: a tensor data set at once, any other item by item."""
    columns = BatchSource(data, "data").tensors
    if columns is None:
        return MeasuredData(data, sensor, place)
    with torch.no_grad():
        measured = torch.cat([sensor(part) for part in torch.split(columns[place], 512)])
    return TensorDataset(*_exchanged(columns, place, measured))


def _exchanged(values: tuple[Any, ...], place: int, value: Tensor) -> tuple[Any, ...]:
    return (*values[:place], value, *values[place + 1 :])
