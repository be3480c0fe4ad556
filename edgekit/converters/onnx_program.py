"""The float ONNX model of an exported program, in the form the other schemes are made from, and where its nodes come
from in the program.

Translated by torch.onnx (dynamo). Then, without changing what is computed: `Constant` nodes become initializers, every
node has a name of its own, a mean over all spatial axes is written as the GlobalAveragePool it is (only that has an
integer kernel in onnxruntime), and zero padding goes into the convolution behind it.
"""

from __future__ import annotations

import ast
import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.converters.onnx_graph import OnnxGraph
from edgekit.converters.onnx_rewrites import pad_in_convolutions, pool_spatial_means
from edgekit.errors import ConversionError, EdgekitError, MissingDependencyError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["FloatModel", "Origin", "translated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a node of the file comes from."""

    nodes: tuple[str, ...]
    """Nodes of the exported program, as it was handed in."""
    module: str | None
    """Path of the user's submodule."""


@dataclass(slots=True, kw_only=True)
class FloatModel:
    """A float ModelProto, checked, shapes inferred, all data inside."""

    model: Any
    origins: dict[str, Origin] = field(default_factory=dict)
    """By node name."""
    notes: tuple[str, ...] = ()


def translated(program: ExportedProgram) -> FloatModel:
    """The float model of a program. Raises ConversionError with the stage that failed."""
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx asks for it
        import torch  # noqa: F401
    except ImportError as e:
        raise MissingDependencyError("converting to ONNX", extra="onnx", package="onnx") from e
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    exported, notes = _exported(program)
    model = exported.model_proto
    try:
        _tidy(model)
        origins = _origins(model, exported.exported_program)
        _drop_traces(model)
        _name_axes(model)
        model = _with_shapes(model)
        graph = OnnxGraph(model)
        pool_spatial_means(graph)
        pad_in_convolutions(graph)
        graph.drop_unused_constants()
        onnx.checker.check_model(model)
    except EdgekitError:
        raise
    except Exception as e:  # onnx raises ValidationError, InferenceError, ValueError, … by step
        raise _failed(e, "tidy") from e
    return FloatModel(model=model, origins=origins, notes=notes)


def _exported(program: ExportedProgram) -> tuple[Any, tuple[str, ...]]:
    """The ONNXProgram, and a note where it was made without the optimiser because that failed."""
    import torch

    errors: list[ConversionError] = []
    for optimize in (True, False):
        try:
            exported = torch.onnx.export(
                program, dynamo=True, optimize=optimize, verbose=False, external_data=False, opset_version=20
            )
            if exported is not None:
                told = f"written without onnxscript's optimiser, which failed: {errors[0]}" if errors else ""
                return exported, (told,) if told else ()
        except Exception as e:  # noqa: BLE001 - torch.onnx raises OnnxExporterError and what its passes meet
            errors.append(_failed(e, "translate"))
    raise errors[0] if errors else ConversionError("torch.onnx gave no model", backend="onnx", stage="translate")


def _failed(error: Exception, stage: str) -> ConversionError:
    """The error with the op and source line it names, where it does."""
    text = "\n".join(str(link) for link in _chain(error))
    op = re.search(r"(aten|torchvision|prims)[.:]+[a-z_0-9]+(\.[A-Za-z_0-9]+)?", text)
    lines = [f"{name}:{line}" for name, line in re.findall(r'File "([^"]+)", line (\d+)', text)]
    own = [line for line in lines if "/torch/" not in line and "site-packages" not in line and "edgekit" not in line]
    where = f" at {own[-1]}" if own else ""
    return ConversionError(
        f"{type(error).__name__}: {str(error)[:1000]}{where}",
        backend="onnx",
        stage=stage,
        op=op.group(0) if op else None,
        hint="write this part of the model with other operations, or convert to another backend",
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    links: list[BaseException] = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links


def _with_shapes(model: Any) -> Any:
    """The model with the type and shape of every value that can be inferred."""
    import onnx

    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _tidy(model: Any) -> None:
    """Constants as initializers; a name for every node."""
    import onnx

    graph, taken = model.graph, set()
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            del graph.node[index]
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}_{index}"
        taken.add(node.name)


def _origins(model: Any, decomposed: Any) -> dict[str, Origin]:
    """By node name, from the metadata the exporter leaves; `decomposed` is the program it translated in the end."""
    sources = {node.name: node for node in decomposed.graph.nodes}
    origins = {}
    for node in model.graph.node:
        told = {entry.key: entry.value for entry in node.metadata_props}
        named = re.match(r"%(\w+)", told.get("pkg.torch.onnx.fx_node", ""))
        source = sources.get(named.group(1)) if named else None
        if source is None:
            continue
        found = [source]
        # a batch norm that went into the convolution before it leaves only its own mark
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and "norm" in source.name:
            found += [argument for argument in source.args[:1] if hasattr(argument, "name")]
        names = dict.fromkeys(name for one in found for name in _first_names(one))
        origins[node.name] = Origin(nodes=tuple(names), module=_module(told.get("pkg.torch.onnx.name_scopes", "")))
    return origins


def _first_names(node: Any) -> list[str]:
    """The nodes of the program before any decomposition that this one was made from."""
    sources = node.meta.get("from_node") or ()
    if not sources:
        return [node.name]
    names = []
    for source in sources:
        while source.from_node:
            source = source.from_node[0]
        names.append(source.name)
    return names


def _module(scopes: str) -> str | None:
    """`features.3` of `['', 'features', 'features.3', 'convolution']`, whose last entry is the node itself."""
    try:
        path = [str(scope) for scope in ast.literal_eval(scopes)]
    except (ValueError, SyntaxError):
        return None
    return path[-2] or None if len(path) > 1 else None


def _name_axes(model: Any) -> None:
    """Call free extents `batch` where they come first in an input, else by input and axis, for torch's `s77`."""
    names: dict[str, str] = {}
    for value in model.graph.input:
        for axis, extent in enumerate(value.type.tensor_type.shape.dim):
            if re.fullmatch(r"[su]\d+", extent.dim_param):
                chosen = "batch" if axis == 0 and "batch" not in names.values() else f"{value.name}_axis{axis}"
                names.setdefault(extent.dim_param, chosen)
    if not names:
        return
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        for extent in value.type.tensor_type.shape.dim:
            if extent.dim_param:
                extent.dim_param = symbol.sub(lambda found: names[found.group(1)], extent.dim_param)


def _drop_traces(model: Any) -> None:
    """Remove the Python stack traces torch writes into each node: they hold the user's paths and double the file."""
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
