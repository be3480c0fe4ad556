"""YAML files read safely: plain values only, and the line each came from.

Refused: more than 1 MiB, aliases (a few of them expand to gigabytes), duplicate keys, tags, more than 50
levels. Scalars are YAML 1.2's: `no` is a string and `1:30` is not ninety.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from edgekit.schema import Record, validation_problems

__all__ = ["YamlDocument", "YamlError", "read_yaml", "record_of"]

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 50

R = TypeVar("R", bound=Record)


class YamlError(ValueError):
    """The file is not YAML that edgekit reads; the text names the line."""


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """The values of a YAML file, and where they stood."""

    value: Any
    lines: dict[tuple[str | int, ...], int]

    def line_of(self, location: Sequence[str | int]) -> int:
        """The line of the innermost known part of `location` (1 when nothing is known of it)."""
        parts = tuple(location)
        while parts and parts not in self.lines:
            parts = parts[:-1]
        return self.lines.get(parts, 1)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core schema."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def read_yaml(path: Path) -> YamlDocument:
    """The one document in `path`; raises OSError or YamlError."""
    if path.stat().st_size > MAX_BYTES:
        raise YamlError(f"larger than {MAX_BYTES} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        loader = _Loader(text)
        try:
            _refuse_aliases(loader)
        finally:
            loader.dispose()
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[tuple[str | int, ...], int] = {}
            _walk(node, (), lines, 0)
            value = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except UnicodeDecodeError as e:
        raise YamlError(f"not UTF-8 text: {e.reason} at byte {e.start}") from e
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise YamlError(f"line {line}: {e.problem or e.context}") from e
    except yaml.YAMLError as e:
        raise YamlError(str(e)) from e
    except RecursionError as e:
        raise YamlError("nested too deeply") from e
    return YamlDocument(value=value, lines=lines)


def record_of(cls: type[R], document: YamlDocument, path: Path) -> R:
    """The document as a `cls`; raises YamlError with one line `path:line: problem` for each."""
    try:
        return cls.model_validate(document.value)
    except ValidationError as e:
        lines = [document.line_of(problem["loc"]) for problem in e.errors(include_url=False)]
        told = [f"{path}:{line}: {text}" for line, text in zip(lines, validation_problems(e, cls), strict=True)]
        raise YamlError("\n".join(told)) from e


def _refuse_aliases(loader: yaml.SafeLoader) -> None:
    depth = 0
    while loader.check_event():
        event: yaml.Event = loader.get_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise YamlError(f"line {line}: aliases (*name) are not allowed; write the value out")
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise YamlError(f"line {line}: nested more than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            depth -= 1


def _walk(
    node: yaml.Node | None, place: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int], d: int
) -> None:
    if node is None:
        return
    lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise YamlError(f"line {key.start_mark.line + 1}: key '{name}' stands twice")
            seen.add(name)
            _walk(value, (*place, name), lines, d + 1)
            lines[(*place, name)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*place, index), lines, d + 1)
