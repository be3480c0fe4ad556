"""Text of devices, files and users in rich's tables: nothing in it is markup, and nothing in it commands a terminal."""

from __future__ import annotations

from edgekit.report.visible import visible

__all__ = ["shown"]


def shown(text: str) -> str:
    """`text` for a place where rich reads markup: brackets as they are, hidden characters written out."""
    from rich.markup import escape

    return escape(visible(text))
