"""Records: the values that are written to files and read back.

A record is a frozen pydantic model that refuses unknown keys, naming the nearest known one, and never
holds a non-finite number. `read_record` reads one from an untrusted file: size first, then strict JSON
(no NaN, no duplicate keys), then types.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = [
    "Record",
    "canonical_json",
    "digest",
    "known_sha256",
    "near_miss",
    "parse_json",
    "parse_record",
    "read_record",
    "sha256_of",
    "validated",
    "validation_problems",
    "write_atomically",
]

MAX_RECORD_BYTES = 64 * 1024 * 1024


class Record(BaseModel):
    """Base of every value stored in a file: frozen, closed (unknown keys are errors), finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="null")


R = TypeVar("R", bound=Record)


def near_miss(name: str, known: Sequence[str]) -> str:
    """`did you mean 'x'?` for the nearest of `known`, else the list of what is known."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(sorted(known))}"


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {key!r}")
        result[key] = value
    return result


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def parse_json(text: str | bytes, *, max_bytes: int = MAX_RECORD_BYTES) -> Any:
    """`text` as plain JSON values; raises ValueError on NaN, Infinity, duplicate keys, depth or size."""
    if len(text) > max_bytes:
        raise ValueError(f"{len(text)} bytes is more than the {max_bytes} allowed")
    try:
        return json.loads(text, object_pairs_hook=_reject_duplicates, parse_constant=_reject_constant)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def validation_problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One sentence per problem pydantic found in a `model`, an unknown key with the nearest known one."""
    sentences = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        if problem["type"] == "extra_forbidden":
            owner = _model_at(model, problem["loc"][:-1])
            known = [f.alias or name for name, f in owner.model_fields.items()] if owner else []
            sentences.append(f"{where}: unknown key; {near_miss(str(problem['loc'][-1]), known)}")
        elif problem["type"] in ("enum", "literal_error"):
            known = re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))
            sentences.append(f"{where}: unknown value {problem['input']!r}; {near_miss(str(problem['input']), known)}")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            given = problem["input"]
            shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
            sentences.append(f"{where}: {said}{shown}")
    return sentences


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model class that owns the keys at `location`, where the annotations tell."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int) or current is None:
            continue
        field = current.model_fields.get(part)
        if field is None:  # a union member or a discriminator tag
            continue
        current = _first_model(field.annotation)
    return current


def _first_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _first_model(argument)
        if found:
            return found
    return None


def parse_record(cls: type[R], text: str | bytes, *, max_bytes: int = MAX_RECORD_BYTES) -> R:
    """`text` as a `cls`; raises ValueError with every problem in one sentence each."""
    value = parse_json(text, max_bytes=max_bytes)
    try:
        return cls.model_validate_json(json.dumps(value))
    except ValidationError as e:
        raise ValueError("; ".join(validation_problems(e, cls))) from e


def read_record(cls: type[R], path: Path, *, max_bytes: int = MAX_RECORD_BYTES) -> R:
    """The record in the file `path`; raises OSError or ValueError."""
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{path}: larger than the {max_bytes} bytes allowed")
    return parse_record(cls, path.read_bytes(), max_bytes=max_bytes)


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces: equal values give equal text."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(*values: Any) -> str:
    """sha256 (hex) over the canonical JSON of `values`: the content address of a stage or a job."""
    return hashlib.sha256("\n".join(canonical_json(v) for v in values).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """`sha256_of(path)`, hashed once in this process as long as inode, size and time of change stay."""
    status = path.stat()
    return _sha256_as_of(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256_as_of(path: Path, _inode: int, _size: int, _changed: int) -> str:
    return sha256_of(path)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, never a part."""
    if isinstance(data, str):
        data = data.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def validated(cls: type[R], what: str, **values: Any) -> R:
    """A `cls` of `values`; raises UserError with one sentence per wrong one."""
    from edgekit.errors import UserError

    try:
        return cls.model_validate(values)
    except ValidationError as e:
        raise UserError(f"{what}: " + "; ".join(validation_problems(e, cls))) from e
