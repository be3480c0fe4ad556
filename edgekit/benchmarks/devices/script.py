"""Shell text for devices: quoting, names, and the sentinel that proves a reply is whole.

A cut link can look like success (adb 29 exits 0 with half the output), so every script ends by printing
`\\n@<nonce>:<status>@` to stdout and to stderr. The nonce is new for each call. A stream that does not end in
it was cut, whatever exit status the link reports.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from edgekit.benchmarks.devices.transport import Reply
from edgekit.errors import DeviceLost, UserError

__all__ = [
    "CALL_VARIABLE",
    "NAME",
    "checked_name",
    "command",
    "exports",
    "new_nonce",
    "number",
    "quote",
    "under_root",
    "unwrap",
    "wrap",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a file, folder or job on a device may be called (matched in full)."""

CALL_VARIABLE = "EDGEKIT_CALL"
"""Holds the nonce in the environment of a call's commands, so that they can be found when it is given up."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_SCRIPT_BYTES = 60_000
"""adbd closes the connection on scripts above 65,535 bytes, without a reason."""


def checked_name(name: str) -> str:
    """`name`, or UserError when it could leave its folder or be taken for an option."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name[:80]!r} cannot be a name on a device", hint="use letters, digits, '.', '_' and '-', at most 128"
        )
    return name


def under_root(path: PurePosixPath, root: PurePosixPath) -> PurePosixPath:
    """`path`, or UserError when it is not below `root` or one of its parts is not a plain name."""
    try:
        relative = path.relative_to(root)
    except ValueError as e:
        raise UserError(f"{str(path)[:200]!r} is outside edgekit's folder on the device ({root})") from e
    if not relative.parts:
        raise UserError(f"{path} is edgekit's folder itself, not a file in it")
    for part in relative.parts:
        checked_name(part)
    return path


def quote(text: str) -> str:
    """`text` as one word for `sh`. Always quoted: a bare `if` or `A=b` at the front would not be a command."""
    if "\0" in text:
        raise UserError("an argument for a device holds a NUL character, which no command line can carry")
    return "'" + text.replace("'", "'\"'\"'") + "'"


def exports(env: Mapping[str, str] | None) -> str:
    """`env` as shell text that exports it."""
    for name in env or {}:
        if not _VARIABLE.fullmatch(name):
            raise UserError(f"{name[:80]!r} cannot be the name of an environment variable")
    return "".join(f"export {name}={quote(value)}; " for name, value in (env or {}).items())


def command(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """`argv` as shell text, with `env` exported before it."""
    if not argv:
        raise UserError("an empty command cannot be run on a device")
    return exports(env) + " ".join(quote(word) for word in argv)


def number(text: str) -> int | None:
    """`text` as a count that a device told; None for anything but 1 to 18 plain digits."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def new_nonce() -> str:
    """32 hexadecimal digits that no output holds by chance."""
    return secrets.token_hex(16)


def wrap(body: str, nonce: str) -> str:
    """`body` as a script that ends both streams with the sentinel. Raises UserError where adbd would cut it."""
    end = f"printf '\\n@{nonce}:%d@' $s"
    script = f"( export {CALL_VARIABLE}={nonce}; {body}\n) </dev/null; s=$?; {end} >&2; {end}"
    size = len(script.encode("utf-8", "surrogateescape"))
    if size > _MAX_SCRIPT_BYTES:
        raise UserError(
            f"a command of {size} bytes is longer than the {_MAX_SCRIPT_BYTES} a device takes",
            hint="put the arguments into a file with Device.write and pass its path",
        )
    return script


def unwrap(reply: Reply, nonce: str, device: str) -> Reply:
    """`reply` without its sentinels, `returncode` now the command's own. Raises DeviceLost when one is missing."""
    end = re.compile(rb"\n@" + nonce.encode() + rb":([0-9]{1,3})@\Z")
    out, err = (
        end.search(reply.stdout, max(0, len(reply.stdout) - 64)),
        end.search(reply.stderr, max(0, len(reply.stderr) - 64)),
    )
    if out is None or err is None or out[1] != err[1]:
        said = reply.stderr[-300:].decode("utf-8", "replace").strip()
        raise DeviceLost(
            "the reply was cut off before its end" + (f" ({said})" if said and err is None else ""),
            device=device,
            hint="check the cable or the network; `edgekit devices` shows whether the device is back",
        )
    return Reply(returncode=int(out[1]), stdout=reply.stdout[: out.start()], stderr=reply.stderr[: err.start()])
