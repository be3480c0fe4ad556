"""TensorFlow Lite Micro: the TFLite backend's file, aligned, run in TFLM's interpreter, and as C++ source.

litert-torch and ai-edge-quantizer leave the tensors of a file at any multiple of 4 bytes; a microcontroller that
reads weights in place from flash may fault or be slow on that, so the file is aligned to 16 bytes first.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, ExtraFile, Format, MicroFacts, Passport, TensorSpec
from edgekit.converters.assembly import tool_versions
from edgekit.converters.base import Capability, ConversionRequest, MicroBudget
from edgekit.converters.calibration import input_specs
from edgekit.converters.capabilities import capabilities_of
from edgekit.converters.registry import load_converter
from edgekit.converters.tflite_micro.alignment import align
from edgekit.converters.tflite_micro.interpreter import BACKEND, PACKAGE, runtime_name, wheel_problem
from edgekit.converters.tflite_micro.kernels import KERNELS
from edgekit.converters.tflite_micro.measurement import measured_arena
from edgekit.converters.tflite_micro.sources import MicroSource
from edgekit.converters.tflite_micro.verification import checked_samples, verified
from edgekit.errors import ConversionError, MissingDependencyError, Problem
from edgekit.schema import sha256_of

if TYPE_CHECKING:
    from edgekit.converters.base import Converter

__all__ = ["TFLiteMicroConverter", "judge_budget"]


class TFLiteMicroConverter:
    """Writes `model.tflite`, `model.cc` and `model.h`. One instance serves one program, as the TFLite backend's."""

    format = Format.TFLITE

    def __init__(self) -> None:
        self._tflite: Converter = load_converter("tflite")

    def capabilities(self) -> tuple[Capability, ...]:
        """Every scheme; needs no toolchain installed."""
        return capabilities_of(BACKEND)

    def check(self, request: ConversionRequest) -> tuple[Problem, ...]:
        """What the TFLite backend finds, and what a microcontroller cannot have: free axes, several entry points.

        Which kernels are missing is known only when the file is there: `convert` says it, of all ops at once.
        """
        problems = [replace(problem, backend=BACKEND) for problem in self._tflite.check(request)]
        if (told := wheel_problem()) is not None:
            problems.append(told)
        if any(spec.bounds for spec in input_specs(request.program)):
            message = "an input has a free axis; TensorFlow Lite Micro plans its memory once, for fixed shapes"
            problems.append(Problem(backend=BACKEND, message=message, hint="convert without dynamic axes"))
        if request.signatures:
            message = "the model has several entry points; TensorFlow Lite Micro runs the first only"
            problems.append(Problem(backend=BACKEND, message=message, hint="convert each input size on its own"))
        return tuple(problems)

    def convert(self, request: ConversionRequest) -> Artifact:
        """Write the files and their passport. Raises UnsupportedError for ops without a kernel, ConversionError."""
        try:
            from tflite_micro import runtime  # noqa: F401 - said before the model is converted, which takes longer
        except ImportError as e:
            raise MissingDependencyError(f"converting to {BACKEND}", extra="micro", package=PACKAGE) from e
        made = self._tflite.convert(request)
        align(made)
        samples, source = checked_samples(request, made.passport.macs)
        arena_bytes = measured_arena(made.path, samples[0])
        fidelity, note = verified(request, made, arena_bytes, samples, source)
        passport = made.passport.model_copy(
            update={
                "sha256": sha256_of(made.path),
                "size_bytes": made.path.stat().st_size,
                "micro": _facts(made, arena_bytes, request.micro),
                "tool_versions": made.passport.tool_versions | tool_versions((PACKAGE,)),
                "notes": (*made.passport.notes, note),
                "fidelity": fidelity,
            }
        )
        passport = passport.model_copy(update={"extra_files": _write_sources(made.path, passport)})
        artifact = Artifact(path=made.path, passport=passport)
        artifact.save_passport()
        return artifact


def _facts(made: Artifact, arena_bytes: int, budget: MicroBudget) -> MicroFacts:
    """What it takes. Raises ConversionError where that is more than the budget."""
    unknown = sorted({op.name for op in made.passport.ops} - set(KERNELS))
    if unknown:  # it ran, so there is a kernel, which the application must be told how to register
        raise ConversionError(f"no name is known for the kernels of {unknown}", backend=BACKEND, stage="kernels")
    flash_bytes = made.path.stat().st_size
    judge_budget(flash_bytes, arena_bytes, budget)
    return MicroFacts(
        arena_bytes=arena_bytes,
        flash_bytes=flash_bytes,
        kernels=tuple(sorted({KERNELS[op.name] for op in made.passport.ops})),
        flash_budget_bytes=budget.flash_kb * 1024 if budget.flash_kb is not None else None,
        ram_budget_bytes=budget.ram_kb * 1024 if budget.ram_kb is not None else None,
    )


def judge_budget(flash_bytes: int, arena_bytes: int, budget: MicroBudget) -> None:
    """Raise ConversionError, naming every figure, when the model takes more than there is."""
    over = [
        f"{what} takes {taken / 1024:.1f} KiB ({taken} bytes) of {memory}, {allowed} are allowed"
        for what, memory, taken, allowed in (
            ("the model", "flash", flash_bytes, budget.flash_kb),
            ("the tensor arena", "RAM", arena_bytes, budget.ram_kb),
        )
        if allowed is not None and taken > allowed * 1024
    ]
    if over:
        raise ConversionError(
            "; ".join(over) + "; code and kernels come on top",
            backend=BACKEND,
            stage="budget",
            hint="prune or narrow the model, quantize to static_w8a8, or lower the input size",
        )


def _write_sources(path: Path, passport: Passport) -> tuple[ExtraFile, ...]:
    """`model.cc` and `model.h` beside the model file."""
    assert passport.micro is not None  # noqa: S101 - set by the caller
    source = MicroSource(
        name=passport.name.removesuffix(f".{BACKEND}"),
        content=path.read_bytes(),
        sha256=passport.sha256,
        kernels=passport.micro.kernels,
        arena_bytes=passport.micro.arena_bytes,
        runtime=runtime_name(),
        inputs=tuple(_shown(spec) for spec in passport.inputs),
        outputs=tuple(_shown(spec) for spec in passport.outputs),
    )
    written = []
    for name, text in (("model.cc", source.source()), ("model.h", source.header())):
        file = path.with_name(name)
        file.write_text(text, encoding="utf-8", newline="\n")
        written.append(ExtraFile(path=name, sha256=sha256_of(file), size_bytes=file.stat().st_size))
    return tuple(written)


def _shown(spec: TensorSpec) -> str:
    """`x: int8 [1, 3, 32, 32], real = (q - 3) * 0.0157`."""
    text = f"{spec.name}: {spec.dtype} [{', '.join(str(n) for n in spec.shape)}]"
    if spec.quantization is not None and len(spec.quantization.scale) == 1:
        zero_point = spec.quantization.zero_point[0]
        text += f", real = (q {'+' if zero_point < 0 else '-'} {abs(zero_point)}) * {spec.quantization.scale[0]!r}"
    return " ".join(text.split())
