"""Quantization-aware training of a student: for each backend, weights that were trained to be rounded as it rounds.

The float student stays as it is. What was trained is kept beside it, backend by backend, as the state of the graph
that `prepare_qat` makes of the student; `trained_graph` makes that graph again and gives it the state.

    trained = train_qat(model, example_inputs, train_set, QatOptions(epochs=2), backend="tflite", seed=0, work_dir=work)
    program = trained_program(trained, example_inputs)           # to convert with scheme static_w8a8
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.compress.quantize import QAT_BACKENDS, freeze_ranges, prepare_qat
from edgekit.compress.steps import StepContext, StepResult
from edgekit.errors import ArtifactError, RecipeError, UserError
from edgekit.training.batches import BatchSource
from edgekit.training.constraints import kept_constraints
from edgekit.training.evaluation import forward
from edgekit.training.fitting import fit
from edgekit.training.objective import CrossEntropy

if TYPE_CHECKING:
    from pathlib import Path

    from torch.fx import GraphModule

    from edgekit.compress.qat_options import QatOptions
    from edgekit.compress.student import Student, WeightConstraint
    from edgekit.training.fitting import TrainProgress
    from edgekit.training.objective import Objective
    from edgekit.workload import MapDataset

__all__ = ["run", "train_qat", "trained_graph", "trained_state"]

_STEPS = "_qat_steps"


def run(student: Student, options: QatOptions, context: StepContext) -> StepResult:
    """The recipe's `qat` step: the student with trained weights for each backend, its float weights as they were."""
    from edgekit.compress.finetune import epochs_told
    from edgekit.sensing.deployment import is_sensed
    from edgekit.training.teacher import training_data

    if is_sensed(student):
        raise RecipeError(
            "quantization-aware training of a student behind a sensing front-end cannot be done yet",
            hint="leave the qat step out: the reader and the encoder are quantized after training",
        )
    workload = context.workload
    data = training_data(workload, "quantization-aware training")
    objective = _objective(context, data, options)
    trained: dict[str, dict[str, Tensor]] = {}
    graph: nn.Module | None = None
    for backend in options.backends or tuple(QAT_BACKENDS):
        graph = train_qat(
            student.module,
            workload.example_inputs,
            data,
            options,
            backend=backend,
            objective=objective,
            constraints=student.constraints,
            seed=context.seed,
            work_dir=context.work_dir / backend,
            augment=workload.augment,
            on_progress=context.on_progress,
        )
        trained[backend] = trained_state(graph)
    names = ", ".join(trained)
    towards = f", towards the teacher with weight {options.weight:g}" if options.weight else ""
    return StepResult(
        student=replace(student, trained=trained),
        judged=graph,
        summary=f"trained with int8 rounding for {names}, {epochs_told(options)}{towards}",
    )


def _objective(context: StepContext, data: MapDataset, options: QatOptions) -> Objective:
    if not options.weight:
        return CrossEntropy(label_smoothing=options.label_smoothing)
    from edgekit.distill.response import response_distillation

    return response_distillation(
        context.teacher.module,
        data,
        options.distillation(),
        work_dir=context.work_dir,
        augmented=context.workload.augment is not None,
    )


def train_qat(
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    data: MapDataset,
    options: QatOptions,
    *,
    backend: str,
    seed: int,
    work_dir: Path,
    objective: Objective | None = None,
    constraints: Sequence[WeightConstraint] = (),
    augment: Callable[[Tensor], Tensor] | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> GraphModule:
    """The graph `prepare_qat` makes of `module`, trained by `fit`; its ranges are fixed for the last of its steps.

    `constraints` are kept, but for shared values that batch normalization, folded into them, sets apart. Resumes in
    `work_dir` what was cut off there and ends with the same weights. Raises UserError for a backend without training
    or one that rounds nothing in this module, and what `fit` raises.
    """
    graph = prepare_qat(module, example_inputs, backend=backend)
    if not any(hasattr(part, "fake_quant_enabled") for part in graph.modules()):
        raise UserError(
            f"quantization-aware training: {backend} rounds nothing in this model (no convolution or linear layer)",
            hint="leave the step out; schemes with 8-bit weights only need no training",
        )
    batch_size = min(options.batch_size, len(data))
    _see(graph, BatchSource(data, "train", labelled=objective is None or objective.needs_targets), batch_size)
    trained = len(data) - round(len(data) * options.validation)
    steps = options.epochs * max(1, trained // batch_size)
    schedule = _FixedLate(steps - round(steps * options.fixed_ranges))
    graph.register_buffer(_STEPS, torch.zeros((), dtype=torch.int64))
    handle = graph.register_forward_pre_hook(schedule)
    try:
        fit(
            graph,
            objective or CrossEntropy(label_smoothing=options.label_smoothing),
            data,
            options,
            seed=seed,
            work_dir=work_dir,
            augment=augment,
            constraints=kept_constraints(graph, constraints),
            on_progress=on_progress,
        )
    finally:
        handle.remove()
    del graph._buffers[_STEPS]
    freeze_ranges(graph)
    return graph


def _see(graph: GraphModule, source: BatchSource, batch_size: int) -> None:
    """Show the observers one batch, so that no range is empty when training (or a checkpoint of it) begins."""
    batch = source.fetch(torch.arange(batch_size))
    graph.train()
    with torch.no_grad():
        forward(graph, batch, name="train")
    graph.eval()


class _FixedLate:
    """A forward hook that counts training steps, in a buffer that checkpoints hold, and stops the observers late.

    A forward pass that records gradients is a training step: `training` of an exported graph never changes.
    """

    def __init__(self, last_observed: int) -> None:
        self.last_observed = max(1, last_observed)

    def __call__(self, graph: Any, inputs: Any) -> None:
        from torchao.quantization.pt2e import disable_observer, enable_observer

        observes = False
        if torch.is_grad_enabled():
            steps = graph.get_buffer(_STEPS)
            steps += 1
            observes = int(steps) <= self.last_observed
        graph.apply(enable_observer if observes else disable_observer)


def trained_state(graph: nn.Module) -> dict[str, Tensor]:
    """The weights and ranges of a trained graph, by name; copies."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in graph.state_dict().items()}


def trained_graph(
    module: nn.Module, example_inputs: tuple[Tensor, ...], backend: str, state: Mapping[str, Tensor]
) -> GraphModule:
    """The trained graph again, from the float `module` it was prepared from and its `trained_state`.

    Raises ArtifactError where the state is of another module, or torch captures the module in another way now.
    """
    graph = prepare_qat(module, example_inputs, backend=backend)
    versioned = OrderedDict(state)
    # without versions, observers take the state for one of an old torch and replace their least scale
    versioned._metadata = graph.state_dict()._metadata  # type: ignore[attr-defined]
    try:
        graph.load_state_dict(versioned)
    except RuntimeError as e:
        said = " ".join(line.strip() for line in str(e).splitlines()[1:3])
        raise ArtifactError(
            f"the weights trained for {backend} do not fit the student: {said}",
            hint="torch or the model's code changed since they were trained; run the step again",
        ) from e
    freeze_ranges(graph)
    return graph
