"""Weight sharing: every weight of a layer is one of a few values (Han et al. 2016, "Deep Compression", section 3).

    shared = share(student, ShareOptions(bits=5), seed=0)
    with constrained(shared.module, shared.constraints):
        ...  # your own training loop moves the centroids

A shared layer computes as fast as before; its packed file is small (`edgekit pack`). Batch normalization that a
converter folds into a convolution gives each channel values of its own, and the codebook is lost in the file: fold
first, or share the float weights of layers without it.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekit.compress.codebooks import codebook_of
from edgekit.compress.selection import per_parameter, selected_parameters
from edgekit.compress.sparsify import with_constraints
from edgekit.errors import WorkloadError

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.compress.steps import StepContext, StepResult
    from edgekit.compress.student import Student
    from edgekit.compress.weight_options import ShareOptions

__all__ = ["run", "share"]


def run(student: Student, options: ShareOptions, context: StepContext) -> StepResult:
    """The recipe's `share` step."""
    from edgekit.compress.finetune import epochs_told, trained_student
    from edgekit.compress.steps import StepResult
    from edgekit.training.objective import CrossEntropy
    from edgekit.training.teacher import training_data

    shared = share(student, options, seed=context.seed)
    told = f"weights of {_layers_told(shared)} share codebooks of {options.bits} bits"
    if options.epochs == 0:
        return StepResult(student=shared, summary=told)
    data = training_data(context.workload, "fine-tuning of centroids")
    objective = CrossEntropy(label_smoothing=options.label_smoothing)
    trained = trained_student(shared, objective, data, options, context)
    return StepResult(student=trained, summary=f"{told}, centroids fine-tuned for {epochs_told(options)}")


def _layers_told(student: Student) -> str:
    count = sum(c.kind == "shared" for c in student.constraints)
    return f"{count} parameter{'s' if count > 1 else ''}"


def share(student: Student, options: ShareOptions, *, seed: int) -> Student:
    """A new student whose weights are the centroids of their layer's codebook, and constrained to share them.

    Zeros of a parameter that is constrained to be sparse stay zero and take no place in its codebook. Raises
    RecipeError for a layer name that matches nothing, WorkloadError for weights that are not finite.
    """
    module = copy.deepcopy(student.module)
    chosen = selected_parameters(module, exclude=options.exclude, include=options.include, step="share")
    bits = per_parameter(module, chosen, options.layers, default=options.bits, where="share.layers")
    sparse = {c.parameter for c in student.constraints if c.kind == "sparse"}
    with torch.no_grad():
        for name, parameter in chosen.items():
            try:
                parameter.copy_(_shared(parameter, 2 ** bits[name], name in sparse, options, seed))
            except ValueError as e:
                raise WorkloadError(f"share: {name}: {e}") from e
    return with_constraints(replace(student, module=module), list(chosen), "shared")


def _shared(parameter: Tensor, count: int, is_sparse: bool, options: ShareOptions, seed: int) -> Tensor:
    values = parameter.detach().double().cpu().numpy()
    is_coded = values != 0 if is_sparse else np.ones(values.shape, dtype=bool)
    coded = values.copy()
    if is_coded.any():
        book, nearest = codebook_of(values[is_coded], count, init=options.init, seed=seed)
        coded[is_coded] = book[nearest]
    return torch.from_numpy(coded).to(parameter)
