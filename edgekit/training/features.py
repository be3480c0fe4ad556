"""What submodules give on the way to the output, for objectives that look inside a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from edgekit.errors import WorkloadError
from edgekit.schema import near_miss

__all__ = ["captured_features", "check_names"]


def check_names(module: nn.Module, names: Sequence[str], *, who: str = "model") -> None:
    """Raise WorkloadError, with the nearest known name, for a name that is no submodule of `module`."""
    known = [name for name, _ in module.named_modules() if name]
    for name in names:
        if name not in known:
            raise WorkloadError(
                f"the {who} has no submodule '{name}'; {near_miss(name, known)}",
                hint="names are those of `named_modules()`",
            )


@contextlib.contextmanager
def captured_features(module: nn.Module, names: Sequence[str], *, who: str = "model") -> Iterator[dict[str, Tensor]]:
    """A dict that each forward pass of `module` within the context fills with the outputs of submodules, by name.

    Output 0 of a submodule that gives several (a recurrent layer's states); the last call's of one that is called
    several times in a pass. Gradients flow through. Raises WorkloadError for a name that does not exist.
    """
    check_names(module, names, who=who)
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            value = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(value, Tensor):
                raise WorkloadError(f"the {who}'s submodule '{name}' gives a {type(value).__name__}, not a tensor")
            found[name] = value

        handles.append(module.get_submodule(name).register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
