"""A small adbd for a real adb server: the wire protocol, a real shell behind it, and faults a phone shows.

Speaks enough of AOSP's `protocol.txt` for the real client: CNXN, AUTH, OPEN / OKAY / WRTE / CLSE, and the services
`shell,v2,…raw:` (AOSP `shell_protocol.h`: a byte of kind, four of length). It needs no root and no Android.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_VERSION = 0x01000001
_MAX_PAYLOAD = 256 * 1024
_STDOUT, _STDERR, _EXIT = 1, 2, 3


class FakeAdbd:
    """Listens on 127.0.0.1; a context manager.

    `mode`: `ready`, `unauthorized` (asks for a key and takes none), `mute` (accepts and says nothing).
    """

    def __init__(
        self,
        *,
        mode: str = "ready",
        features: str = "shell_v2,cmd",
        model: str = "fake",
        path: Path | None = None,
    ) -> None:
        self.mode = mode
        self.features = features
        self.model = model
        self.path = path
        """The only folder with programs that its shell finds (see `fake_android`); None is this host's PATH. Its
        parent stands for the device's `/data/local/tmp`."""
        self.cut_reply_after: int | None = None
        """Close the connection after that many bytes of a shell's stream, once."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.go_away()

    def go_away(self) -> None:
        """Close every connection and take no new one: adb lists it as offline from then on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a thread in accept() would keep the port open
        self._listener.close()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
                connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(connection)
            threading.Thread(target=_Session(self, connection).serve, daemon=True).start()


class _Session:
    """One connection of an adb server."""

    def __init__(self, adbd: FakeAdbd, connection: socket.socket) -> None:
        self._adbd = adbd
        self._connection = connection
        self._write_lock = threading.Lock()
        self._acknowledged: dict[int, threading.Semaphore] = {}
        self._next_id = 1

    def serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                kind, first, second, payload = self._receive()
                self._handle(kind, first, second, payload)

    def _handle(self, kind: bytes, first: int, second: int, payload: bytes) -> None:
        if self._adbd.mode == "mute":
            return
        if kind in (b"CNXN", b"AUTH"):
            if self._adbd.mode == "unauthorized":
                if kind == b"CNXN" or first == 2:  # 2: a signature. 3: a key to ask the user about; no answer comes
                    self._send(b"AUTH", 1, 0, b"x" * 20)
            else:
                banner = (
                    f"device::ro.product.name=fake;ro.product.model={self._adbd.model};features={self._adbd.features}"
                )
                self._send(b"CNXN", _VERSION, _MAX_PAYLOAD, banner.encode())
        elif kind == b"OPEN":
            local, self._next_id = self._next_id, self._next_id + 1
            service = payload.rstrip(b"\0")
            kind_of_service, _, script = service.partition(b":")  # `shell,v2,TERM=xterm,raw:SCRIPT`
            if not kind_of_service.startswith(b"shell,v2,") or not kind_of_service.endswith(b",raw"):
                self._send(b"CLSE", 0, first, b"")
                return
            self._acknowledged[local] = threading.Semaphore(0)
            self._send(b"OKAY", local, first, b"")
            threading.Thread(target=self._shell, args=(script, local, first), daemon=True).start()
        elif kind == b"WRTE":
            self._send(b"OKAY", second, first, b"")
        elif kind == b"OKAY" and second in self._acknowledged:
            self._acknowledged[second].release()

    def _shell(self, script: bytes, local: int, remote: int) -> None:
        path = self._adbd.path
        if path is not None:
            script = script.replace(b"/data/local/tmp", os.fsencode(path.parent))
        done = subprocess.run(
            ["/bin/sh", "-c", script],
            env={**os.environ, "PATH": str(path)} if path else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            start_new_session=True,
        )
        packets = [(_STDOUT, done.stdout), (_STDERR, done.stderr), (_EXIT, bytes([done.returncode % 256]))]
        stream = b"".join(struct.pack("<BI", kind, len(data)) + data for kind, data in packets if data)
        cut, self._adbd.cut_reply_after = self._adbd.cut_reply_after, None
        is_cut = cut is not None and cut < len(stream)
        if is_cut:
            stream = stream[:cut]
        with contextlib.suppress(OSError):
            for at in range(0, len(stream), _MAX_PAYLOAD):
                self._send(b"WRTE", local, remote, stream[at : at + _MAX_PAYLOAD])
                self._acknowledged[local].acquire(timeout=5)
            if is_cut:
                self._connection.shutdown(socket.SHUT_RDWR)
            else:
                self._send(b"CLSE", local, remote, b"")

    def _send(self, kind: bytes, first: int, second: int, payload: bytes) -> None:
        code = int.from_bytes(kind, "little")
        header = struct.pack("<6I", code, first, second, len(payload), sum(payload) & 0xFFFFFFFF, code ^ 0xFFFFFFFF)
        with self._write_lock:
            self._connection.sendall(header + payload)

    def _receive(self) -> tuple[bytes, int, int, bytes]:
        code, first, second, length, _, _ = struct.unpack("<6I", self._exactly(24))
        return code.to_bytes(4, "little"), first, second, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self._connection.recv(count - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data
