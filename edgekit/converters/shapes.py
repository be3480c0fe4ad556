"""How the shapes and layouts of a program's inputs are asked for, and what follows from it for model and samples.

Shapes are those of the example inputs unless an axis is made free (`DynamicAxis`). An input of an NCHW model can be
taken as NHWC, as a camera gives it: the program then begins with the permutation, which backends fold where they can.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from edgekit.errors import UserError
from edgekit.schema import Record

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

__all__ = [
    "DynamicAxis",
    "at_other_sizes",
    "dynamic_shapes",
    "enlarged",
    "examples_at",
    "input_orders",
    "layouts_after",
    "parse_dynamic_axis",
    "permuted",
    "permuting_inputs",
    "tensors_permuted",
]

Order = tuple[int, ...] | None
"""The permutation from the artifact's axes to the model's, or None where they are the same."""

_SPELLING = re.compile(r"(?P<input>\d+):(?P<axis>\d+)=(?P<low>\d+)\.\.(?P<high>\d+)(:(?P<name>[a-z][a-z0-9_]*))?")
_LAST = {4: (0, 3, 1, 2), 5: (0, 4, 1, 2, 3)}
"""From NHWC (NDHWC) to NCHW (NCDHW)."""
_FIRST = {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


class DynamicAxis(Record):
    """An axis of an input whose extent is free within bounds; axes of one name have the same extent."""

    input: Annotated[int, Field(ge=0)]
    axis: Annotated[int, Field(ge=0)]
    minimum: Annotated[int, Field(ge=1)] = 1
    maximum: Annotated[int, Field(ge=2)]
    name: str = "batch"


def parse_dynamic_axis(text: str) -> DynamicAxis:
    """`INPUT:AXIS=MIN..MAX[:NAME]`, so `0:0=1..8` is a batch of 1 to 8. Raises UserError."""
    found = _SPELLING.fullmatch(text.strip())
    if found is None:
        raise UserError(
            f"'{text}' is no dynamic axis",
            hint="write INPUT:AXIS=MIN..MAX[:NAME], for example 0:0=1..8 or 0:1=8..128:length",
        )
    low, high = int(found["low"]), int(found["high"])
    if not 1 <= low < high:
        raise UserError(f"'{text}': from {low} to {high} is no range", hint="the least size is 1, the most is larger")
    where, axis = int(found["input"]), int(found["axis"])
    name = found["name"] or ("batch" if axis == 0 else f"input{where}_axis{axis}")
    return DynamicAxis(input=where, axis=axis, minimum=low, maximum=high, name=name)


def dynamic_shapes(axes: Sequence[DynamicAxis], inputs: Sequence[Tensor]) -> tuple[dict[int, Any], ...] | None:
    """What torch.export takes; None when every shape is fixed. Raises UserError for an axis that is not there."""
    from torch.export import Dim

    if not axes:
        return None
    dims: dict[str, Any] = {}
    bounds: dict[str, tuple[int, int]] = {}
    shapes: tuple[dict[int, Any], ...] = tuple({} for _ in inputs)
    for axis in axes:
        if axis.input >= len(inputs) or axis.axis >= inputs[axis.input].ndim:
            told = [tuple(value.shape) for value in inputs]
            raise UserError(f"dynamic axis {axis.input}:{axis.axis} is not there; the inputs have shapes {told}")
        if bounds.setdefault(axis.name, (axis.minimum, axis.maximum)) != (axis.minimum, axis.maximum):
            raise UserError(
                f"dynamic axes named '{axis.name}' have different bounds",
                hint="axes of one name have one extent; give the other a name of its own: 1:0=1..4:other",
            )
        if axis.name not in dims:
            dims[axis.name] = Dim(axis.name, min=axis.minimum, max=axis.maximum)
        shapes[axis.input][axis.axis] = dims[axis.name]
    return shapes


def enlarged(inputs: Sequence[Tensor], axes: Sequence[DynamicAxis]) -> tuple[Tensor, ...]:
    """The inputs with at least two along each free axis: torch.export takes an extent of 1 for a fixed one."""
    import torch

    values = list(inputs)
    for axis in axes:
        value = values[axis.input]
        if value.shape[axis.axis] < 2:
            values[axis.input] = torch.cat([value, value], dim=axis.axis)
    return tuple(values)


def examples_at(
    inputs: Sequence[Tensor], signatures: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, tuple[Tensor, ...]]:
    """Example inputs of other shapes: floats drawn anew (seeded), integers the example's own values, repeated.

    Raises UserError where the number of inputs or of axes is another.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    examples = {}
    for name, shapes in signatures.items():
        if [len(shape) for shape in shapes] != [value.ndim for value in inputs]:
            told = ", ".join("x".join(map(str, value.shape)) for value in inputs)
            raise UserError(f"signature '{name}': give one shape for each input, with as many axes: {told}")
        examples[name] = tuple(
            torch.randn(tuple(shape), generator=generator, dtype=value.dtype)
            if value.is_floating_point()
            else value.reshape(-1)[torch.arange(math.prod(shape)) % value.numel()].reshape(tuple(shape))
            for value, shape in zip(inputs, shapes, strict=True)
        )
    return examples


def at_other_sizes(sample: Sequence[np.ndarray], axes: Sequence[DynamicAxis]) -> tuple[tuple[np.ndarray, ...], ...]:
    """The sample at the least and the most of every free axis, its values repeated or cut."""
    import numpy as np

    def sized(extent_of: dict[str, int]) -> tuple[np.ndarray, ...]:
        values = list(sample)
        for axis in axes:
            array = values[axis.input]
            indices = np.arange(extent_of[axis.name]) % array.shape[axis.axis]
            values[axis.input] = np.ascontiguousarray(np.take(array, indices, axis=axis.axis))
        return tuple(values)

    if not axes or not sample:
        return ()
    return sized({a.name: a.minimum for a in axes}), sized({a.name: a.maximum for a in axes})


def input_orders(wanted: str | None, inputs: Sequence[Tensor], declared: Sequence[str | None]) -> tuple[Order, ...]:
    """For each input, how the artifact's axes become the model's when images are to be in the `wanted` layout.

    `wanted` is `nchw` or `nhwc`. Inputs of four and five axes are images, channels first, unless `declared` says
    otherwise. Raises UserError when no input is an image.
    """
    if wanted is None:
        return tuple(None for _ in inputs)
    if wanted.lower() not in ("nchw", "nhwc"):
        raise UserError(f"input layout '{wanted}' is not one of nchw, nhwc")
    layouts = (*declared, *([None] * len(inputs)))
    if not any(value.ndim in _LAST for value in inputs):
        raise UserError(
            f"no input has a layout to choose: their shapes are {[tuple(value.shape) for value in inputs]}",
            hint="leave --input-layout out",
        )

    def order(value: Tensor, layout: str | None) -> Order:
        is_last = layout is not None and layout.upper().endswith("C")
        if value.ndim not in _LAST or is_last == (wanted.lower() == "nhwc"):
            return None
        return _FIRST[value.ndim] if is_last else _LAST[value.ndim]

    return tuple(order(value, layout) for value, layout in zip(inputs, layouts, strict=False))


def layouts_after(
    orders: Sequence[Order], inputs: Sequence[Tensor], declared: Sequence[str | None]
) -> tuple[str | None, ...]:
    """The layouts of the artifact's inputs, for the passport."""
    names = {(4, True): "NHWC", (5, True): "NDHWC", (4, False): "NCHW", (5, False): "NCDHW"}
    layouts = (*declared, *([None] * len(inputs)))
    return tuple(
        layout if order is None else names[value.ndim, order == _LAST[value.ndim]]
        for order, value, layout in zip(orders, inputs, layouts, strict=False)
    )


def permuted(sample: Sequence[np.ndarray], orders: Sequence[Order]) -> tuple[np.ndarray, ...]:
    """A sample in the model's layout, put into the artifact's."""
    import numpy as np

    return tuple(
        array if order is None else np.ascontiguousarray(np.transpose(array, np.argsort(order)))
        for array, order in zip(sample, orders, strict=True)
    )


def tensors_permuted(inputs: Sequence[Tensor], orders: Sequence[Order]) -> tuple[Tensor, ...]:
    """As `permuted`, of tensors."""
    import numpy as np

    return tuple(
        value if order is None else value.permute(*np.argsort(order).tolist()).contiguous()
        for value, order in zip(inputs, orders, strict=True)
    )


@contextmanager
def permuting_inputs(model: nn.Module, orders: Sequence[Order]) -> Iterator[None]:
    """The model taking its inputs in the artifact's layout.

    By a hook, not a wrapper: the names of its submodules stay those the user knows.
    """
    if all(order is None for order in orders):
        yield
        return

    def permute(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            value if order is None else value.permute(order) for value, order in zip(args, orders, strict=True)
        )

    handle = model.register_forward_pre_hook(permute)
    try:
        yield
    finally:
        handle.remove()
