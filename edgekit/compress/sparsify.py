"""Unstructured and N:M pruning by magnitude: weights become zero, the architecture stays.

    sparse = sparsify(Student(module=model), SparsifyOptions(sparsity=0.9, exclude=("head",)))
    with constrained(sparse.module, sparse.constraints):
        ...  # your own training loop keeps the zeros

The zeros are plain zeros in the weights, no parametrization. They make a packed file small (`edgekit pack`); they make
nothing faster where the runtime has no sparse kernels, and those of TFLite, ExecuTorch and ONNX Runtime have none that
edgekit's artifacts use.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from logging import getLogger
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.compress.selection import per_parameter, selected_parameters
from edgekit.compress.student import Student, WeightConstraint
from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from edgekit.compress.steps import StepContext, StepResult
    from edgekit.compress.weight_options import SparsifyOptions

__all__ = ["cubic_sparsity", "run", "sparsify", "sparsity_of", "with_constraints"]

LEAST_KEPT = 0.01
"""In global ranking no layer keeps less than this share, or than what is asked for of all: an empty one passes
nothing on."""

logger = getLogger(__name__)


def run(student: Student, options: SparsifyOptions, context: StepContext) -> StepResult:
    """The recipe's `sparsify` step."""
    from edgekit.compress.finetune import trained_student
    from edgekit.compress.steps import StepResult
    from edgekit.training.batches import derive_seed
    from edgekit.training.objective import CrossEntropy
    from edgekit.training.teacher import training_data

    data = training_data(context.workload, "fine-tuning between prunings") if options.epochs else None
    objective = CrossEntropy(label_smoothing=options.label_smoothing)
    for number in range(1, options.rounds + 1):
        student = sparsify(student, options, progress=number / options.rounds)
        if data is not None:
            # A finished round's checkpoint is its result: a resumed run passes through it without training.
            inner = replace(
                context,
                seed=derive_seed(context.seed, "round", number),
                work_dir=context.work_dir / f"round-{number}",
            )
            student = trained_student(student, objective, data, options, inner)
    return StepResult(student=student, summary=_told(student, options))


def _told(student: Student, options: SparsifyOptions) -> str:
    zeros = f"{100 * sparsity_of(student):.1f} % of the weights of its layers zero"
    pattern = f" in the pattern {options.pattern}" if options.pattern else ""
    rounds = f"{options.rounds} round{'s' if options.rounds > 1 else ''}"
    return f"{zeros}{pattern}, in {rounds} of {options.epochs} epochs each"


def cubic_sparsity(target: float, progress: float, *, initial: float = 0.0) -> float:
    """The sparsity at `progress` (0 to 1) of a gradual pruning: s_f + (s_i − s_f)(1 − progress)³.

    Zhu and Gupta 2017, "To prune, or not to prune", eq. 1.
    """
    return target + (initial - target) * (1 - progress) ** 3


def sparsify(student: Student, options: SparsifyOptions, *, progress: float = 1.0) -> Student:
    """A new student whose smallest weights are zero, and constrained to stay so; `student` is left as it is.

    `progress` below 1 is a step on the cubic schedule. Raises RecipeError for a layer name that matches nothing, and
    for a pattern that fits no layer.
    """
    module = copy.deepcopy(student.module)
    chosen = selected_parameters(module, exclude=options.exclude, include=options.include, step="sparsify")
    if options.kept_of is not None:
        kept, group = options.kept_of
        kept_now = group - round(cubic_sparsity(group - kept, progress))
        masks = _pattern_masks(chosen, kept=kept_now, group=group)
    else:
        own = per_parameter(module, chosen, options.layers, default=None, where="sparsify.layers")
        masks = _magnitude_masks(chosen, own, options, progress)
    with torch.no_grad():
        for name, mask in masks.items():
            chosen[name].masked_fill_(~mask, 0)
    zeroed = [name for name, mask in masks.items() if not bool(mask.all())]
    return with_constraints(replace(student, module=module), zeroed, "sparse")


def with_constraints(student: Student, parameters: list[str], kind: str) -> Student:
    """The student with the constraint `kind` on `parameters`, each once."""
    added = [WeightConstraint.model_validate({"parameter": name, "kind": kind}) for name in parameters]
    there = student.constraints
    return replace(student, constraints=(*there, *(c for c in added if c not in there)))


def sparsity_of(student: Student) -> float:
    """The share of zeros in the parameters that are constrained to be sparse, 0 to 1."""
    parameters = dict(student.module.named_parameters(remove_duplicate=False))
    held = [parameters[c.parameter] for c in student.constraints if c.kind == "sparse" and c.parameter in parameters]
    total = sum(p.numel() for p in held)
    return sum(int((p == 0).sum()) for p in held) / total if total else 0.0


def _magnitude_masks(
    chosen: Mapping[str, Tensor], own: Mapping[str, float | None], options: SparsifyOptions, progress: float
) -> dict[str, Tensor]:
    """Name to the mask of the weights that stay: the largest of each layer, or of all layers together."""
    masks: dict[str, Tensor] = {}
    ranked_together = {}
    for name, parameter in chosen.items():
        target = own[name]
        if target is None and options.scope == "global":
            ranked_together[name] = parameter
        else:
            sparsity = cubic_sparsity(options.target if target is None else target, progress)
            masks[name] = _largest(parameter.detach().abs(), sparsity)
    if ranked_together:
        masks.update(_global_masks(ranked_together, cubic_sparsity(options.target, progress)))
    return masks


def _global_masks(chosen: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    least = min(LEAST_KEPT, 1 - sparsity)
    scores = []
    for parameter in chosen.values():
        score = parameter.detach().abs().float().reshape(-1).clone()
        safe = max(1, int(least * score.numel()))
        score[torch.topk(score, safe).indices] = torch.inf
        scores.append(score)
    kept = _largest(torch.cat(scores), sparsity)
    parts = torch.split(kept, [len(score) for score in scores])
    return {name: part.view_as(p) for (name, p), part in zip(chosen.items(), parts, strict=True)}


def _largest(score: Tensor, sparsity: float) -> Tensor:
    """True at the `1 - sparsity` largest of `score`, at one at least; of equal ones the first go first."""
    flat = score.reshape(-1)
    count = min(round(sparsity * flat.numel()), flat.numel() - 1)
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask[torch.argsort(flat, stable=True)[:count]] = False
    return mask.view_as(score)


def _pattern_masks(chosen: Mapping[str, Tensor], *, kept: int, group: int) -> dict[str, Tensor]:
    """True at the `kept` largest of every `group` neighbours along axis 1, the inputs: for a convolution at each place
    of its kernel, as sparse kernels want it. A layer whose inputs are not a multiple of `group` stays dense."""
    masks: dict[str, Tensor] = {}
    for name, parameter in chosen.items():
        if parameter.ndim < 2 or parameter.shape[1] % group:
            logger.warning("%s stays dense: %s inputs are no multiple of %d", name, [*parameter.shape][1:2], group)
            continue
        score = parameter.detach().abs().movedim(1, -1)
        order = score.reshape(*score.shape[:-1], -1, group).argsort(dim=-1, descending=True, stable=True)
        mask = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., :kept], value=True)
        masks[name] = mask.flatten(-2).movedim(-1, 1)
    if not masks:
        raise RecipeError(
            f"sparsify.pattern: no layer has a multiple of {group} inputs",
            hint="give 'sparsity' instead of a pattern",
        )
    return masks


def zeros_by_layer(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Of every parameter with a zero in it: how many zeros, of how many weights."""
    found = {name: (int((p == 0).sum()), p.numel()) for name, p in module.named_parameters()}
    return {name: counts for name, counts in found.items() if counts[0]}
