"""A disk that is full, read-only or not ours, as an error that says where and what to try."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.errors import HostError

__all__ = ["disk_errors_explained", "disk_reason_in"]

_REASONS = {
    errno.ENOSPC: "no space left on this disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
}


@contextmanager
def disk_errors_explained(
    place: Path, *, hint: str = "free some space or choose another --workspace; finished stages are kept"
) -> Iterator[None]:
    """Turn a full or read-only disk into a HostError that says where."""
    try:
        yield
    except OSError as e:
        if e.errno in _REASONS:
            raise HostError(f"{e.filename2 or e.filename or place}: {_REASONS[e.errno]}", hint=hint) from e
        raise


def disk_reason_in(text: str) -> str | None:
    """The reason a program's last words give for not having been able to write; None when they give none."""
    return next((reason for number, reason in _REASONS.items() if os.strerror(number) in text), None)
