"""An exported program as ONNX of opset 13, which onnx-tf knows.

torch.onnx's dynamo exporter writes opset 18 and newer, and no converter leads all of it back to 13. So the older
exporter traces the program's graph; attention, which it has from opset 14 on, is written as what it is, and recurrent
cells onnx-tf has no form of step by step. What comes out is run in onnxruntime and compared with PyTorch.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.converters.fidelity import compare, probe_inputs, reference_outputs
from edgekit.converters.onnx_tf.adaptation import adapt
from edgekit.converters.onnx_tf.names import BACKEND, OPSET, input_name, output_name
from edgekit.errors import ConversionError, MissingDependencyError, Problem, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.export import ExportedProgram

__all__ = ["exported_model"]

FLOOR_DB = 60.0
"""As for every float conversion (`fidelity.SQNR_FLOOR_DB`)."""
_UNKNOWN = re.compile(r"operator '([^']+)'")


def exported_model(program: ExportedProgram) -> Any:
    """The ModelProto, verified. Raises UnsupportedError naming an op opset 13 cannot express, ConversionError."""
    try:
        import onnx
        import onnxruntime  # noqa: F401 - for the check below
    except ImportError as e:
        raise MissingDependencyError(f"converting to {BACKEND}", extra="onnx", package="onnx") from e
    from torch.onnx.errors import UnsupportedOperatorError

    try:
        content = _traced(_stepwise(program))
        model = adapt(onnx.load_model_from_string(content))
        onnx.checker.check_model(model, full_check=True)
    except UnsupportedOperatorError as e:
        found = _UNKNOWN.search(str(e))
        op = found.group(1) if found else str(e).splitlines()[0]
        problem = Problem(
            backend=BACKEND,
            message=f"ONNX opset {OPSET} has no form of {op}",
            op=op,
            available_in=("onnx",),
            hint="convert to onnx or tflite, or write this part of the model with other operations",
        )
        raise UnsupportedError([problem]) from e
    except Exception as e:  # torch.onnx, its tracer and onnx's checker raise what they meet
        raise ConversionError(f"{type(e).__name__}: {str(e)[:1000]}", backend=BACKEND, stage="export") from e
    _check(model, program)
    return model


def _stepwise(program: ExportedProgram) -> ExportedProgram:
    """The program with recurrent cells written out step by step.

    onnx-tf has no GRU with `linear_before_reset`, which PyTorch's is, and its LSTM fails on this TensorFlow.
    """
    import torch

    aten = torch.ops.aten
    cells = [aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input]
    if not any(node.target in cells for node in program.graph.nodes):
        return program
    stepwise: ExportedProgram = program.run_decompositions(torch._decomp.get_decompositions(cells))
    return stepwise


def _traced(program: ExportedProgram) -> bytes:
    import torch

    assert program.example_inputs is not None  # noqa: S101 - edgekit's own export keeps them
    args = program.example_inputs[0]
    graph = program.module()
    _write_attention_out(graph)
    _name_batch_norms(graph)
    # the exporter switches the training mode, which an exported graph has none of
    for switch in ("train", "eval"):
        setattr(graph, switch, lambda *_: graph)
    outputs = len(program.graph_signature.user_outputs)
    with tempfile.TemporaryDirectory(prefix="edgekit-onnx-") as folder, warnings.catch_warnings(), torch.no_grad():
        written = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            args,
            written,
            dynamo=False,
            opset_version=OPSET,
            input_names=[input_name(index) for index in range(len(args))],
            output_names=[output_name(index) for index in range(outputs)],
            verbose=False,
        )
        return written.read_bytes()


def _write_attention_out(graph: Any) -> None:
    """Replace scaled dot product attention by its definition, in place."""
    import torch

    target = torch.ops.aten.scaled_dot_product_attention.default
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target != target:
            continue
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        rows, columns = given["query"].meta["val"].shape[-2], given["key"].meta["val"].shape[-2]
        function = _attention(
            torch.full((rows, columns), -torch.inf).triu(1) if given.get("is_causal") else None, given.get("scale")
        )
        grouped = given["query"].meta["val"].shape[-3:-2] != given["key"].meta["val"].shape[-3:-2]
        if grouped and given.get("enable_gqa"):
            continue  # left to the exporter, which names it
        with graph.graph.inserting_before(node):
            tensors = (given["query"], given["key"], given["value"], given.get("attn_mask"))
            written = graph.graph.call_function(function, tensors)
        written.meta = node.meta
        node.replace_all_uses_with(written)
        graph.graph.erase_node(node)
    graph.recompile()


def _name_batch_norms(graph: Any) -> None:
    """Replace what decomposing makes of batch normalization, which the exporter has no form of, by itself."""
    import torch

    def batch_norm(value: Any, weight: Any, bias: Any, mean: Any, variance: Any, momentum: Any, eps: Any) -> Any:
        normed = torch.nn.functional.batch_norm(value, mean, variance, weight, bias, False, momentum, eps)
        return (normed,)  # the op has two more outputs, empty in eval mode

    for node in graph.graph.nodes:
        if node.target == torch.ops.aten._native_batch_norm_legit_no_training.default:
            node.target = batch_norm
    graph.recompile()


def _attention(causal: torch.Tensor | None, scale: float | None) -> Callable[..., torch.Tensor]:
    """softmax(q kᵀ / √d + mask) v (Vaswani et al. 2017, eq. 1), the causal mask a constant."""
    import torch

    def attention(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        weights = torch.matmul(query * factor, key.transpose(-2, -1))
        if causal is not None:
            weights = weights + causal
        if mask is not None and mask.dtype == torch.bool:
            weights = torch.where(mask, weights, torch.tensor(torch.finfo(weights.dtype).min))
        elif mask is not None:
            weights = weights + mask
        return torch.matmul(torch.softmax(weights, -1), value)

    return attention


def _check(model: Any, program: ExportedProgram) -> None:
    """Raise ConversionError when the ONNX model, run in onnxruntime, is not the PyTorch one."""
    import onnxruntime

    samples = probe_inputs(program)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        wanted = {value.name for value in session.get_inputs()}
        found = [session.run(None, _fed(sample, wanted)) for sample in samples]
    except Exception as e:  # onnxruntime raises its own classes by step
        raise ConversionError(f"{type(e).__name__}: {str(e)[:1000]}", backend=BACKEND, stage="check ONNX") from e
    names = [value.name for value in model.graph.output]
    fidelity = compare(reference_outputs(program, samples), found, names=names, source="random", runtime="onnxruntime")
    wrong = [
        output.name
        for output in fidelity.outputs
        if output.non_finite or (output.sqnr_db is not None and output.sqnr_db < FLOOR_DB)
    ]
    if wrong:
        raise ConversionError(
            f"as ONNX of opset {OPSET} it computes something else ({', '.join(wrong)})",
            backend=BACKEND,
            stage="check ONNX",
            hint="convert to onnx or tflite, which take another way",
        )


def _fed(sample: Sequence[np.ndarray], wanted: set[str]) -> dict[str, np.ndarray]:
    """The sample by name, without inputs that the model does not use."""
    return {name: array for i, array in enumerate(sample) if (name := input_name(i)) in wanted}
