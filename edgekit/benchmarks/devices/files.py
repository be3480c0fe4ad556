"""Files on a device: stored by their sha256, checked there, never half at their final place; room where it is full.

A file travels to a name of its own, is hashed on the device and renamed when it is right. What comes back goes into a
temporary file beside its destination, of bounded size, and is renamed when it is whole.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.calls import Calls
from edgekit.benchmarks.devices.room import free_room_script
from edgekit.benchmarks.devices.script import checked_name, number, quote, under_root
from edgekit.benchmarks.devices.transport import Reply, Transport
from edgekit.errors import (
    DeviceDiskFull,
    DeviceError,
    DeviceFileMissing,
    DeviceLost,
    DeviceTimeout,
    HostError,
    IntegrityError,
    OutputLimitError,
)
from edgekit.schema import known_sha256, sha256_of

__all__ = ["StoredFiles"]

log = logging.getLogger(__name__)

_AHEAD_BYTES = 4 << 20
"""From here on hashing takes longer than one more question."""
_KEEP_SECONDS = 900.0
"""A file that was put so lately is not removed to make room: the job it is for may be about to start."""
_SHA256 = 'sha() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi <"$1"; }; '

T = TypeVar("T")


class StoredFiles(Calls):
    """The file part of a `Device`."""

    def __init__(self, *, spec: str, transport: Transport, root: PurePosixPath) -> None:
        super().__init__(spec=spec, transport=transport, root=root)
        self._put_at: dict[str, float] = {}
        """sha256 of what this object has put, to the monotonic time of it."""

    def put(self, source: Path, deadline: Deadline, *, is_missing: bool = False) -> PurePosixPath:
        try:
            size = source.stat().st_size
            with ThreadPoolExecutor(1) as beside:
                hashing = beside.submit(known_sha256, source)
                is_ahead = size >= _AHEAD_BYTES and not is_missing
                ahead = self._send_ahead(source, size, deadline) if is_ahead else None
                sha = hashing.result()
        except OSError as e:
            raise HostError(f"cannot read {source}: {e.strerror}") from e
        final = self.stored(sha)
        self._put_at[sha] = time.monotonic()
        if ahead is not None and self._settled_ahead(ahead, final, sha, deadline):
            return final
        # touched, so that what makes room removes the files that were not asked for longest
        here = f'f={quote(str(final))}; [ -f "$f" ] && {{ touch "$f" 2>/dev/null; wc -c < "$f"; }} || echo none'
        # The size catches a file emptied by a power cut after its rename; the hash was checked when it was put.
        if not is_missing and self._query(here, deadline).strip() == str(size):
            return final
        send = lambda: self._send(source, final, sha, deadline)  # noqa: E731 - one step under two kinds of second try
        self._with_room(size, deadline, lambda: self._retried("put", deadline, send))
        return final

    def stored(self, sha256: str) -> PurePosixPath:
        return self._root / "cas" / checked_name(sha256)

    def write(self, path: PurePosixPath, data: bytes, deadline: Deadline) -> None:
        under_root(path, self._root)
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            local = Path(folder) / "data"
            local.write_bytes(data)
            sha = sha256_of(local)
            send = lambda: self._send(local, path, sha, deadline)  # noqa: E731 - as in `put`
            self._with_room(len(data), deadline, lambda: self._retried("write", deadline, send))

    def pull(
        self,
        source: PurePosixPath,
        destination: Path,
        deadline: Deadline,
        *,
        max_bytes: int,
        sha256: str | None = None,
    ) -> None:
        under_root(source, self._root)
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}.partial")
        try:
            if sha256 is None or not self._receive_known(source, partial, deadline, max_bytes, sha256):
                self._retried("pull", deadline, lambda: self._receive(source, partial, deadline, max_bytes))
            os.replace(partial, destination)
        finally:
            if partial.is_dir():  # a device may say that the file is a folder, and the adb client makes one
                shutil.rmtree(partial)
            partial.unlink(missing_ok=True)

    def _send_ahead(self, source: Path, size: int, deadline: Deadline) -> PurePosixPath | None:
        """Where a file lies that was sent while it is hashed here; None where that did not go, or may be needless.

        Needless it may be when a file of the same size is there already: only the hash tells whether it is this one.
        """
        folder = self._root / "cas"
        # `ls -ln` everywhere has the size fifth; `find` is not on every board
        rows = [line.split(None, 5) for line in self._query(f"ls -ln {quote(str(folder))}", deadline).splitlines()]
        if any(len(row) > 4 and row[4] == str(size) for row in rows):
            return None
        temporary = folder / f".ahead.{secrets.token_hex(8)}"
        try:
            self._transport.send(source, temporary, deadline)
        except DeviceTimeout:
            raise
        except DeviceError as e:
            log.info("%s: %s was not sent ahead: %s", self.spec, source.name, e.message)
            self._query(f"rm -f {quote(str(temporary))}", deadline)
            return None
        return temporary

    def _settled_ahead(self, temporary: PurePosixPath, final: PurePosixPath, sha: str, deadline: Deadline) -> bool:
        """Whether what was sent ahead arrived whole and now is `final`; if not it is gone."""
        try:
            if self._checked_in(temporary, final, sha, deadline).returncode == 0:
                return True
        except DeviceLost as e:
            log.info("%s: lost while %s was hashed there: %s", self.spec, temporary.name, e.message)
        self._query(f"rm -f {quote(str(temporary))}", deadline)
        return False

    def _checked_in(self, temporary: PurePosixPath, final: PurePosixPath, sha: str, deadline: Deadline) -> Reply:
        """Hash `temporary` on the device, print that, and rename it to `final` when it is `sha`."""
        q_temporary, q_final = quote(str(temporary)), quote(str(final))
        script = (
            f'{_SHA256}set -- $(sha {q_temporary}) none; echo $1; [ "$1" = {sha} ] && mv -f {q_temporary} {q_final}'
        )
        return self._shell(script, deadline)

    def _send(self, source: Path, final: PurePosixPath, sha: str, deadline: Deadline) -> None:
        """One transfer: to a name of its own, hashed there, renamed when right."""
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(8)}")
        try:
            self._transport.send(source, temporary, deadline)
        except DeviceDiskFull:
            self._query(f"rm -f {quote(str(temporary))}", deadline)  # what did arrive takes the room that is missing
            raise
        reply = self._checked_in(temporary, final, sha, deadline)
        if reply.returncode == 0:
            return
        self._shell(f"rm -f {quote(str(temporary))}", deadline)
        self._raise_if_full(reply)
        got = reply.stdout.decode("utf-8", "replace").strip()
        if got != sha:
            raise IntegrityError(
                f"{source.name} arrived changed (sha256 {got[:64]} instead of {sha})",
                device=self.spec,
                hint="try again; if it happens again, the device's storage or the cable is faulty",
            )
        raise self._failed(f"mv to {final}", reply)

    def _receive(self, source: PurePosixPath, partial: Path, deadline: Deadline, max_bytes: int) -> None:
        """One file into `partial`, its size checked before and its hash after."""
        q = quote(str(source))
        script = f"{_SHA256}[ -f {q} ] && [ ! -h {q} ] || {{ echo missing; exit 0; }}; wc -c < {q} && sha {q}"
        words = self._query(script, deadline).split()
        if words[:1] == ["missing"]:
            raise DeviceFileMissing(f"there is no file {source}", device=self.spec)
        size = number(words[0]) if len(words) > 1 else None
        if size is None:
            raise DeviceError(f"the size of {source} cannot be told", device=self.spec)
        sha = words[1]
        if size > max_bytes:
            raise OutputLimitError(f"{source} has {size} bytes, more than the {max_bytes} allowed", device=self.spec)
        self._transport.receive(source, partial, deadline, max_bytes=max_bytes)
        if partial.stat().st_size != size or sha256_of(partial) != sha:
            raise IntegrityError(
                f"{source} arrived changed", device=self.spec, hint="is it still being written? pull it when it is done"
            )

    def _receive_known(
        self, source: PurePosixPath, partial: Path, deadline: Deadline, max_bytes: int, sha256: str
    ) -> bool:
        """Whether the file came and has the hash; False where it has to be asked about (and fetched with retries)."""
        try:
            self._transport.receive(source, partial, deadline, max_bytes=max_bytes)
        except (DeviceTimeout, OutputLimitError):
            raise
        except DeviceError as e:
            log.info("%s: %s did not come at once: %s", self.spec, source, e.message)
        if partial.is_file() and sha256_of(partial) == sha256:
            return True
        partial.unlink(missing_ok=True)
        return False

    def _with_room(self, needed: int, deadline: Deadline, step: Callable[[], T]) -> T:
        """`step()`; where the device is full, once more after edgekit's own files there, oldest first, made room."""
        try:
            return step()
        except DeviceDiskFull as e:
            since = time.monotonic() - _KEEP_SECONDS
            keep = [sha for sha, at in self._put_at.items() if at > since]
            freed = self._query(free_room_script(self._root, needed, keep), deadline).split()
            if len(freed) != 2 or not number(freed[0]) or number(freed[1]) is None:
                raise
            log.warning(
                "%s: full; removed %s files (%s bytes) that were not used lately: %s", self.spec, *freed, e.message
            )
            return step()
