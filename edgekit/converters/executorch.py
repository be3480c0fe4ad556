"""ExecuTorch: lowered to XNNPACK; int8 by PT2E with XNNPACK's own quantizer, one weight scale per channel.

Activation ranges are observed twice, as exact min/max and as a histogram, and the better SQNR on the calibration
samples wins: neither is better on every model (ResNet-18: 38.9 dB min/max, 38.3 histogram; MobileNetV2: 26.6 and
28.0; measured). The choice is a note in the passport.

The same program gives the same bytes on one version of the toolchain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.artifact import Artifact, Format, Scheme
from edgekit.converters.assembly import assemble
from edgekit.converters.base import Capability, ConversionRequest
from edgekit.converters.capabilities import capabilities_of
from edgekit.converters.fidelity import reference_outputs, sqnr_db
from edgekit.converters.lowerings import find_problems
from edgekit.errors import ConversionError, MissingDependencyError, Problem

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["ExecuTorchConverter"]

_TOOLS = ("executorch", "torchao")
_COMPARED_SAMPLES = 32


class ExecuTorchConverter:
    """Writes `.pte`."""

    format = Format.EXECUTORCH

    def capabilities(self) -> tuple[Capability, ...]:
        """Every scheme; needs no toolchain installed."""
        return capabilities_of("executorch")

    def check(self, request: ConversionRequest) -> tuple[Problem, ...]:
        """Every op of the program that neither XNNPACK nor executorch's kernels have."""
        return find_problems(request.program, "executorch")

    def convert(self, request: ConversionRequest) -> Artifact:
        """Write `model.pte` and its passport. Raises ConversionError."""
        program, notes = request.program, []
        if request.scheme is Scheme.STATIC_W8A8:
            program, note = _quantized(request)
            notes.append(note)
        path = request.output_dir / f"model{Format.EXECUTORCH.suffix}"
        path.write_bytes(_lowered(program))
        return assemble(request, path, Format.EXECUTORCH, tools=_TOOLS, notes=notes)


def _lowered(program: ExportedProgram) -> bytes:
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    except ImportError as e:
        raise MissingDependencyError("converting to ExecuTorch", extra="executorch", package="executorch") from e
    try:
        edge = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner()],
            # ops outside the core ATen set may still have a kernel; find_problems has told which have none
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        return bytes(edge.to_executorch().buffer)
    except Exception as e:  # executorch raises RuntimeError, ExportError, AssertionError, … by pass
        raise ConversionError(
            f"{type(e).__name__}: {str(e)[:1000]}", backend="executorch", stage="lower", hint="ONNX may take this model"
        ) from e


def _quantized(request: ConversionRequest) -> tuple[ExportedProgram, str]:
    """The program with quantize and dequantize ops around each annotated op, and how its ranges were found."""
    import torch

    try:
        candidates = {rule: _observed(request, rule) for rule in ("minmax", "histogram")}
        scores = _scores(request, candidates)
        best = max(candidates, key=lambda rule: scores[rule])
        args, _ = request.program.example_inputs or ((), {})
        program = torch.export.export(candidates[best], args, strict=False)
    except Exception as e:  # torchao raises what its passes meet
        raise ConversionError(
            f"{type(e).__name__}: {str(e)[:1000]}", backend="executorch", stage=f"quantize {request.scheme}"
        ) from e
    told = ", ".join(f"{rule} {score:.1f} dB" for rule, score in scores.items())
    return program, f"activation ranges by {best} (simulated SQNR on calibration: {told})"


def _observed(request: ConversionRequest, rule: str) -> Any:
    """The module quantized with activation ranges by one rule, calibrated on every sample."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(request.program.module(), _quantizer(rule))
    with torch.no_grad():
        for sample in request.calibration:
            prepared(*(torch.from_numpy(array.copy()) for array in sample))
    return convert_pt2e(prepared)


def _quantizer(rule: str) -> Any:
    from dataclasses import replace

    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import MinMaxObserver

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    if rule == "minmax":
        exact = MinMaxObserver.with_args(eps=2**-12)
        config = replace(
            config,
            input_activation=replace(config.input_activation, observer_or_fake_quant_ctr=exact),
            output_activation=replace(config.output_activation, observer_or_fake_quant_ctr=exact),
        )
    return XNNPACKQuantizer().set_global(config)


def _scores(request: ConversionRequest, candidates: dict[str, Any]) -> dict[str, float]:
    """Lowest SQNR over the outputs of each simulated module on the first calibration samples, dB."""
    import numpy as np
    import torch
    from torch.utils import _pytree as pytree

    samples = request.calibration[:_COMPARED_SAMPLES]
    expected = reference_outputs(request.program, samples)
    scores = {}
    for rule, module in candidates.items():
        found = []
        with torch.no_grad():
            for sample in samples:
                flat = pytree.tree_leaves(module(*(torch.from_numpy(array.copy()) for array in sample)))
                found.append([value.numpy() for value in flat if isinstance(value, torch.Tensor)])
        values = [
            sqnr_db(np.stack([e[i] for e in expected]), np.stack([f[i] for f in found]))
            for i in range(len(expected[0]))
        ]
        scores[rule] = min((value for value in values if value is not None), default=200.0)
    return scores
