"""Self-distillation by deep supervision (Zhang et al. 2019, "Be your own teacher"): modules on the way get a head each
and learn from the output behind them; the heads are thrown away."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from edgekit.distill.features import channels_first, feature, has_channels_last, probed
from edgekit.distill.lesson import Lesson, lesson_of, plain_lesson
from edgekit.distill.losses import pooled_alike
from edgekit.distill.response import distillation_loss
from edgekit.errors import UserError, WorkloadError
from edgekit.schema import digest
from edgekit.training.batches import derive_seed, generators_kept, seed_generators
from edgekit.training.evaluation import check_targets, forward
from edgekit.training.features import captured_features
from edgekit.training.objective import Batch, Objective, StepOutcome

if TYPE_CHECKING:
    from edgekit.compress.steps import StepContext, StepResult
    from edgekit.compress.student import Student
    from edgekit.distill.options import SelfDistillOptions
    from edgekit.training.fitting import TrainProgress
    from edgekit.workload import MapDataset

__all__ = ["DeepSupervision", "ExitHead", "deep_supervision", "run", "self_distill"]

_CONVOLUTIONS: dict[int, tuple[Any, Any]] = {
    3: (nn.Conv1d, nn.BatchNorm1d),
    4: (nn.Conv2d, nn.BatchNorm2d),
    5: (nn.Conv3d, nn.BatchNorm3d),
}


def run(student: Student, options: SelfDistillOptions, context: StepContext) -> StepResult:
    """The recipe's `self_distill` step."""
    from edgekit.compress.finetune import epochs_told
    from edgekit.compress.steps import StepResult
    from edgekit.training.constraints import kept_constraints

    module = _supervised(student.module, options, lesson_of(student, context))
    kept = kept_constraints(module, student.constraints)
    told = f"trained for {epochs_told(options)} under exits at {', '.join(options.exits)}, T={options.temperature:g}"
    return StepResult(student=replace(student, module=module, constraints=kept), summary=told)


class ExitHead(nn.Module):
    """A bottleneck of depthwise-separable convolutions that halve a feature until it has the deepest's extent, and a
    classifier of its mean over the positions; on vectors a linear bottleneck."""

    def __init__(self, feature: Tensor, *, width: int, classes: int, halvings: int) -> None:
        """For features like `feature` `[B, C, …]`."""
        super().__init__()
        channels = feature.shape[1]
        if feature.ndim == 2:
            layers: list[nn.Module] = [nn.Linear(channels, width), nn.ReLU()]
        else:
            layers = []
            for index in range(max(1, halvings)):
                layers += _separable(feature.ndim, channels if index == 0 else width, width, stride=1 + (halvings > 0))
        self.bottleneck = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """(logits `[B, classes]`, the bottleneck's feature `[B, width, …]`) of a feature `[B, C, …]`."""
        narrow = self.bottleneck(value)
        pooled = narrow.flatten(2).mean(dim=2) if narrow.ndim > 2 else narrow
        return self.classifier(pooled), narrow


def _separable(axes: int, inputs: int, outputs: int, *, stride: int) -> list[nn.Module]:
    convolution, norm = _CONVOLUTIONS[axes]
    return [
        convolution(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        convolution(inputs, outputs, 1, bias=False),
        norm(outputs),
        nn.ReLU(),
    ]


@dataclass(slots=True, kw_only=True)
class DeepSupervision(Objective):
    """Cross-entropy of the output, and for every exit (section 3 of the paper):

    (1 − weight) · cross-entropy + weight · T² · KL(output ‖ exit) + hint · mean squared distance to `deepest`.
    The output and the deepest feature teach and are not taught by the exits' losses.
    """

    options: SelfDistillOptions
    heads: Mapping[str, ExitHead]
    are_last: Mapping[str, bool]
    """Which features hold their channels on the last axis."""
    _parts: nn.ModuleList = field(init=False)

    def __post_init__(self) -> None:
        self._parts = nn.ModuleList(self.heads.values())

    @property
    def key(self) -> str:
        return digest("exits", self.options.model_dump(mode="json"))

    @property
    def takes_missing_targets(self) -> bool:
        return True

    @property
    def parts(self) -> nn.Module | None:
        return self._parts

    def step(self, model: nn.Module, batch: Batch) -> StepOutcome:
        """One pass of the model, with its features sent through the heads."""
        names = [*self.heads, *([self.options.deepest] if self.options.deepest else [])]
        with captured_features(model, names) as found:
            outputs = forward(model, batch, name="train")
        check_targets(outputs, batch, name="train", some_missing=True)
        values = {
            name: channels_first(feature(found, name, who="model"), is_last=self.are_last[name]) for name in names
        }
        loss = self.loss(outputs, batch)
        for name, head in self.heads.items():
            logits, narrow = head(values[name])
            loss = loss + self._exit_loss(logits, narrow, outputs.detach(), values, batch)
        return StepOutcome(loss=loss, outputs=outputs)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The output's own cross-entropy."""
        return distillation_loss(
            outputs, None, batch.targets, temperature=1.0, weight=0.0, label_smoothing=self.options.label_smoothing
        )

    def _exit_loss(
        self, logits: Tensor, narrow: Tensor, outputs: Tensor, values: Mapping[str, Tensor], batch: Batch
    ) -> Tensor:
        loss = distillation_loss(
            logits,
            outputs,
            batch.targets,
            temperature=self.options.temperature,
            weight=self.options.weight,
            label_smoothing=self.options.label_smoothing,
        )
        if self.options.deepest is not None and self.options.hint > 0:
            drawn, target = pooled_alike(narrow, values[self.options.deepest].detach())
            loss = loss + self.options.hint * F.mse_loss(drawn, target)
        return loss


def deep_supervision(
    model: nn.Module, inputs: Sequence[Tensor], options: SelfDistillOptions, *, seed: int
) -> DeepSupervision:
    """The objective for `model`; the heads, made to fit its features on `inputs`, are drawn from `seed`.

    Raises WorkloadError for a module that does not exist or gives no feature of samples, UserError for one named twice.
    """
    if len({*options.exits, options.deepest}) <= len(options.exits):
        raise UserError("self_distill: exits and deepest name a module twice")
    names = [*options.exits, *([options.deepest] if options.deepest else [])]
    raw = probed(model, names, inputs, who="model")
    last = {name: has_channels_last(model, name, value) for name, value in raw.items()}
    values = {name: channels_first(value, is_last=last[name]) for name, value in raw.items()}
    for name, value in values.items():
        if value.ndim not in (2, *_CONVOLUTIONS) or len(value) != len(inputs[0]):
            raise WorkloadError(f"'{name}' gives {tuple(value.shape)}, which no exit can be put on")
    deepest = values[options.deepest] if options.deepest else None
    output = _output(model, inputs)
    with generators_kept():
        seed_generators(derive_seed(seed, "exits"))
        heads = {name: _head(values[name], deepest, classes=output.shape[1]) for name in options.exits}
    return DeepSupervision(options=options, heads=heads, are_last=last)


def _output(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    import torch

    from edgekit.distill.features import evaluating

    with evaluating(model):
        output = forward(model, Batch(inputs=tuple(inputs), indices=torch.arange(len(inputs[0]))), name="train")
    if output.ndim != 2:
        raise WorkloadError(f"the model's output 0 is {tuple(output.shape)}; exits classify, and need [batch, classes]")
    return output


def _head(value: Tensor, deepest: Tensor | None, *, classes: int) -> ExitHead:
    if deepest is None:
        return ExitHead(value, width=value.shape[1], classes=classes, halvings=0)
    if deepest.ndim == 2 or value.ndim != deepest.ndim:
        return ExitHead(value, width=deepest.shape[1], classes=classes, halvings=0)
    ratio = min(a / b for a, b in zip(value.shape[2:], deepest.shape[2:], strict=True))
    return ExitHead(value, width=deepest.shape[1], classes=classes, halvings=max(0, round(math.log2(ratio))))


def _supervised(model: nn.Module, options: SelfDistillOptions, lesson: Lesson) -> nn.Module:
    material = lesson.data(with_unlabelled=False, what="self-distillation")
    objective = deep_supervision(model, material.probe(), options, seed=lesson.seed)
    return lesson.trained(model, objective, material.data, options)


def self_distill(
    model: nn.Module,
    train: MapDataset,
    options: SelfDistillOptions,
    *,
    seed: int = 0,
    work_dir: Path | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> nn.Module:
    """A copy of `model`, in eval mode, trained under heads of its exits; it has the very modules it had before."""
    with plain_lesson(train=train, seed=seed, work_dir=work_dir, augment=augment, on_progress=on_progress) as lesson:
        return _supervised(model, options, lesson)
