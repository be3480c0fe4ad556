"""The terms of a distillation beside the responses: each between one feature of the student and one of the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.distill.features import channels_first, feature, has_channels_last, probed
from edgekit.distill.losses import AttentionTransfer, Hint, RelationalAngle, RelationalDistance
from edgekit.errors import WorkloadError
from edgekit.training.batches import derive_seed, generators_kept, seed_generators
from edgekit.training.features import check_names

if TYPE_CHECKING:
    from edgekit.distill.options import DistillOptions

__all__ = ["OUTPUT", "Term", "make_terms"]

OUTPUT = ""
"""The name of a model's output 0 among its features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """`weight` times `loss` of the student's feature and the teacher's."""

    kind: str
    student: str
    teacher: str
    weight: float
    loss: nn.Module
    student_last: bool = False
    teacher_last: bool = False

    def __call__(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """The weighted loss, of what the modules of both gave."""
        ours = channels_first(feature(student, self.student, who="student").float(), is_last=self.student_last)
        theirs = channels_first(feature(teacher, self.teacher, who="teacher").float(), is_last=self.teacher_last)
        loss: Tensor = self.loss(ours, theirs)
        return self.weight * loss


def make_terms(
    student: nn.Module, teacher: nn.Module | None, options: DistillOptions, inputs: Sequence[Tensor], *, seed: int
) -> tuple[Term, ...]:
    """The terms `options` ask for, tried on `inputs`; regressors are drawn from `seed`.

    Raises WorkloadError for a module that does not exist in student or teacher, or gives features that cannot be
    compared.
    """
    wanted = _wanted(options)
    ours = [name for _, name, _, _ in wanted if name]
    theirs = [name for _, _, name, _ in wanted if name]
    check_names(student, ours, who="student")
    if teacher is None:
        return tuple(_term(kind, OUTPUT, OUTPUT, weight, None) for kind, _, _, weight in wanted)
    check_names(teacher, theirs, who="teacher")
    students = probed(student, ours, inputs, who="student")
    teachers = probed(teacher, theirs, inputs, who="teacher")
    seen = _Seen(student, teacher, students, teachers)
    terms = []
    with generators_kept():
        seed_generators(derive_seed(seed, "distillation terms"))
        for kind, a, b, weight in wanted:
            made = _term(kind, a, b, weight, seen)
            if a:
                _try(made, students, teachers)
            terms.append(made)
    return tuple(terms)


def _wanted(options: DistillOptions) -> list[tuple[str, str, str, float]]:
    """(kind, student's module, teacher's module, weight) of each term."""
    found: list[tuple[str, str, str, float]] = []
    for kind, chosen in (("features", options.features), ("attention", options.attention)):
        if chosen is not None:
            found += [(kind, a, b, chosen.weight) for a, b in chosen.pairs.items()]
    if options.relations is not None:
        for a, b in (options.relations.pairs or {OUTPUT: OUTPUT}).items():
            for kind, weight in (("distance", options.relations.distance), ("angle", options.relations.angle)):
                if weight > 0:
                    found.append((kind, a, b, weight))
    return found


@dataclass(frozen=True, slots=True)
class _Seen:
    """Both models and what their named modules give."""

    student: nn.Module
    teacher: nn.Module
    ours: Mapping[str, Tensor]
    theirs: Mapping[str, Tensor]


def _term(kind: str, ours: str, theirs: str, weight: float, seen: _Seen | None) -> Term:
    if seen is None or ours == OUTPUT:
        return Term(kind=kind, student=OUTPUT, teacher=OUTPUT, weight=weight, loss=_loss(kind, 0, 0))
    a, b = seen.ours[ours], seen.theirs[theirs]
    if a.ndim < 2 or b.ndim < 2:
        raise WorkloadError(f"'{ours}' and '{theirs}' give {tuple(a.shape)} and {tuple(b.shape)}: no feature a sample")
    a_last = has_channels_last(seen.student, ours, a)
    b_last = has_channels_last(seen.teacher, theirs, b)
    return Term(
        kind=kind,
        student=ours,
        teacher=theirs,
        weight=weight,
        loss=_loss(kind, a.shape[-1 if a_last else 1], b.shape[-1 if b_last else 1]),
        student_last=a_last,
        teacher_last=b_last,
    )


def _loss(kind: str, ours: int, theirs: int) -> nn.Module:
    if kind == "features":
        return Hint(ours, theirs)
    return {"attention": AttentionTransfer, "distance": RelationalDistance, "angle": RelationalAngle}[kind]()


def _try(term: Term, students: Mapping[str, Tensor], teachers: Mapping[str, Tensor]) -> None:
    """One look at the features the term compares; raises WorkloadError, naming the pair, where they do not fit."""
    try:
        with torch.no_grad():
            term(students, teachers)
    except (WorkloadError, RuntimeError) as e:
        said = e.message if isinstance(e, WorkloadError) else str(e).splitlines()[0]
        raise WorkloadError(
            f"{term.kind}: '{term.student}' of the student and '{term.teacher}' of the teacher do not fit: {said}",
            hint=e.hint if isinstance(e, WorkloadError) else None,
        ) from e
