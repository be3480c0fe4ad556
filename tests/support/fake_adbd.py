"""A small adbd for a real adb server: the wire protocol, a real shell behind it, and faults a phone shows.

Speaks enough of AOSP's `protocol.txt` for the real client: CNXN, AUTH, OPEN / OKAY / WRTE / CLSE, and the services
`shell,v2,…raw:` (AOSP `shell_protocol.h`: a byte of kind, four of length) and `sync:` (`fake_sync`). It needs no root
and no Android. It has no terminals: a shell that asks for one (`pty`) is refused, as on a board without devpts.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from support.fake_sync import SyncService

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
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.mode = mode
        self.features = features
        self.model = model
        self.environment = dict(environment) if environment is not None else None
        """Of the shells; None is that of the tests."""
        self.substitutions: dict[bytes, bytes] = {}
        """Replaced in every script before it runs: a path of the system by one of the test's."""
        if path is not None:  # the only folder with programs (see `fake_android`); it lies in the `/data/local/tmp`
            self.environment = {**(self.environment or os.environ), "PATH": str(path)}
            self.substitutions[b"/data/local/tmp"] = os.fsencode(path.parent)
        self.mangle: Callable[[bytes], bytes] | None = None
        """Applied to each shell's stream, packets and all, before it is sent."""
        self.mangle_sync: Callable[[bytes], bytes] | None = None
        """Applied to each reply of the sync service."""
        self.listing: tuple[bytes, ...] = ()
        """The names in every folder, as the sync service lists them."""
        self.raw_reply: bytes | None = None
        """Sent as it is, instead of a packet of the protocol, in answer to the next WRTE or OPEN."""
        self.is_endless = False
        """True: shells print for ever, and files that are fetched have no end."""
        self.is_deaf = False
        """True: shells are opened, run, and never answered."""
        self.services: list[str] = []
        """Each service that was asked for, without its script."""
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
        self.cut()

    def cut(self) -> None:
        """End every connection; new ones are taken."""
        sockets, self._sockets = self._sockets, []
        for connection in sockets:
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
        self._streams: dict[int, queue.Queue[bytes]] = {}
        self._next_id = 1

    def serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                kind, first, second, payload = self._receive()
                self._handle(kind, first, second, payload)

    def _handle(self, kind: bytes, first: int, second: int, payload: bytes) -> None:
        raw = self._adbd.raw_reply
        if self._adbd.mode == "mute":
            return
        if kind in (b"CNXN", b"AUTH"):
            self._greet(kind, first)
        elif kind in (b"OPEN", b"WRTE") and raw is not None:
            self._adbd.raw_reply = None
            with self._write_lock:
                self._connection.sendall(raw)
        elif kind == b"OPEN":
            self._open(payload.rstrip(b"\0"), first)
        elif kind == b"WRTE":
            if second in self._streams:
                self._streams[second].put(payload)
            self._send(b"OKAY", second, first, b"")
        elif kind == b"CLSE" and second in self._streams:
            self._streams.pop(second).put(b"")
        elif kind == b"OKAY" and second in self._acknowledged:
            self._acknowledged[second].release()

    def _greet(self, kind: bytes, first: int) -> None:
        if self._adbd.mode == "unauthorized":
            if kind == b"CNXN" or first == 2:  # 2: a signature. 3: a key to ask the user about; no answer comes
                self._send(b"AUTH", 1, 0, b"x" * 20)
            return
        name = self._adbd.model
        banner = f"device::ro.product.name={name};ro.product.model={name};features={self._adbd.features}"
        self._send(b"CNXN", _VERSION, _MAX_PAYLOAD, banner.encode())

    def _open(self, service: bytes, remote: int) -> None:
        """Begin a stream for `sync` or `shell,v2,TERM=xterm,raw:SCRIPT`; refuse any other service."""
        local, self._next_id = self._next_id, self._next_id + 1
        kind, _, script = service.partition(b":")
        self._adbd.services.append(kind.decode("utf-8", "replace"))
        is_shell = kind.startswith(b"shell,v2,") and kind.endswith(b",raw")
        if not is_shell and kind != b"sync":
            self._send(b"CLSE", 0, remote, b"")
            return
        self._acknowledged[local] = threading.Semaphore(0)
        if is_shell:
            thread = threading.Thread(target=self._shell, args=(script, local, remote), daemon=True)
        else:
            self._streams[local] = queue.Queue()
            thread = threading.Thread(target=self._sync, args=(local, remote), daemon=True)
        self._send(b"OKAY", local, remote, b"")
        thread.start()

    def _sync(self, local: int, remote: int) -> None:
        incoming, held = self._streams[local], bytearray()

        def read(count: int) -> bytes:
            while len(held) < count:
                chunk = incoming.get()
                if not chunk:
                    raise EOFError
                held.extend(chunk)
            taken = bytes(held[:count])
            del held[:count]
            return taken

        def write(data: bytes) -> None:
            while self._adbd.is_endless and data.startswith(b"DATA"):
                self._send(b"WRTE", local, remote, data)
                self._acknowledged[local].acquire(timeout=5)
            if self._adbd.mangle_sync is not None:
                data = self._adbd.mangle_sync(data)
            for at in range(0, len(data), _MAX_PAYLOAD):
                self._send(b"WRTE", local, remote, data[at : at + _MAX_PAYLOAD])
                self._acknowledged[local].acquire(timeout=5)

        with contextlib.suppress(OSError, EOFError):
            SyncService(read, write, self._adbd.listing).serve()
            self._send(b"CLSE", local, remote, b"")

    def _shell(self, script: bytes, local: int, remote: int) -> None:
        with contextlib.suppress(OSError):
            flood = struct.pack("<BI", _STDOUT, 65536) + b"y" * 65536
            while self._adbd.is_endless:
                self._send(b"WRTE", local, remote, flood)
                if not self._acknowledged[local].acquire(timeout=5):
                    return
        for path, other in self._adbd.substitutions.items():
            script = script.replace(path, other)
        done = subprocess.run(
            ["/bin/sh", "-c", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            start_new_session=True,
            env=self._adbd.environment,
        )
        if self._adbd.is_deaf:
            return
        packets = [(_STDOUT, done.stdout), (_STDERR, done.stderr), (_EXIT, bytes([done.returncode % 256]))]
        stream = b"".join(struct.pack("<BI", kind, len(data)) + data for kind, data in packets if data)
        if self._adbd.mangle is not None:
            stream = self._adbd.mangle(stream)
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
