"""What is given to a converter for one scheme: a float module, or the program that was trained for the backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekit.artifact import Scheme
from edgekit.compress.qat_options import backend_trained_for
from edgekit.compress.quantize import trained_program
from edgekit.converters.shapes import Order, input_orders, layouts_after, permuted, tensors_permuted

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from edgekit.compress.student import Student
    from edgekit.converters.target_run import ConversionOptions

__all__ = ["ConvertedForm", "form_of", "trained_form"]

Samples = Sequence[Sequence["np.ndarray"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedForm:
    """A model for `convert_model`, and how it is to be converted."""

    model: nn.Module | ExportedProgram
    example_inputs: tuple[Tensor, ...]
    options: ConversionOptions
    orders: tuple[Order, ...] | None = None
    """How the program's input layout comes from the workload's; None where `convert_model` sees to that."""

    def samples(self, batches: Samples) -> tuple[tuple[np.ndarray, ...], ...]:
        """Batches in the workload's layout, as the model takes them."""
        if self.orders is None:
            return tuple(tuple(batch) for batch in batches)
        return tuple(permuted(batch, self.orders) for batch in batches)


def form_of(
    student: Student, example_inputs: tuple[Tensor, ...], target: str, scheme: Scheme, options: ConversionOptions
) -> ConvertedForm:
    """What the converter `target` is given for one scheme: what was trained for it, else the float module."""
    backend = backend_trained_for(target)
    if scheme is Scheme.STATIC_W8A8 and backend in student.trained:
        return trained_form(student, example_inputs, str(backend), options)
    return ConvertedForm(model=student.module, example_inputs=example_inputs, options=options)


def trained_form(
    student: Student, example_inputs: tuple[Tensor, ...], backend: str, options: ConversionOptions
) -> ConvertedForm:
    """What quantization-aware training made of the student for `backend`; raises ArtifactError, ExportError."""
    from edgekit.compress.qat import trained_graph

    graph = trained_graph(student.module, example_inputs, backend, student.trained[backend])
    orders = input_orders(options.input_layout, example_inputs, options.input_layouts)
    given = tensors_permuted(example_inputs, orders)
    return ConvertedForm(
        model=trained_program(graph, given, orders=orders),
        example_inputs=given,
        options=replace(
            options,
            is_trained=True,
            input_layout=None,
            input_layouts=layouts_after(orders, example_inputs, options.input_layouts),
        ),
        orders=orders,
    )
