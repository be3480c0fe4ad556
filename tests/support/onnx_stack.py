"""Small ONNX files of a cost that is known: so many square matrix products, one after the other."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np


def onnx_stack(path: Path, *, layers: int, width: int = 256, batch: int = 1) -> Path:
    """A float32 model `[batch, width] -> [batch, width]`; its time grows as `layers` times `width` squared."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = (np.eye(width) * 0.5).astype(np.float32)
    names = ["x", *(f"h{i}" for i in range(1, layers)), "y"]
    nodes = [helper.make_node("MatMul", [a, f"w_{b}"], [b]) for a, b in itertools.pairwise(names)]
    shape = [batch, width]
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, f"w_{name}") for name in names[1:]],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path
