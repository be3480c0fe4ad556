"""`convert`: a module or a workload to artifacts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.artifact import Artifact, Format, NodeRule, RangeRule, RuleAction, Scheme
from edgekit.errors import Problem, UserError
from edgekit.schema import near_miss

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from edgekit.converters.base import QuantizationOptions
    from edgekit.converters.checking import CheckReport
    from edgekit.converters.conversion import ConversionOptions, ConversionOutcome, ConversionProgress

__all__ = ["check", "check_workload", "convert", "convert_workload", "quantization_options"]

Batch = Sequence["np.ndarray | Tensor"]


def convert(
    model: nn.Module | ExportedProgram,
    example_inputs: tuple[Tensor, ...] | Tensor,
    *,
    targets: Sequence[Format | str] = ("tflite", "executorch", "onnx"),
    scheme: Scheme | str = "fp32",
    calibration: Sequence[Batch] = (),
    verification: Sequence[Batch] = (),
    output_dir: Path | str = "artifacts",
    name: str = "model",
    io_dtype: Literal["int8", "float32"] = "int8",
    ranges: RangeRule | str = "auto",
    bias_correction: bool = False,
    rules: Mapping[str, RuleAction | str] | None = None,
    input_layout: str | None = None,
    dynamic: Sequence[str] = (),
    signatures: Mapping[str, tuple[Tensor, ...]] | None = None,
    flash_kb: int | None = None,
    ram_kb: int | None = None,
    jobs: int = 1,
    timeout_seconds: float = 900.0,
    memory_bytes: int | None = None,
    allow_lossy: bool = False,
) -> tuple[Artifact, ...]:
    """`model` as one artifact per target, each checked against PyTorch in its real runtime.

    `example_inputs` fixes the shapes, batch included, but for the axes named in `dynamic` (`"0:0=1..8"`).
    `calibration` and `verification` hold batches shaped like them (a sequence of tuples of arrays or tensors); static
    schemes need the first, the second is what the artifact is judged on. `rules` makes exceptions for single ops or
    submodules (`{"features.0": "float"}`). The user's module is not changed.
    Raises ExportError, UnsupportedError, ConversionError; the artifacts that were finished stay on disk.
    """
    from torch.export import ExportedProgram as Program

    from edgekit.converters.base import MicroBudget
    from edgekit.converters.conversion import ConversionOptions, convert_model
    from edgekit.converters.shapes import parse_dynamic_axis

    outcome = convert_model(
        model,
        example_inputs if isinstance(example_inputs, tuple) else (example_inputs,),
        name=name,
        targets=[str(target) for target in targets],
        schemes=_members(Scheme, [scheme], "scheme"),
        calibration=_arrays(calibration),
        verification=_arrays(verification),
        output_dir=Path(output_dir),
        signatures=signatures,
        options=ConversionOptions(
            quantization=quantization_options(
                io_dtype=io_dtype, ranges=ranges, bias_correction=bias_correction, rules=rules or {}
            ),
            is_trained=isinstance(model, Program) and _is_trained(model),
            input_layout=input_layout,
            dynamic=tuple(parse_dynamic_axis(text) for text in dynamic),
            micro=MicroBudget(flash_kb=flash_kb, ram_kb=ram_kb),
            jobs=jobs,
            timeout_seconds=timeout_seconds,
            memory_bytes=memory_bytes,
            allow_lossy=allow_lossy,
        ),
    )
    outcome.raise_failures()
    return outcome.artifacts


def quantization_options(
    *,
    io_dtype: Literal["int8", "float32"] = "int8",
    ranges: RangeRule | str = "auto",
    percentile: float = 99.99,
    bias_correction: bool = False,
    rules: Mapping[str, RuleAction | str] | None = None,
) -> QuantizationOptions:
    """The options with their names checked; raises UserError that names the nearest known one."""
    from edgekit.converters.base import QuantizationOptions

    (rule,) = _members(RangeRule, [ranges], "range rule")
    if not 50 < percentile < 100:
        raise UserError(f"percentile {percentile:g} is not between 50 and 100")
    return QuantizationOptions(
        io_dtype=io_dtype,
        ranges=rule,
        percentile=percentile,
        bias_correction=bias_correction,
        rules=tuple(
            NodeRule(node=node, action=_members(RuleAction, [action], "action")[0])
            for node, action in (rules or {}).items()
        ),
    )


def _is_trained(program: ExportedProgram) -> bool:
    """Whether a program holds the quantize ops of quantization-aware training."""
    return any("quantize_per" in str(node.target) for node in program.graph.nodes if node.op == "call_function")


def convert_workload(
    workload: str,
    *,
    params: Mapping[str, Any],
    targets: Sequence[str],
    schemes: Sequence[str],
    output_dir: Path,
    options: ConversionOptions,
    calibration: int = 200,
    verification: int = 100,
    signatures: Mapping[str, Sequence[Sequence[int]]] | None = None,
    on_progress: Callable[[ConversionProgress], None] | None = None,
) -> ConversionOutcome:
    """The artifacts of a workload's model as it is, and what failed; see `convert`.

    `signatures` gives the input shapes of each further entry point.
    """
    from edgekit.converters.conversion import convert_model, start_early
    from edgekit.converters.shapes import examples_at
    from edgekit.pipeline.samples import calibration_batches, held_out_batches
    from edgekit.workload import load_workload

    wanted = _members(Scheme, schemes, "scheme")
    needs_calibration = any(scheme.is_static for scheme in wanted)
    with start_early(targets, output_dir, options) as early:
        loaded = load_workload(workload, params).workload
        return convert_model(
            loaded.build_model(),
            loaded.example_inputs,
            name="model",
            targets=targets,
            schemes=wanted,
            calibration=calibration_batches(loaded, calibration, seed=0) if needs_calibration else (),
            verification=held_out_batches(loaded, verification, seed=0),
            output_dir=output_dir,
            signatures=examples_at(loaded.example_inputs, signatures or {}),
            options=dataclasses.replace(options, input_layouts=loaded.input_layouts),
            early=early,
            on_progress=on_progress,
        )


def _members(kind: type[Any], names: Sequence[Any], what: str) -> list[Any]:
    known = [member.value for member in kind]
    for name in names:
        if name not in known:
            raise UserError(f"unknown {what} '{name}'; {near_miss(str(name), known)}")
    return [kind(name) for name in names]


def _arrays(batches: Sequence[Batch]) -> tuple[tuple[np.ndarray, ...], ...]:
    import numpy as np

    return tuple(
        tuple(np.asarray(value) for value in (batch if isinstance(batch, tuple | list) else (batch,)))
        for batch in batches
    )


def check(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...] | Tensor,
    *,
    targets: Sequence[Format | str] = ("tflite", "executorch", "onnx"),
    scheme: Scheme | str = "fp32",
    dynamic: Sequence[str] = (),
) -> tuple[Problem, ...]:
    """Every obstacle to converting `model`, named at once; empty when none is known. Nothing is written.

    Raises ExportError when the model does not run on its example inputs.
    """
    from edgekit.converters.checking import check_model
    from edgekit.converters.conversion import ConversionOptions
    from edgekit.converters.shapes import parse_dynamic_axis

    return check_model(
        model,
        example_inputs if isinstance(example_inputs, tuple) else (example_inputs,),
        name="model",
        targets=[str(target) for target in targets],
        schemes=_members(Scheme, [scheme], "scheme"),
        options=ConversionOptions(dynamic=tuple(parse_dynamic_axis(text) for text in dynamic)),
    ).problems


def check_workload(
    workload: str,
    *,
    params: Mapping[str, Any],
    targets: Sequence[str],
    schemes: Sequence[str],
    options: ConversionOptions,
    on_progress: Callable[[ConversionProgress], None] | None = None,
) -> CheckReport:
    """Every obstacle to converting a workload's model, and the (target, scheme) pairs that have none."""
    from edgekit.converters.checking import check_model
    from edgekit.workload import load_workload

    loaded = load_workload(workload, params).workload
    return check_model(
        loaded.build_model(),
        loaded.example_inputs,
        name=loaded.name,
        targets=targets,
        schemes=_members(Scheme, schemes, "scheme"),
        options=options,
        on_progress=on_progress,
    )
