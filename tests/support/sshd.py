"""A real sshd on a port of 127.0.0.1 for tests: own keys, own configuration, nothing of /etc/ssh or ~/.ssh."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server", "/usr/lib/ssh/sftp-server")


def sshd_unavailable_reason() -> str | None:
    """Why no sshd can be started here, or None."""
    if shutil.which("ssh-keygen") is None or _sshd() is None:
        return "sshd is not installed: apt install openssh-server"
    if os.geteuid() == 0 and subprocess.run(["id", "sshd"], capture_output=True).returncode != 0:
        return "there is no user 'sshd', which sshd as root needs: apt install openssh-server"
    return None


def need_sshd() -> None:
    """Skip the test where no sshd can be started; fail it where EDGEKIT_REQUIRE_SSHD=1 (CI)."""
    reason = sshd_unavailable_reason()
    if reason and os.environ.get("EDGEKIT_REQUIRE_SSHD") == "1":
        pytest.fail(f"EDGEKIT_REQUIRE_SSHD=1, and no sshd: {reason}")
    if reason:
        pytest.skip(f"no sshd: {reason}")


def _sshd() -> str | None:
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def make_key(path: Path, *, passphrase: str = "", kind: str = "ed25519") -> Path:
    """A new key pair at `path` and `path.pub`."""
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return path


def fingerprint(path: Path) -> str:
    """`SHA256:…` of a key file."""
    said = subprocess.run(["ssh-keygen", "-lf", str(path)], check=True, capture_output=True, text=True)
    return said.stdout.split()[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFiles:
    """What `EDGEKIT_SSH_CONFIG` and `EDGEKIT_KNOWN_HOSTS` name in a test."""

    config: Path
    known_hosts: Path
    key: Path

    def environment(self) -> dict[str, str]:
        return {"EDGEKIT_SSH_CONFIG": str(self.config), "EDGEKIT_KNOWN_HOSTS": str(self.known_hosts)}


class Sshd:
    """A private sshd; a context manager. It lets `self.key` in, as the user who runs the tests."""

    def __init__(self, folder: Path, *, settings: str = "", key_kind: str = "ed25519") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.host_key = make_key(folder / "host_key", kind=key_kind)
        self.key = make_key(folder / "user_key")
        self.authorized = folder / "authorized_keys"
        self.authorized.write_text(self.key.with_suffix(".pub").read_text())
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd's unprivileged part lives; empty
        sftp = next((path for path in _SFTP_SERVERS if Path(path).exists()), "internal-sftp")
        # what a test sets comes first: for sshd, the first value of a setting counts
        config = self.folder / "sshd_config"
        config.write_text(
            f"{self._settings}\n"
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.host_key}\nPidFile none\n"
            f"AuthorizedKeysFile {self.authorized}\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\nMaxStartups 100\n"
            f"Subsystem sftp {sftp}\n"
            # The home of whoever runs the tests stays as it is; and bash reads ~/.bashrc for sshd (it asks the user
            # database where that is), but not when it is told that it is no first shell.
            f"SetEnv SHLVL=2 HOME={self.folder}\n"
        )
        sshd = _sshd()
        assert sshd is not None
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sshd, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                log_text = (self.folder / "log").read_text(errors="replace")
                assert self._process.poll() is None, f"sshd ended: {log_text}"
                assert time.monotonic() < deadline, f"sshd does not listen: {log_text}"
                time.sleep(0.02)

    @property
    def pid(self) -> int | None:
        """The listener, whose children are the sessions."""
        return self._process.pid if self._process is not None else None

    def stop(self) -> None:
        """End the listener; sessions that are open go on, as with a real one."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def pids(self) -> list[int]:
        """The listener and the processes of its sessions (sshd's own, not what runs in them)."""
        import psutil

        assert self._process is not None
        listener = psutil.Process(self._process.pid)
        return [p.pid for p in (listener, *listener.children(recursive=True)) if p.name().startswith("sshd")]

    def known_hosts_line(self, port: int | None = None) -> str:
        """The line that makes this server's key known under `port` of 127.0.0.1 (a proxy's, for example)."""
        kind, data = self.host_key.with_suffix(".pub").read_text().split()[:2]
        return f"[127.0.0.1]:{port or self.port} {kind} {data}\n"

    def client(self, folder: Path, *, port: int | None = None, known: bool = True, settings: str = "") -> ClientFiles:
        """Files that reach this server as `ssh:testboard`, or by its address; `port` is a proxy's."""
        folder.mkdir(parents=True, exist_ok=True)
        files = ClientFiles(config=folder / "config", known_hosts=folder / "known_hosts", key=self.key)
        if known:
            files.known_hosts.write_text(self.known_hosts_line(port))
        # no file of the user who runs the tests is looked into
        files.config.write_text(
            f"{settings}\n"
            f"Host testboard\n  HostName 127.0.0.1\n  Port {port or self.port}\n"
            f"Host *\n  User {getpass.getuser()}\n  IdentityFile {self.key}\n"
            "  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {folder / 'user_known_hosts'}\n"
            f"  GlobalKnownHostsFile {folder / 'global_known_hosts'}\n"
        )
        return files
