"""Weight distillation (Lin et al. 2021, "Weight Distillation: Transferring the Knowledge in Neural Network
Parameters"): the student's weights are made from the teacher's, the making is learned, and the result is fine-tuned.

A student's parameter S is made from those of a group of adjacent teacher layers T_1 … T_g:

    S = tanh(Σ_l α_l · T_l ×_1 M_1 ×_2 M_2 …) ⊙ W + B

where M_a projects axis a from the teacher's size to the student's, α weighs the layers, and W and B have the shape of
S; all of them are learned while the teacher's weights stay. M and α start not at random but as a selection: one layer
of the group, and evenly spaced indices of every axis, the same for every layer of one size, with W such that S is that
selection itself. So the student begins with a part of the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgekit.distill.distilling import distil, told
from edgekit.distill.lesson import Lesson, lesson_of, plain_lesson
from edgekit.distill.matching import LayerMatch, counterparts, match_layers
from edgekit.errors import UserError

if TYPE_CHECKING:
    from edgekit.compress.steps import StepContext, StepResult
    from edgekit.compress.student import Student
    from edgekit.distill.options import WeightDistillOptions
    from edgekit.training.fitting import TrainProgress
    from edgekit.workload import MapDataset

__all__ = ["ParameterGenerator", "WeightGenerator", "run", "selected_student", "weight_distill"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def run(student: Student, options: WeightDistillOptions, context: StepContext) -> StepResult:
    """The recipe's `weight_distill` step, of the student's shape as it is; `architecture` gives it another."""
    from edgekit.compress.steps import StepResult

    if student.constraints:
        raise UserError(
            "weight distillation makes the student's weights anew, and its zeros or shared values would be lost",
            hint="put weight_distill before the steps that make them",
        )
    module, generator = _weight_distilled(student.module, context.teacher.module, options, lesson_of(student, context))
    done = (
        f"{generator.made} of {generator.parameters_in_all} parameters made from the teacher's over "
        f"{options.generator_epochs} epochs, then distilled {told(options)}"
    )
    return StepResult(student=replace(student, module=module), summary=done)


class ParameterGenerator(nn.Module):
    """One student's parameter out of a group of the teacher's; `forward()` gives it."""

    weights: Tensor

    def __init__(self, teachers: Sequence[Tensor], shape: Sequence[int], *, has_kernel: bool = False) -> None:
        """For teacher's parameters with as many axes as `shape`; with a kernel, axes 2 and on are its extent."""
        super().__init__()
        self.shape = tuple(shape)
        self.sources = len(teachers)
        for index, value in enumerate(teachers):
            self.register_buffer(f"teacher_{index}", value.detach().clone(), persistent=False)
        sizes = {(axis, t.shape[axis]) for t in teachers for axis in range(len(shape)) if t.shape[axis] != shape[axis]}
        self.projections = nn.ParameterDict(
            {
                f"{a}_{size}": nn.Parameter(_selection(size, self.shape[a], is_kernel=has_kernel and a >= 2))
                for a, size in sorted(sizes)
            }
        )
        first = torch.zeros(self.sources)
        first[0] = 1.0
        self.alpha = nn.Parameter(first)
        with torch.no_grad():
            start = self._projected()
            squashed = torch.tanh(start)
            scale = torch.where(squashed.abs() > 1e-6, start / squashed, 1.0)
        self.scale = nn.Parameter(scale)
        self.shift = nn.Parameter(torch.zeros(self.shape))

    def _projected(self) -> Tensor:
        total: Tensor | None = None
        for index in range(self.sources):
            value: Tensor = getattr(self, f"teacher_{index}")
            for axis, wanted in enumerate(self.shape):
                if value.shape[axis] != wanted:
                    matrix = self.projections[f"{axis}_{value.shape[axis]}"]
                    value = torch.tensordot(value, matrix, dims=([axis], [0])).movedim(-1, axis)
            part = self.alpha[index] * value
            total = part if total is None else total + part
        assert total is not None  # noqa: S101 - a group has a layer
        return total

    def forward(self) -> Tensor:
        """The parameter, of the student's shape."""
        return torch.tanh(self._projected()) * self.scale + self.shift


def _selection(size: int, wanted: int, *, is_kernel: bool = False) -> Tensor:
    """`[size, wanted]`: column j takes index floor(j · size / wanted), so a widened axis repeats.

    A kernel keeps its middle, and a widened one has zeros around it.
    """
    matrix = torch.zeros(size, wanted)
    columns = torch.arange(wanted)
    rows = columns * size // wanted
    if is_kernel:
        rows = columns + (size - wanted) // 2
        columns = columns[(rows >= 0) & (rows < size)]
        rows = columns + (size - wanted) // 2
    matrix[rows, columns] = 1.0
    return matrix


class WeightGenerator(nn.Module):
    """A student whose matched parameters are made from the teacher's each time it runs; the others are its own."""

    def __init__(self, student: nn.Module, teacher: nn.Module, matches: Sequence[LayerMatch]) -> None:
        super().__init__()
        self.student = copy.deepcopy(student)
        theirs = dict(teacher.named_modules())
        makers: dict[str, ParameterGenerator] = {}
        for match in matches:
            module = self.student.get_submodule(match.student)
            has_kernel = isinstance(module, _CONVOLUTIONS)
            for name, own in module.named_parameters(recurse=False):
                sources = [v for t in match.teachers for v in counterparts(name, module, theirs[t])]
                full = f"{match.student}.{name}" if match.student else name
                makers[full] = ParameterGenerator(sources, own.shape, has_kernel=has_kernel)
            _start_buffers(module, theirs[match.teachers[0]])
        # Tied parameters show under one name only: the first.
        self.names = [name for name, _ in self.student.named_parameters() if name in makers]
        self.makers = nn.ModuleList(makers[name] for name in self.names)

    @property
    def made(self) -> int:
        """How many of the student's parameters (numbers) are made."""
        own = dict(self.student.named_parameters())
        return sum(own[name].numel() for name in self.names)

    @property
    def parameters_in_all(self) -> int:
        return sum(p.numel() for p in self.student.parameters())

    def generated(self) -> dict[str, Tensor]:
        """The made parameters by name."""
        return {name: maker() for name, maker in zip(self.names, self.makers, strict=True)}

    def forward(self, *inputs: Tensor) -> Any:
        """What the student gives with the weights made now."""
        return functional_call(self.student, self.generated(), inputs)

    def settled(self) -> nn.Module:
        """A plain student with the weights as they are made now, in eval mode."""
        module = copy.deepcopy(self.student)
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, value in self.generated().items():
                parameters[name].copy_(value)
        for parameter in parameters.values():
            parameter.grad = None
        return module.eval()


def _start_buffers(student: nn.Module, teacher: nn.Module) -> None:
    """Running statistics of the student's layer as the same selection of the teacher's."""
    theirs = dict(teacher.named_buffers(recurse=False))
    with torch.no_grad():
        for name, own in student.named_buffers(recurse=False):
            value = theirs.get(name)
            if value is None or value.ndim != own.ndim or not own.is_floating_point():
                continue
            for axis, wanted in enumerate(own.shape):
                value = value.index_select(axis, torch.arange(wanted) * value.shape[axis] // wanted)
            own.copy_(value)


def _weight_distilled(
    student: nn.Module, teacher: nn.Module, options: WeightDistillOptions, lesson: Lesson
) -> tuple[nn.Module, WeightGenerator]:
    matches = match_layers(student, teacher, layers=options.layers, exclude=options.exclude)
    generator = WeightGenerator(student, teacher, matches)
    first = options.model_copy(
        update={
            "epochs": options.generator_epochs,
            "learning_rate": options.generator_learning_rate or options.learning_rate,
            "features": _inside(options.features),
            "attention": _inside(options.attention),
            "relations": _inside(options.relations),
        }
    )
    trained, _ = distil(generator, teacher, first, lesson.within("generator"))
    assert isinstance(trained, WeightGenerator)  # noqa: S101 - for mypy; training keeps the type
    module, _ = distil(trained.settled(), teacher, options, lesson.within("student"))
    return module, trained


def _inside(options: Any) -> Any:
    """The same pairs, of a student that is the generator's submodule `student`."""
    if options is None or not options.pairs:
        return options
    return options.model_copy(update={"pairs": {f"student.{a}": b for a, b in options.pairs.items()}})


def weight_distill(
    student: nn.Module,
    teacher: nn.Module,
    train: MapDataset | None,
    options: WeightDistillOptions,
    *,
    unlabelled: MapDataset | None = None,
    seed: int = 0,
    work_dir: Path | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> nn.Module:
    """A module of the student's architecture whose weights were made from the teacher's and then fine-tuned.

    Layers that are not matched start from the weights `student` has. Raises WorkloadError where nothing can be matched.
    """
    with plain_lesson(
        train=train, unlabelled=unlabelled, seed=seed, work_dir=work_dir, augment=augment, on_progress=on_progress
    ) as lesson:
        return _weight_distilled(student, teacher, options, lesson)[0]


def selected_student(
    student: nn.Module, teacher: nn.Module, layers: Mapping[str, str | Sequence[str]] | None = None
) -> nn.Module:
    """The student as it is before any training: the selection of the teacher's layers and channels."""
    return WeightGenerator(student, teacher, match_layers(student, teacher, layers=layers)).settled()
