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
        return tuple(
            Term(kind=kind, student=a, teacher=b, weight=weight, loss=_loss(kind, 0, 0))
            for kind, a, b, weight in wanted
        )
    check_names(teacher, theirs, who="teacher")
    students = probed(student, ours, inputs, who="student")
    teachers = probed(teacher, theirs, inputs, who="teacher")
    terms = []
    with generators_kept():
        seed_generators(derive_seed(seed, "distillation terms"))
        for kind, a, b, weight in wanted:
            made = _term(kind, a, b, weight, (student, teacher), (students, teachers))
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


def _term(
    kind: str,
    ours: str,
    theirs: str,
    weight: float,
    models: tuple[nn.Module, nn.Module],
    features: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
) -> Term:
    if not ours:
        return Term(kind=kind, student=ours, teacher=theirs, weight=weight, loss=_loss(kind, 0, 0))
    a, b = features[0][ours], features[1][theirs]
    last = has_channels_last(models[0], ours, a), has_channels_last(models[1], theirs, b)
    channels = [
        v.shape[-1] if is_last else v.shape[1] if v.ndim > 1 else 0 for v, is_last in zip((a, b), last, strict=True)
    ]
    if 0 in channels:
        raise WorkloadError(
            f"'{ours}' and '{theirs}' give {tuple(a.shape)} and {tuple(b.shape)}: no features of samples"
        )
    return Term(
        kind=kind,
        student=ours,
        teacher=theirs,
        weight=weight,
        loss=_loss(kind, *channels),
        student_last=last[0],
        teacher_last=last[1],
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
