"""Plug-in points: named things that edgekit brings and third parties add by entry point.

A registry knows its built-ins by import path (nothing heavy is imported until a name is asked for) and
finds others under an entry-point group (`edgekit.converters`, `edgekit.runtimes`, `edgekit.devices`).
Registering a name twice is an error; asking for an unknown one lists the known ones.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edgekit.errors import UserError
from edgekit.schema import near_miss

__all__ = ["Registry"]


class Registry:
    """The named plug-ins of one kind; `builtin` maps a name to `module:attribute`."""

    def __init__(self, kind: str, group: str, builtin: dict[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._builtin = dict(builtin)

    def _targets(self) -> dict[str, str]:
        targets = dict(self._builtin)
        for point in self._entry_points():
            if point.name in targets and targets[point.name] != point.value:
                raise UserError(
                    f"two {self.kind}s are registered as '{point.name}': {targets[point.name]} and {point.value}",
                    hint="uninstall one of the packages that bring them, or ask its author for another name",
                )
            targets[point.name] = point.value
        return targets

    def _entry_points(self) -> tuple[EntryPoint, ...]:
        return tuple(entry_points(group=self.group))

    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted."""
        return tuple(sorted(self._targets()))

    def load(self, name: str) -> Any:
        """The object registered as `name`; raises UserError for an unknown name."""
        targets = self._targets()
        if name not in targets:
            raise UserError(f"unknown {self.kind} '{name}'; {near_miss(name, list(targets))}")
        module_name, _, attribute = targets[name].partition(":")
        return getattr(importlib.import_module(module_name), attribute)
