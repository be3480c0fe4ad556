"""Files written so that a reader sees nothing or the whole."""

import hashlib
import json
import os
from typing import Any, Optional


def write_json(path: str, value: Any, *, durable: bool = False) -> None:
    """Write `value` as JSON to `path` by rename; NaN and infinities raise ValueError.

    Only what is `durable` is forced to the disk: that takes tens of milliseconds on a board's, disturbs what is
    measured, and protects from nothing but a loss of power, which voids a job that has not ended.
    """
    partial = f"{path}.{os.getpid()}.partial"
    with open(partial, "w", encoding="utf-8") as f:
        json.dump(value, f, allow_nan=False)
        if durable:
            f.flush()
            os.fsync(f.fileno())
    os.replace(partial, path)


def read_json(path: str) -> Optional[Any]:
    """The JSON value in `path`, or None where there is no such file."""
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        return None


def sha256_of(path: str) -> str:
    """sha256 (hex) of a file's bytes, read in pieces."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def read_text(path: str) -> Optional[str]:
    """The stripped text of a small system file, or None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read().strip()
    except OSError:
        return None
