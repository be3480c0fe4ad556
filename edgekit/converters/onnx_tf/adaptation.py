"""Small changes to an ONNX model of opset 13, each the same function, where onnx-tf or TFLite know another form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["ERF_NOTE", "adapt"]

ERF_NOTE = (
    "erf (in GELU) is written out after Abramowitz and Stegun, 7.1.26, within 1.5e-7: TFLite has no kernel for it"
)
_ERF_P = 0.3275911
_ERF_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)

Shape = tuple[int, ...]


def adapt(model: Any) -> Any:
    """The model with every change made; its shapes are fixed. A change that is no mere form is told in `doc_string`."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False)
    build = _Builder(graph=inferred.graph, shapes=_shapes(inferred))
    forms: dict[str, Callable[[_Builder, Any], list[Any]]] = {
        "Squeeze": _as_reshape,
        "Unsqueeze": _as_reshape,
        "Conv": _with_pads,
        "Split": _as_slices,
        "Erf": _erf_written_out,
    }
    nodes = []
    for node in inferred.graph.node:
        while len(node.input) and node.input[-1] == "":
            del node.input[-1]
        nodes += forms[node.op_type](build, node) if node.op_type in forms else [node]
        inferred.doc_string = ERF_NOTE if node.op_type == "Erf" else inferred.doc_string
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del inferred.graph.node[:]
    inferred.graph.node.extend(copies)
    del inferred.graph.value_info[:]
    return inferred


@dataclass(frozen=True, slots=True, kw_only=True)
class _Builder:
    """Where constants of new nodes go, and the shapes that are known."""

    graph: Any
    shapes: dict[str, Shape]

    def constant(self, name: str, values: Any) -> str:
        """The name of a new constant."""
        import onnx

        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, op: str, inputs: list[str], output: str) -> Any:
        """A new node without attributes."""
        import onnx

        return onnx.helper.make_node(op, inputs, [output], name=f"{output}_{op}")


def _shapes(model: Any) -> dict[str, Shape]:
    """Value name to its shape, where every extent is known."""
    found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        if value.type.tensor_type.HasField("shape"):
            extents = value.type.tensor_type.shape.dim
            if all(extent.HasField("dim_value") for extent in extents):
                found[value.name] = tuple(extent.dim_value for extent in extents)
    return found


def _as_reshape(build: _Builder, node: Any) -> list[Any]:
    """Squeeze and Unsqueeze take their axes as an input since opset 13, which onnx-tf does not know: Reshape does
    the same. One whose shape is unknown stays, and onnx-tf names it."""
    shape = build.shapes.get(node.output[0])
    if shape is None:
        return [node]
    target = build.constant(f"{node.output[0]}_shape", np.array(shape, np.int64))
    return [build.node("Reshape", [node.input[0], target], node.output[0])]


def _as_slices(build: _Builder, node: Any) -> list[Any]:
    """TensorFlow's SplitV with 64-bit sizes, which onnx-tf writes, has no kernel in TFLite: slices do the same."""
    shapes = [build.shapes.get(name) for name in node.output]
    known = [shape for shape in shapes if shape]
    if len(known) < len(shapes):
        return [node]
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0) % len(known[0])
    slices, start = [], 0
    for name, shape in zip(node.output, known, strict=True):
        bounds = {"starts": start, "ends": start + shape[axis], "axes": axis}
        given = [build.constant(f"{name}_{key}", np.array([value], np.int64)) for key, value in bounds.items()]
        slices.append(build.node("Slice", [node.input[0], *given], name))
        start += shape[axis]
    return slices


def _erf_written_out(build: _Builder, node: Any) -> list[Any]:
    """erf(x) = sign(x)·(1 − (a₁t + … + a₅t⁵)·exp(−x²)), t = 1/(1 + p|x|): Abramowitz and Stegun, 7.1.26."""
    x, out = node.input[0], node.output[0]

    def number(name: str, value: float) -> str:
        return build.constant(f"{out}_{name}", np.array(value, np.float32))

    one = number("one", 1.0)
    names = iter(f"{out}_{index}" for index in range(100))
    nodes: list[Any] = []

    def then(op: str, *inputs: str) -> str:
        nodes.append(build.node(op, list(inputs), next(names)))
        return str(nodes[-1].output[0])

    t = then("Div", one, then("Add", then("Mul", then("Abs", x), number("p", _ERF_P)), one))
    polynomial = number("a5", _ERF_A[4])
    for index in (3, 2, 1, 0):
        polynomial = then("Add", then("Mul", polynomial, t), number(f"a{index + 1}", _ERF_A[index]))
    tail = then("Mul", then("Mul", polynomial, t), then("Exp", then("Neg", then("Mul", x, x))))
    nodes.append(build.node("Mul", [then("Sign", x), then("Sub", one, tail)], out))
    return nodes


def _with_pads(build: _Builder, node: Any) -> list[Any]:
    """`auto_pad=SAME_UPPER` of a convolution with stride 1 as the pads it means: onnxruntime has it without dilation
    only, so that it could not be checked."""
    import onnx

    attributes = {attribute.name: attribute for attribute in node.attribute}
    kind = attributes["auto_pad"].s.decode() if "auto_pad" in attributes else "NOTSET"
    kernel = build.shapes.get(node.input[1], ())[2:]
    strides = list(attributes["strides"].ints) if "strides" in attributes else [1] * len(kernel)
    if kind not in ("SAME_UPPER", "SAME_LOWER") or not kernel or any(stride != 1 for stride in strides):
        return [node]
    dilations = list(attributes["dilations"].ints) if "dilations" in attributes else [1] * len(kernel)
    totals = [dilation * (extent - 1) for dilation, extent in zip(dilations, kernel, strict=True)]
    small = [total // 2 for total in totals]
    large = [total - half for total, half in zip(totals, small, strict=True)]
    pads = [*small, *large] if kind == "SAME_UPPER" else [*large, *small]
    kept = [attribute for attribute in node.attribute if attribute.name not in ("auto_pad", "pads")]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("pads", pads)])
    return [node]
