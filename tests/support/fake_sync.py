"""The `sync:` service of adbd, version 1 (AOSP `SYNC.TXT`): STAT, SEND and RECV of single files of this host.

A folder's listing (LIST) has the names it is given, which may lead out of the folder.

Requests are four letters and a length; a file goes as DATA packets of at most 64 KiB, ended by DONE.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence

_MAX_DATA = 64 * 1024
_REGULAR = 0o100000


class SyncService:
    """One session of the service, over a `read(count)` that blocks (EOFError at the end) and a `write`."""

    def __init__(
        self, read: Callable[[int], bytes], write: Callable[[bytes], None], listing: Sequence[bytes] = ()
    ) -> None:
        self._listing = listing
        self._read = read
        self._write = write

    def serve(self) -> None:
        """Answer requests until QUIT."""
        while True:
            kind, length = struct.unpack("<4sI", self._read(8))
            if kind == b"QUIT":
                return
            name = self._read(length).decode("utf-8", "surrogateescape")
            {b"STAT": self._stat, b"SEND": self._send, b"RECV": self._receive, b"LIST": self._list}[kind](name)

    def _stat(self, path: str) -> None:
        try:
            found = os.stat(path)
        except OSError:
            self._write(struct.pack("<4sIII", b"STAT", 0, 0, 0))
        else:
            self._write(struct.pack("<4sIII", b"STAT", found.st_mode, found.st_size, int(found.st_mtime)))

    def _list(self, _path: str) -> None:
        for name in self._listing:
            self._write(struct.pack("<4sIIII", b"DENT", _REGULAR | 0o644, 3, 0, len(name)) + name)
        self._write(struct.pack("<4sIIII", b"DONE", 0, 0, 0, 0))

    def _send(self, name: str) -> None:
        path, _, _mode = name.rpartition(",")
        problem = ""
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError as e:
            problem, descriptor = e.strerror or str(e), -1
        while True:
            kind, length = struct.unpack("<4sI", self._read(8))
            if kind == b"DONE":  # its length is a time
                break
            data = self._read(length)
            if not problem:
                try:
                    os.write(descriptor, data)
                except OSError as e:
                    problem = e.strerror or str(e)
        if descriptor >= 0:
            os.close(descriptor)
        if problem:
            text = f"couldn't write to file: {problem}".encode()
            self._write(struct.pack("<4sI", b"FAIL", len(text)) + text)
        else:
            self._write(struct.pack("<4sI", b"OKAY", 0))

    def _receive(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                while data := file.read(_MAX_DATA):
                    self._write(struct.pack("<4sI", b"DATA", len(data)) + data)
        except OSError as e:
            text = (e.strerror or str(e)).encode()
            self._write(struct.pack("<4sI", b"FAIL", len(text)) + text)
            return
        self._write(struct.pack("<4sI", b"DONE", 0))
