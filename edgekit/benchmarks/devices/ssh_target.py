"""What `ssh:` names, and the files that say how to reach it: ssh's configuration, edgekit's own known hosts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgekit.benchmarks.devices.board_records import ssh_files
from edgekit.errors import UserError

__all__ = ["SshTarget", "config_files", "own_known_hosts", "parse_target"]

# Nothing that begins with `-` (an option of a program), nothing that a shell or a configuration file reads as more
# than a name.
_SPEC = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\$?)@)?"
    r"(?P<host>[A-Za-z0-9_][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,32})?\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_HINT = "write ssh:HOST, ssh:USER@HOST:PORT (an IPv6 address in brackets), or an alias of ~/.ssh/config"


@dataclass(frozen=True, slots=True, kw_only=True)
class SshTarget:
    """A host as the user named it; what is None comes from the ssh configuration."""

    host: str
    user: str | None = None
    port: int | None = None
    spec: str


def parse_target(argument: str) -> SshTarget:
    """The target of `ssh:argument`. Raises UserError for what cannot be a host."""
    match = _SPEC.fullmatch(argument)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (port is not None and not 0 < port < 65536):
        raise UserError(f"{argument[:100]!r} cannot be a host to reach by ssh", hint=_HINT)
    return SshTarget(host=match["host"].strip("[]"), user=match["user"], port=port, spec=f"ssh:{argument}")


def config_files() -> list[Path]:
    """The ssh configuration to read: `$EDGEKIT_SSH_CONFIG` alone where it is set.

    Else `~/.ssh/config` and the virtual boards', those that are there.
    """
    chosen = os.environ.get("EDGEKIT_SSH_CONFIG")
    if chosen:
        path = Path(chosen).expanduser()
        if not path.is_file():
            raise UserError(f"there is no file {path}, which EDGEKIT_SSH_CONFIG names")
        return [path]
    # The started virtual boards' comes last: what the user says of a host goes before it.
    paths = (Path("~/.ssh/config").expanduser(), ssh_files() / "config")
    return [path for path in paths if path.is_file()]


def own_known_hosts() -> Path:
    """Where accepted host keys are kept: `$EDGEKIT_KNOWN_HOSTS`, else `~/.config/edgekit/known_hosts`."""
    chosen = os.environ.get("EDGEKIT_KNOWN_HOSTS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return base / "edgekit" / "known_hosts"
