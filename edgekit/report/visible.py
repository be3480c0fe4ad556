"""Text from devices, files and users, made safe to look at.

A device's model name or a label may hold terminal escapes, line breaks or the marks that reverse the order of
text. Such characters are shown as `\\x1b` style escapes in every view, so that what is read is what was sent.
"""

from __future__ import annotations

import unicodedata

__all__ = ["one_line", "visible"]

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _escape(character: str) -> str:
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def visible(text: str) -> str:
    """`text` with each control, format, surrogate and unassigned character written out; line feeds and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _HIDDEN else _escape(c) for c in text)


def one_line(text: str) -> str:
    """`visible(text)` with runs of white space made one space."""
    return visible(" ".join(text.split()))
