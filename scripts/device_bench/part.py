"""What one part of the device benchmark found: text for the page, raw samples for the file beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A figure to reach, and whether it was."""

    asked: str
    found: str
    met: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`method` says what was done; `table` is rows of cells, the heading first; `raw` is written as JSON."""

    title: str
    method: str
    table: list[list[str]]
    targets: list[Target]
    raw: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The part as a section."""
        heading, *rows = self.table
        lines = [f"## {self.title}", "", self.method, ""]
        lines += ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += [""] + [f"- {'met' if t.met else '**missed**'}: {t.asked}; found {t.found}" for t in self.targets]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines) + "\n"
