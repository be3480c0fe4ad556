"""A TCP proxy that misbehaves on demand: cuts after so many bytes, resets, ends, drips, or swallows everything."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

_CHUNK = 64 * 1024


class Proxy:
    """Forwards a port of 127.0.0.1 to `target`; a context manager. Faults apply to all its connections."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._hole = threading.Event()
        self._ended = threading.Event()
        self._dripping = threading.Event()
        self._down_left: int | None = None
        self._up_left: int | None = None
        self._again: tuple[int | None, int | None] = (None, None)
        self.accepted = 0
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._hole.clear()
        self._listener.close()
        self.cut()

    def cut(self, *, reset: bool = True) -> None:
        """Reset every connection now (RST), or end it in order (FIN) where `reset` is False."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        self.cuts += bool(pairs)
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    if reset:
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)
                    end.close()

    def cut_after(self, *, down: int | None = None, up: int | None = None, every: bool = False) -> None:
        """Reset when that many more bytes have come from the target (`down`) or gone to it (`up`).

        Once, or with `every` again and again after as many more; a call without numbers ends it.
        """
        with self._lock:
            self._down_left, self._up_left = down, up
            self._again = (down, up) if every else (None, None)

    def swallow(self, on: bool) -> None:
        """While on, connections stay open and nothing passes either way."""
        (self._hole.set if on else self._hole.clear)()

    def drip(self, on: bool) -> None:
        """While on, what comes from the target passes one byte at a time, twenty a second."""
        (self._dripping.set if on else self._dripping.clear)()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                if self._ended.is_set():
                    return
                continue
            server.settimeout(None)
            self.accepted += 1
            with self._lock:
                self._pairs.append((client, server))
            for source, sink, is_down in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, is_down), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_down: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                while self._hole.is_set() and not self._ended.is_set():
                    self._ended.wait(0.02)
                if is_down and self._dripping.is_set():
                    data = self._dripped(data, sink)
                passed, is_last = self._allowance(len(data), is_down)
                sink.sendall(data[:passed])
                if is_last:
                    self.cut()
                    return
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # close alone sends no FIN while the other pump waits in recv
            with contextlib.suppress(OSError):
                end.close()

    def _dripped(self, data: bytes, sink: socket.socket) -> bytes:
        """What is left of `data` when the dripping ends."""
        while data and self._dripping.is_set() and not self._ended.is_set():
            sink.sendall(data[:1])
            data = data[1:]
            self._ended.wait(0.05)
        return data

    def _allowance(self, wanted: int, is_down: bool) -> tuple[int, bool]:
        """How many of `wanted` bytes may pass, and whether the cut comes after them."""
        with self._lock:
            left = self._down_left if is_down else self._up_left
            if left is None:
                return wanted, False
            passed = min(wanted, left)
            left = None if passed == left else left - passed
            is_last = left is None
            if is_last:
                left = self._again[0 if is_down else 1]
            if is_down:
                self._down_left = left
            else:
                self._up_left = left
            return passed, is_last
