"""A private PostgreSQL server on a port of 127.0.0.1, for tests of what several hosts may share."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self


def _program(name: str) -> str | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=":".join([*map(str, folders), os.environ.get("PATH", "")]))


def postgres_unavailable_reason() -> str | None:
    """Why no server can be started here, or None."""
    if importlib.util.find_spec("psycopg") is None:
        return "pip install 'edgekit[postgres]'"
    if _program("initdb") is None or _program("pg_ctl") is None:
        return "apt install postgresql"
    if os.geteuid() == 0 and (subprocess.run(["id", "postgres"], capture_output=True).returncode or not _runuser()):
        return "it does not run as root, and there is no user 'postgres'"
    return None


def _runuser() -> str | None:
    return shutil.which("runuser")


class Postgres:
    """A running server; a context manager."""

    def __enter__(self) -> Self:
        # below /tmp itself: the user postgres does not get into pytest's folders
        self._folder = Path(tempfile.mkdtemp(prefix="edgekit-postgres-", dir="/tmp"))
        self._data = self._folder / "data"
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", "edgekit", "--no-sync")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder} -c fsync=off"
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(self._folder / "log"), "-o", options, "start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "stop")
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"t{secrets.token_hex(6)}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "edgekit", name)
        return f"postgresql+psycopg://edgekit@127.0.0.1:{self.port}/{name}"

    def _run(self, name: str, *arguments: str) -> None:
        program = _program(name)
        assert program is not None
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*user, program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a pipe would be held open by the server
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
        )
        assert done.returncode == 0, f"{name} ended with {done.returncode}"
