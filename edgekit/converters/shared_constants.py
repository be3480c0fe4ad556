"""Layers that share what torchao and XNNPACK take for one layer's own.

Batch normalizations that must not be folded into the layer before them:

torchao folds every one behind a convolution or linear layer, also where the layer's output goes elsewhere too, or where
two layers share a weight: the other reader then gets what is not its own. (Found on a DenseNet: a block's first batch
normalization went into the convolution whose output is passed on; 0 dB, in what was trained and converted from it.)

And weights of a layer that is applied several times (a detector's head on each scale, a recurrent cell on each step):
XNNPACK quantizes its bias by the scale of one input, so that each application needs constants of its own.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = ["keep_unfoldable_norms", "own_constants"]

_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")
_LAYERS = ("conv", "linear")


def keep_unfoldable_norms(graph: GraphModule) -> None:
    """Put a copy between such a layer and its batch normalization, in place, so that nothing folds the two."""
    import torch

    for norm in list(graph.graph.nodes):
        layer = norm.args[0] if _is_call(norm, _NORMS) else None
        if layer is None or not _is_call(layer, _LAYERS):
            continue
        weight = layer.args[1]
        is_shared = len(layer.users) > 1 or len(weight.users) > 1 or _is_tied(graph, weight)
        if not is_shared:
            continue
        with graph.graph.inserting_before(norm):
            copied = graph.graph.call_function(torch.ops.aten.clone.default, (layer,))
        copied.meta = dict(layer.meta)
        norm.replace_input_with(layer, copied)
    graph.recompile()


def own_constants(graph: GraphModule) -> None:
    """Give each convolution and linear op its own copy of a weight or bias that another one uses too, in place."""
    taken: set[str] = set()
    for layer in list(graph.graph.nodes):
        if not _is_call(layer, _LAYERS):
            continue
        for place, constant in enumerate(layer.args[:3]):
            if place == 0 or getattr(constant, "op", None) != "get_attr":
                continue
            if str(constant.target) in taken:
                _copy_constant(graph, layer, constant, f"_own_{layer.name}_{place}")
            taken.add(str(constant.target))
    graph.recompile()


def _copy_constant(graph: GraphModule, layer: Any, constant: Any, name: str) -> None:
    import torch

    graph.register_parameter(
        name, torch.nn.Parameter(_attribute(graph, constant).detach().clone(), requires_grad=False)
    )
    with graph.graph.inserting_before(layer):
        own = graph.graph.get_attr(name)
    own.meta = dict(constant.meta)
    layer.replace_input_with(constant, own)


def _is_call(node: Any, names: tuple[str, ...]) -> bool:
    if getattr(node, "op", None) != "call_function":
        return False
    name = str(node.target).removeprefix("aten.")
    return name.startswith(names) and "backward" not in name


def _is_tied(graph: GraphModule, weight: Any) -> bool:
    """Whether another attribute of the graph is the same parameter."""
    mine = _attribute(graph, weight)
    others = (node for node in graph.graph.nodes if node.op == "get_attr" and node is not weight and node.users)
    return mine is not None and any(_attribute(graph, node) is mine for node in others)


def _attribute(graph: GraphModule, node: Any) -> Any:
    if getattr(node, "op", None) != "get_attr":
        return None
    return attrgetter(node.target)(graph)
