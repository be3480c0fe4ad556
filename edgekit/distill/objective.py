"""What a distilled student is trained by: responses, features and relations of the teacher, in any combination."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.distill.features import evaluating
from edgekit.distill.response import check_same_outputs, distillation_loss, teacher_responses
from edgekit.distill.stored import StoredOutputs
from edgekit.distill.terms import OUTPUT, Term, make_terms
from edgekit.errors import UserError, WorkloadError
from edgekit.schema import digest
from edgekit.training.evaluation import check_targets, forward
from edgekit.training.features import captured_features
from edgekit.training.fitting import weights_digest
from edgekit.training.objective import Batch, Objective, StepOutcome

if TYPE_CHECKING:
    from edgekit.distill.lesson import Lesson, LessonData
    from edgekit.distill.options import DistillOptions

__all__ = ["Distillation", "distillation"]


@dataclass(slots=True, kw_only=True)
class Distillation(Objective):
    """Hinton's loss plus the terms; the teacher runs on each batch, unless its stored responses are all that is asked.

    A batch without targets has no cross-entropy, a sample without one no part in it.
    """

    options: DistillOptions
    teacher: nn.Module | None
    """In eval mode; never trained. None where `responses` are all there is."""
    teacher_digest: str
    responses: Tensor | None = None
    """`[N, classes]` float32, by sample."""
    terms: tuple[Term, ...] = ()
    has_targets: bool = True
    _learned: nn.ModuleList = field(init=False)
    _placed: nn.Module | None = field(init=False, default=None)
    """The teacher where it is needed, if that is not where it was given."""

    def __post_init__(self) -> None:
        self._learned = nn.ModuleList(term.loss for term in self.terms)

    @property
    def key(self) -> str:
        settings = self.options.model_dump(mode="json")
        return digest("distillation", settings, self.teacher_digest, self.responses is None, self.has_targets)

    @property
    def needs_targets(self) -> bool:
        return self.has_targets

    @property
    def takes_missing_targets(self) -> bool:
        return True

    @property
    def parts(self) -> nn.Module | None:
        return self._learned

    def to(self, device: torch.device) -> None:
        """Use a copy of the teacher on `device`, where it is on another; the one that was given stays where it is."""
        if self.teacher is None:
            return
        home = next((value.device for value in self.teacher.state_dict().values()), device)
        self._placed = None if home == device else copy.deepcopy(self.teacher).to(device)

    def step(self, model: nn.Module, batch: Batch) -> StepOutcome:
        """One pass of the student and, where it is needed, of the teacher."""
        with captured_features(model, self._modules(ours=True), who="student") as ours:
            outputs = forward(model, batch, name="train")
        if batch.targets is not None:
            check_targets(outputs, batch, name="train", some_missing=True)
        return StepOutcome(loss=self._loss(outputs, ours, batch), outputs=outputs)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The loss of `outputs` `[B, classes]` where no term looks inside the student."""
        if self._modules(ours=True):
            raise UserError("this distillation compares features: it is trained by `step`, not by the outputs alone")
        return self._loss(outputs, {}, batch)

    def _loss(self, outputs: Tensor, ours: Mapping[str, Tensor], batch: Batch) -> Tensor:
        logits, theirs = self._taught(outputs, batch)
        loss = distillation_loss(
            outputs,
            logits,
            batch.targets,
            temperature=self.options.temperature,
            weight=self.options.weight,
            label_smoothing=self.options.label_smoothing,
        )
        for term in self.terms:
            taught = theirs if logits is None else {OUTPUT: logits, **theirs}
            loss = loss + term({OUTPUT: outputs, **ours}, taught)
        return loss

    def _taught(self, outputs: Tensor, batch: Batch) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """The teacher's logits, where they are asked for, and its features."""
        needs_logits = _needs_logits(self.options)
        if self.responses is not None:
            logits = self.responses.index_select(0, batch.indices).to(outputs.device)
            self._check(outputs, logits)
            return logits, {}
        names = self._modules(ours=False)
        if self.teacher is None or not (needs_logits or names):
            return None, {}
        teacher = self._placed if self._placed is not None else self.teacher
        with captured_features(teacher, names, who="teacher") as found, evaluating(teacher):
            logits = forward(teacher, batch, name="train").float()
        if not needs_logits:
            return None, found
        self._check(outputs, logits)
        return logits, found

    def _check(self, outputs: Tensor, logits: Tensor) -> None:
        if self.options.weight > 0:  # relations compare outputs of any width
            check_same_outputs(outputs, logits)

    def _modules(self, *, ours: bool) -> list[str]:
        names = (term.student if ours else term.teacher for term in self.terms)
        return [name for name in dict.fromkeys(names) if name]


def _needs_logits(options: DistillOptions) -> bool:
    on_outputs = options.relations is not None and not options.relations.pairs
    return options.weight > 0 or on_outputs


def distillation(
    student: nn.Module,
    teacher: nn.Module | StoredOutputs,
    material: LessonData,
    options: DistillOptions,
    lesson: Lesson,
) -> Distillation:
    """The objective of one training run; without augmentation and features the teacher runs once per sample.

    Raises WorkloadError for outputs of other shapes, a pair that does not exist or does not fit, stored outputs that
    are not these samples', and a run in which nothing would be learned from.
    """
    inputs = material.probe()
    _check_something_is_learned(options, material)
    if isinstance(teacher, StoredOutputs):
        stored = teacher.checked(material, is_augmented=lesson.is_augmented)
        if options.weight > 0:
            with evaluating(student):
                outputs = forward(student, _batch(inputs), name="train")
            check_same_outputs(outputs, torch.from_numpy(stored[: len(inputs[0])]))
        return Distillation(
            options=options,
            teacher=None,
            teacher_digest=teacher.digest,
            responses=torch.from_numpy(stored),
            terms=make_terms(student, None, options, inputs, seed=lesson.seed),
            has_targets=material.has_targets,
        )
    terms = make_terms(student, teacher, options, inputs, seed=lesson.seed)
    if options.weight > 0:
        _check_outputs(student, teacher, inputs)
    looks_inside = any(term.teacher for term in terms)
    responses = None
    if _needs_logits(options) and not looks_inside and not lesson.is_augmented:
        found = teacher_responses(teacher, material.data, work_dir=lesson.work_dir, has_targets=material.has_targets)
        responses = torch.from_numpy(found)
    return Distillation(
        options=options,
        teacher=teacher,
        teacher_digest=weights_digest(teacher),
        responses=responses,
        terms=terms,
        has_targets=material.has_targets,
    )


def _check_something_is_learned(options: DistillOptions, material: LessonData) -> None:
    from_teacher = options.weight > 0 or options.features or options.attention or options.relations
    if not from_teacher and (not material.has_targets or material.unlabelled):
        raise WorkloadError(
            "weight: 0 and no features, attention or relations leave nothing to learn from samples without labels",
            hint="raise weight (0.7, say), or leave the unlabelled data out with unlabelled: false",
        )


def _check_outputs(student: nn.Module, teacher: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    batch = _batch(inputs)
    with evaluating(student), evaluating(teacher):
        check_same_outputs(forward(student, batch, name="train"), forward(teacher, batch, name="train"))


def _batch(inputs: tuple[Tensor, ...]) -> Batch:
    return Batch(inputs=inputs, indices=torch.arange(len(inputs[0])))
