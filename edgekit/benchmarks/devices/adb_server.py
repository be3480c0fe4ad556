"""Which adb servers to ask, and how each is named: `HOST:PORT`, as adb's own -H and -P."""

from __future__ import annotations

import os
import re

from edgekit.errors import UserError

__all__ = ["SERVERS_VARIABLE", "checked_server", "chosen_servers", "server_socket"]

SERVERS_VARIABLE = "EDGEKIT_ADB_SERVER"
"""One `HOST:PORT` or several with commas; `--adb-server` sets it."""

_SERVER = re.compile(
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})"
)
_DEFAULT_PORT = 5037


def checked_server(text: str) -> str:
    """`text` when it is `HOST:PORT`, else UserError."""
    match = _SERVER.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise UserError(f"{text[:80]!r} is not an adb server", hint="write HOST:PORT, for example 10.0.0.7:5037")
    return text


def server_socket(server: str) -> str:
    """adb's name (`-L`) for the server `HOST:PORT`."""
    host, _, port = checked_server(server).rpartition(":")
    # By address: an adb that finds no server at `localhost` starts one of its own, which would outlive the command.
    return f"tcp:{'127.0.0.1' if host == 'localhost' else host}:{port}"


def chosen_servers() -> tuple[str | None, ...]:
    """The servers the user chose, in order; (None,) for adb's default one.

    `EDGEKIT_ADB_SERVER`, else `ANDROID_ADB_SERVER_ADDRESS` with `ANDROID_ADB_SERVER_PORT`. The port alone is left to
    the adb client, which reads it itself and starts the server there.
    """
    chosen = [part.strip() for part in os.environ.get(SERVERS_VARIABLE, "").split(",") if part.strip()]
    if chosen:
        return tuple(dict.fromkeys(checked_server(server) for server in chosen))
    address = os.environ.get("ANDROID_ADB_SERVER_ADDRESS")
    if address:
        return (checked_server(f"{address}:{os.environ.get('ANDROID_ADB_SERVER_PORT') or _DEFAULT_PORT}"),)
    return (None,)
