"""The recipe's `architecture` step: from here on the student is the workload's own `student`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.distill.features import evaluating
from edgekit.errors import WorkloadError
from edgekit.training.batches import derive_seed, generators_kept, seed_generators

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.compress.steps import StepContext, StepResult
    from edgekit.compress.student import Student
    from edgekit.distill.options import ArchitectureOptions

__all__ = ["reinitialised", "run"]


def run(student: Student, options: ArchitectureOptions, context: StepContext) -> StepResult:
    """Replace the student by the workload's; raises WorkloadError where it has none or one that gives other outputs."""
    from edgekit.compress.cost import count_parameters
    from edgekit.compress.steps import StepResult
    from edgekit.compress.student import Student

    workload = context.workload
    with generators_kept():
        seed_generators(derive_seed(context.seed, "initial weights of the student"))
        module = workload.build_student().eval()
    is_new = not isinstance(workload.student, nn.Module)
    if options.weights == "fresh" and not is_new:
        module, is_new = reinitialised(module, seed=derive_seed(context.seed, "fresh student")), True
    _check_outputs(module, context.teacher.module, workload.example_inputs)
    weights = "new weights" if is_new else "weights of its own"
    told = f"{type(module).__name__} with {count_parameters(module):,} parameters and {weights} takes over"
    return StepResult(student=Student(module=module, base="student"), summary=told)


def _check_outputs(student: nn.Module, teacher: nn.Module, inputs: Sequence[Tensor]) -> None:
    ours, theirs = (_output(module, inputs, who) for module, who in ((student, "student"), (teacher, "teacher")))
    if ours.shape != theirs.shape:
        raise WorkloadError(
            f"the workload's student gives {tuple(ours.shape)} where its model gives {tuple(theirs.shape)}",
            hint="both answer the same question: give the student's last layer as many outputs",
        )


def _output(module: nn.Module, inputs: Sequence[Tensor], who: str) -> Tensor:
    try:
        with evaluating(module):
            output = module(*inputs)
    except (RuntimeError, ValueError, TypeError) as e:
        said = str(e).strip().splitlines()
        raise WorkloadError(
            f"the {who} cannot take the workload's example_inputs: {said[0] if said else type(e).__name__}"
        ) from e
    value = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(value, Tensor):
        raise WorkloadError(f"the {who}'s output 0 is a {type(value).__name__}, not a tensor")
    return value


def reinitialised(module: nn.Module, *, seed: int) -> nn.Module:
    """A copy of `module` with new weights from its layers' own `reset_parameters`, in eval mode.

    Raises WorkloadError for a module that holds parameters and has no such function.
    """
    import copy

    fresh = copy.deepcopy(module)
    with generators_kept(), torch.no_grad():
        seed_generators(seed)
        for name, layer in fresh.named_modules():
            own = [n for n, _ in layer.named_parameters(recurse=False)]
            reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if callable(reset) and (own or not any(True for _ in layer.children())):
                reset()
            elif own:
                raise WorkloadError(
                    f"'{name or type(layer).__name__}' holds parameters ({', '.join(own[:3])}) that cannot be drawn "
                    f"anew: {type(layer).__name__} has no reset_parameters()",
                    hint="give it one, or give the workload a function that makes the model instead of an instance",
                )
    for parameter in fresh.parameters():
        parameter.grad = None
    return fresh.eval()
