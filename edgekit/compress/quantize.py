"""Quantization-aware training: a module that rounds while it learns, and the program a converter takes from it.

`prepare_qat` gives a graph with fake quantization where the backend's own PT2E quantizer puts it, so that what is
trained is what the file will compute. Batch normalization behind a convolution or linear layer is folded into it first,
with the statistics it has learned; what is trained is then the very weight that is rounded, and nothing differs between
training and evaluation. (torchao's own fusion for training forgets a batch normalization's `eps` and `momentum`.)
Dropout is inactive.

    prepared = prepare_qat(model, example_inputs, backend="executorch")
    ...                                    # any training loop; late in it: freeze_ranges(prepared)
    program = trained_program(prepared, example_inputs)

A conversion of the program is asked for with `is_trained=True` and the scheme `static_w8a8`.
"""

from __future__ import annotations

import copy
import importlib
import logging
from typing import TYPE_CHECKING, Any

from edgekit.converters.shared_constants import keep_unfoldable_norms
from edgekit.errors import ExportError, MissingDependencyError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from edgekit.converters.shapes import Order

_log = logging.getLogger(__name__)

__all__ = ["QAT_BACKENDS", "freeze_ranges", "is_trained_program", "prepare_qat", "trained_program"]

_FROZEN = "_has_frozen_ranges"

QAT_BACKENDS = {
    "executorch": "edgekit.converters.executorch_quantizer",
    "tflite": "edgekit.converters.tflite_trained",
    "onnx": "edgekit.converters.onnx_trained",
}
"""Backend to the module whose `qat_quantizer()` says where and how it rounds."""


def prepare_qat(module: nn.Module, example_inputs: tuple[Tensor, ...], *, backend: str = "executorch") -> GraphModule:
    """A trainable copy of the module that rounds weights and activations as the backend's int8 file does.

    It takes any batch size where the module does, else that of the example. Raises UserError for a backend without
    quantization-aware training, ExportError for a module torch.export refuses.
    """
    quantizer = _quantizer(backend)
    try:
        from torchao.quantization.pt2e import allow_exported_model_train_eval
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
        from torchao.quantization.pt2e.utils import _fuse_conv_bn_, _fuse_linear_bn_
    except ImportError as e:
        raise MissingDependencyError("quantization-aware training", extra="executorch", package="torchao") from e
    graph = _captured(copy.deepcopy(module).eval(), example_inputs)
    keep_unfoldable_norms(graph)
    _fuse_conv_bn_(graph)
    _fuse_linear_bn_(graph)
    prepared: GraphModule = prepare_qat_pt2e(graph, quantizer)
    for parameter in prepared.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    allow_exported_model_train_eval(prepared)
    _keep_mode(prepared)
    return prepared


def _keep_mode(prepared: GraphModule) -> None:
    """Make `train()` and `eval()`, which training loops call, switch the ranges' observers and nothing else."""

    def train(mode: bool = True) -> GraphModule:
        if not prepared.__dict__.get(_FROZEN, False):
            _observe(prepared, mode)
        return prepared

    prepared.train = train  # type: ignore[method-assign]
    prepared.eval = lambda: train(False)  # type: ignore[method-assign]


def _observe(prepared: GraphModule, is_on: bool) -> None:
    from torchao.quantization.pt2e import disable_observer, enable_observer

    prepared.apply(enable_observer if is_on else disable_observer)


def freeze_ranges(prepared: GraphModule) -> None:
    """Keep every range as it is from now on: what is left of training then fits the weights to fixed steps."""
    prepared.__dict__[_FROZEN] = True
    _observe(prepared, False)


def _quantizer(backend: str) -> Any:
    name = QAT_BACKENDS.get(backend)
    if name is None:
        raise UserError(f"'{backend}' has no quantization-aware training", hint=f"one of {', '.join(QAT_BACKENDS)}")
    try:
        make = importlib.import_module(name).qat_quantizer
    except ModuleNotFoundError as e:
        if e.name == name:
            raise UserError(f"'{backend}' has no quantization-aware training", hint="use executorch") from e
        raise MissingDependencyError("quantization-aware training", extra=backend, package=str(e.name)) from e
    return make()


def _captured(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> GraphModule:
    """The module as a graph of ATen ops with a free batch axis, if it can have one."""
    import torch
    from torch.export import Dim

    twice = tuple(
        torch.cat([value, value]) if value.dim() and value.shape[0] == 1 else value for value in example_inputs
    )
    shapes = tuple({0: Dim.DYNAMIC} if value.dim() else None for value in twice)
    with torch.no_grad():
        try:
            free = torch.export.export(module, twice, dynamic_shapes=shapes, strict=False)
            return free.module(check_guards=False)
        except Exception as e:  # noqa: BLE001 - the module fixes its batch; torch has many errors for that
            _log.debug("its batch is not free: %s", e)
        try:
            return torch.export.export(module, example_inputs, strict=False).module(check_guards=False)
        except Exception as e:
            raise ExportError(f"cannot capture the module for training: {type(e).__name__}: {str(e)[:500]}") from e


def trained_program(
    prepared: GraphModule, example_inputs: tuple[Tensor, ...], *, orders: Sequence[Order] = ()
) -> ExportedProgram:
    """The trained module as a program with quantize and dequantize ops, for a conversion with `is_trained=True`.

    `orders` says for each input how its axes become the module's (`converters.shapes.input_orders`); `example_inputs`
    are in the program's layout. `prepared` can go on training afterwards. Raises ExportError.
    """
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    from edgekit.converters.shapes import permuting_inputs

    switches = [name for name in ("train", "eval") if name in prepared.__dict__]
    original: dict[str, Any] = {name: prepared.__dict__.pop(name) for name in switches}
    try:
        copied = copy.deepcopy(prepared)
    finally:
        prepared.__dict__.update(original)
    try:
        with torch.no_grad():
            converted = convert_pt2e(copied)
            with permuting_inputs(converted, orders):
                return torch.export.export(converted, example_inputs, strict=False)
    except Exception as e:
        raise ExportError(f"cannot export the trained module: {type(e).__name__}: {str(e)[:500]}") from e


def is_trained_program(program: ExportedProgram) -> bool:
    """Whether a program holds quantize and dequantize ops, as `trained_program` gives it."""
    return any("quantize_per" in str(node.target) for node in program.graph.nodes if node.op == "call_function")
