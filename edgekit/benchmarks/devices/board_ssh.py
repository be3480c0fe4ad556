"""ssh to virtual boards: a host key made once for each name, a key of edgekit's to log in with, and the client files.

All of it is in one folder of edgekit's cache that only its user can read. `edgekit` reads `config` there after the
user's own; `ssh -F FILE edgekit-amd64-1` works with it as well.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.benchmarks.devices.adb_client import host_lock
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board_records import BoardRecord, running_boards, ssh_files
from edgekit.benchmarks.devices.board_tree import BOARD_USER

__all__ = ["board_ssh_files", "write_client_files"]

_INSIDE = "/run/edgekit-ssh"
"""Where the files are on the board."""
_SSHD_CONFIG = f"""Port 22
HostKey {_INSIDE}/host_key
AuthorizedKeysFile {_INSIDE}/authorized_keys
PidFile none
UsePAM no
AllowUsers {BOARD_USER}
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowTcpForwarding no
X11Forwarding no
PrintMotd no
MaxStartups 100
Subsystem sftp internal-sftp
"""


def board_ssh_files(name: str, processor: str | None, deadline: Deadline) -> Path:
    """The folder with sshd's files for the board `name`; its host key and the login key are made when missing.

    `processor` is what qemu emulates, if it does. The user's own public keys (`~/.ssh/id_*.pub`) are let in, too.
    """
    folder = ssh_files()
    inside = folder / name
    with host_lock("board-ssh", deadline):
        for made in (folder, inside):
            made.mkdir(parents=True, exist_ok=True, mode=0o700)
            made.chmod(0o700)
        _key(inside / "host_key", f"edgekit-{name}")
        own = _key(folder / "client_key", "edgekit")
        _write(inside / "authorized_keys", "".join(f"{line}\n" for line in (own, *_users_keys())))
        environment = f"SetEnv QEMU_CPU={processor}\n" if processor else ""
        _write(inside / "sshd_config", _SSHD_CONFIG + environment)
    return inside


def _key(path: Path, comment: str) -> str:
    """The public line of the ed25519 key at `path`, which is made when it is missing."""
    import asyncssh

    if not path.exists():
        key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
        _write(path, key.export_private_key("openssh").decode())
    public = asyncssh.read_private_key(str(path)).export_public_key("openssh").decode().strip()
    return f"{' '.join(public.split()[:2])} {comment}"


def _write(path: Path, text: str) -> None:
    """`text` in a file that only its owner reads, by rename."""
    descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


def _users_keys() -> list[str]:
    """The user's public keys, those that are ones."""
    import asyncssh

    found = []
    for path in sorted(Path("~/.ssh").expanduser().glob("id_*.pub")):
        try:
            public = asyncssh.read_public_key(str(path)).export_public_key("openssh").decode()
        except (OSError, ValueError):
            continue
        found.append(" ".join(public.split()[:2]))
    return found


def write_client_files(deadline: Deadline) -> None:
    """The client's configuration and known hosts for the boards that run now."""
    folder = ssh_files()
    with host_lock("board-ssh", deadline):
        boards = [record for record in running_boards() if (folder / record.name / "host_key").is_file()]
        known = "".join(f"edgekit-{r.name} {_key(folder / r.name / 'host_key', r.name)}\n" for r in boards)
        _write(folder / "known_hosts", known)
        _write(folder / "config", "".join(_client_entry(record, folder) for record in boards))


def _client_entry(record: BoardRecord, folder: Path) -> str:
    return (
        f"Host edgekit-{record.name}\n"
        f"  HostName {record.address}\n"
        f"  HostKeyAlias edgekit-{record.name}\n"
        f"  User {BOARD_USER}\n"
        f'  IdentityFile "{folder / "client_key"}"\n'
        f'  UserKnownHostsFile "{folder / "known_hosts"}"\n'
    )
