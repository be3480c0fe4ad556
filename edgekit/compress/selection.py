"""Which parameters of a module a step works on: the weights of known layers, by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import nn

from edgekit.errors import RecipeError
from edgekit.schema import near_miss

__all__ = ["matching", "per_parameter", "selected_parameters"]

V = TypeVar("V")

_LAYERS: tuple[type[nn.Module], ...] = (
    *(nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear),
    *(nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention),
)


def selected_parameters(
    module: nn.Module, *, exclude: Sequence[str], include: Sequence[str], step: str
) -> dict[str, nn.Parameter]:
    """Name to parameter: every weight matrix of linear, convolutional, recurrent and attention layers, and `include`.

    A tied weight is there once, under its first name. Names and globs are of parameters (`fc1.weight`) or of modules
    (`fc1`, `features.*`), which take in everything below. Raises RecipeError for one that matches nothing.
    """
    everything = dict(module.named_parameters())
    wanted = {name for name, parameter in everything.items() if _is_layer_weight(module, name, parameter)}
    wanted |= matching(module, include, where=f"{step}.include")
    wanted -= matching(module, exclude, where=f"{step}.exclude")
    chosen = {name: p for name, p in everything.items() if name in wanted and p.is_floating_point() and p.numel() > 1}
    if not chosen:
        raise RecipeError(
            f"{step}: no layer of the model is left to work on",
            hint="exclude fewer layers, or name parameters of your own layers in 'include'",
        )
    return chosen


def per_parameter(
    module: nn.Module, chosen: Iterable[str], values: Mapping[str, V], *, default: V, where: str
) -> dict[str, V]:
    """The value of each chosen parameter: that of the last pattern that matches it, else `default`.

    Raises RecipeError for a pattern that matches none of them.
    """
    chosen = list(chosen)
    found = dict.fromkeys(chosen, default)
    for pattern, value in values.items():
        names = matching(module, (pattern,), where=where) & set(chosen)
        if not names:
            raise RecipeError(
                f"{where}: '{pattern}' names no parameter this step works on; {near_miss(pattern, chosen)}"
            )
        found.update(dict.fromkeys(names, value))
    return found


def matching(module: nn.Module, patterns: Sequence[str], *, where: str) -> set[str]:
    """The parameters that `patterns` name; raises RecipeError for one that matches nothing."""
    parameters = [name for name, _ in module.named_parameters()]
    modules = [name for name, _ in module.named_modules() if name]
    found: set[str] = set()
    for pattern in patterns:
        roots = fnmatch.filter(modules, pattern)
        names = set(fnmatch.filter(parameters, pattern))
        names |= {name for name in parameters for root in roots if name.startswith(f"{root}.")}
        if not names and not roots:
            known = parameters if pattern.rpartition(".")[2] in ("weight", "bias") else modules
            raise RecipeError(f"{where}: the model has no layer or parameter '{pattern}'; {near_miss(pattern, known)}")
        found |= names
    return found


def _is_layer_weight(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    owner, _, local = name.rpartition(".")
    return parameter.ndim >= 2 and "weight" in local and isinstance(module.get_submodule(owner), _LAYERS)
