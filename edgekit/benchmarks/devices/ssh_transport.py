"""Scripts and files over one ssh connection (`Transport`): shell channels and SFTP, both with an end.

A script goes to `sh` by its standard input, so the account's login shell may be any, there is no limit on its length
below the one all devices have, and what it holds shows in no process list. A script that was cut on its way is a
syntax error there, because all of it is one compound command. What the login shell prints by itself (an `echo` in
`~/.bashrc`) ends at a mark that the script prints first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import cast

import asyncssh

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.script import quote
from edgekit.benchmarks.devices.ssh_connection import Connection, connect
from edgekit.benchmarks.devices.ssh_loop import LoopThread
from edgekit.benchmarks.devices.ssh_target import SshTarget
from edgekit.benchmarks.devices.transport import OUTPUT_LIMIT_BYTES, LinkDown, OnOutput, Reply
from edgekit.errors import (
    DeviceDiskFull,
    DeviceError,
    DeviceLost,
    DeviceTimeout,
    DeviceUnusable,
    HostError,
    OutputLimitError,
)

__all__ = ["SshTransport"]

log = logging.getLogger(__name__)

_CHUNK = 4 * 1024 * 1024
_SESSIONS = 8
"""Scripts at a time: sshd allows ten sessions a connection (MaxSessions), and SFTP is one of them."""
_RECOVERY_SECONDS = 20.0
_CLOSE_SECONDS = 1.0
_TICK_SECONDS = 0.2
_SWEEP_SECONDS = 2.0
_NO_SPACE = re.compile(rb"no space left on device|disk quota exceeded", re.IGNORECASE)
_LOST_HINT = "check the network; `edgekit devices {spec}` shows whether it is back"
_LOST_SFTP = (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, asyncssh.SFTPEOFError)


class _Session(asyncssh.SSHClientSession[bytes]):
    """Keeps what a script prints, up to a limit."""

    def __init__(self) -> None:
        self.streams = (bytearray(), bytearray())
        self.status: int | None = None
        self.is_over_limit = False
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self.streams[datatype == asyncssh.EXTENDED_DATA_STDERR].extend(data)
        if sum(map(len, self.streams)) > OUTPUT_LIMIT_BYTES and not self.is_over_limit:
            self.is_over_limit = True
            self._channel.abort()

    def exit_status_received(self, status: int) -> None:
        self.status = status

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(exc)

    async def told(self, on_output: OnOutput, mark: bytes) -> None:
        """Pass on what stdout brings after `mark`, until the session ends."""
        passed = 0
        while True:
            ended, _ = await asyncio.wait({self.ended}, timeout=_TICK_SECONDS)
            text = bytes(self.streams[0]).partition(mark)[2]
            on_output(text[passed:])
            passed = len(text)
            if ended:
                return


class SshTransport:
    """One host, reached over one connection that all calls share. Only `open` and `recover` connect."""

    outlives_client = True

    def __init__(self, target: SshTarget, *, accepted: str | None = None) -> None:
        self._target = target
        self._accepted = accepted
        self._loop = LoopThread(target.spec)
        self._connection: Connection | None = None
        self._sftp: tuple[Connection, asyncssh.SFTPClient] | None = None
        self._new_locks()
        self._litter: set[PurePosixPath] = set()
        """Files that transfers which broke off have left there; only the loop's thread looks at it."""

    @property
    def name(self) -> str:
        return self._target.spec

    @property
    def host_key(self) -> str | None:
        """Fingerprint of the key that the host proved to have; None before it was connected to."""
        return self._connection.host_key if self._connection else None

    def open(self, deadline: Deadline) -> None:
        self._loop.call(self._connect, deadline)

    def close(self) -> None:
        with contextlib.suppress(DeviceError):
            self._loop.call(self._disconnect, Deadline.after(_CLOSE_SECONDS))
        self._connection = self._sftp = None
        self._loop.close()
        self._new_locks()

    def recover(self, deadline: Deadline) -> None:
        until = deadline.within(_RECOVERY_SECONDS)
        while True:
            try:
                return self._loop.call(self._connect, until)
            except DeviceTimeout as e:
                raise DeviceLost("does not come back", device=self.name, hint=self._hint) from e
            except LinkDown:
                if until.remaining <= 0.3:
                    raise
                time.sleep(0.2)

    def shell(self, script: str, deadline: Deadline, *, on_output: OnOutput | None = None) -> Reply:
        return self._loop.call(lambda: self._shell(script, on_output), deadline)

    def send(self, source: Path, destination: PurePosixPath, deadline: Deadline) -> None:
        try:
            self._loop.call(lambda: self._send(source, destination), deadline)
        except OSError as e:
            raise HostError(f"cannot read {source}: {e.strerror or e}") from e

    def receive(self, source: PurePosixPath, destination: Path, deadline: Deadline, *, max_bytes: int) -> None:
        try:
            self._loop.call(lambda: self._receive(source, destination, max_bytes), deadline)
        except OSError as e:
            raise HostError(f"cannot write {destination}: {e.strerror or e}") from e

    def _new_locks(self) -> None:
        """Locks belong to one loop: new ones for the next."""
        self._connecting, self._starting_sftp = asyncio.Lock(), asyncio.Lock()
        self._sessions = asyncio.Semaphore(_SESSIONS)

    @property
    def _hint(self) -> str:
        return _LOST_HINT.format(spec=self.name)

    async def _connect(self) -> None:
        async with self._connecting:
            if self._connection is not None and not self._connection.is_lost:
                return
            self._connection = self._sftp = None
            self._connection = await connect(self._target, accepted=self._accepted)

    async def _disconnect(self) -> None:
        if self._connection is None:
            return
        if self._litter and not self._connection.is_lost:
            with contextlib.suppress(asyncssh.Error, DeviceError):
                await self._sweep(await self._files())
        await self._connection.close()

    def _live(self) -> Connection:
        connection = self._connection
        if connection is None or connection.is_lost:
            raise LinkDown("is not connected", device=self.name, hint=self._hint)
        return connection

    async def _shell(self, script: str, on_output: OnOutput | None) -> Reply:
        mark = f"@{secrets.token_hex(8)}@"
        # LANGUAGE=C: what programs there complain of is read here, so it has to be English.
        text = f"printf %s {mark}; printf %s {mark} >&2; export LANGUAGE=C\n{script}\n"
        async with self._sessions:
            connection = self._live()
            try:
                channel, made = await connection.ssh.create_session(_Session, "exec sh", encoding=None)
            except (asyncssh.Error, OSError) as e:
                # The script is sent after this, so nothing of it ran.
                raise LinkDown(f"no session can be opened ({e})", device=self.name, hint=self._hint) from e
            try:
                return await self._reply(channel, cast(_Session, made), text, mark.encode(), on_output)
            finally:
                channel.abort()

    async def _reply(
        self,
        channel: asyncssh.SSHClientChannel[bytes],
        session: _Session,
        text: str,
        mark: bytes,
        on_output: OnOutput | None,
    ) -> Reply:
        """What a session that was just opened answers to `text`, from `mark` on."""
        with contextlib.suppress(BrokenPipeError, OSError):  # it ended at once; its status says why
            channel.write(text.encode("utf-8", "surrogateescape"))
            channel.write_eof()
        if on_output is not None:
            await session.told(on_output, mark)
        error = await session.ended
        if session.is_over_limit:
            said = f"printed more than {OUTPUT_LIMIT_BYTES >> 20} MiB; the command was killed"
            raise OutputLimitError(said, device=self.name)
        out, err = (bytes(stream) for stream in session.streams)
        if error is not None:
            raise DeviceLost(f"the link broke under a command ({error})", device=self.name, hint=self._hint) from error
        if session.status is not None and mark not in out:
            heard = (err or out)[-300:].decode("utf-8", "replace").strip()
            raise DeviceUnusable(
                f"its login does not run `sh`{': ' + heard if heard else ''}",
                device=self.name,
                hint="use an account with an ordinary shell, and a key without a forced command",
            )
        status = session.status if session.status is not None else -1
        return Reply(returncode=status, stdout=out.partition(mark)[2], stderr=err.partition(mark)[2])

    async def _files(self) -> asyncssh.SFTPClient:
        """The connection's SFTP session, begun on first use and after it ended."""
        connection = self._live()
        async with self._starting_sftp:
            if self._sftp is None or self._sftp[0] is not connection:
                try:
                    self._sftp = (connection, await connection.ssh.start_sftp_client())
                except (asyncssh.Error, OSError) as e:
                    if connection.is_lost:
                        raise LinkDown(f"the link broke ({e})", device=self.name, hint=self._hint) from e
                    raise DeviceUnusable(
                        f"offers no file transfer (SFTP): {e}",
                        device=self.name,
                        hint="install `openssh-sftp-server` there; a `~/.bashrc` that prints something breaks it, too",
                    ) from e
            return self._sftp[1]

    async def _send(self, source: Path, destination: PurePosixPath) -> None:
        sftp = await self._files()
        # What is being written is no litter, or a send beside this one would sweep it.
        self._litter.discard(destination)
        try:
            await self._sweep(sftp)
            await self._upload_or_say_why(sftp, source, destination)
        except BaseException as e:
            self._litter.add(destination)
            if isinstance(e, DeviceDiskFull):
                await self._sweep(sftp)
            raise

    async def _upload_or_say_why(self, sftp: asyncssh.SFTPClient, source: Path, destination: PurePosixPath) -> None:
        with self._sftp_errors(f"sending {source.name}", f"cannot write {destination}"):
            try:
                await self._upload(sftp, source, destination)
            except asyncssh.SFTPNoSuchFile:
                await sftp.makedirs(str(destination.parent), exist_ok=True)
                await self._upload(sftp, source, destination)
            except asyncssh.SFTPFailure as e:  # what OpenSSH says of a full disk, and of much else
                if await self._is_full(destination):
                    raise DeviceDiskFull(
                        f"no space left for {source.name}", device=self.name, hint=f"free some in {destination.parent}"
                    ) from e
                raise

    async def _upload(self, sftp: asyncssh.SFTPClient, source: Path, destination: PurePosixPath) -> None:
        with source.open("rb") as reader:
            async with sftp.open(str(destination), "wb", encoding=None) as writer:
                while chunk := reader.read(_CHUNK):
                    await writer.write(chunk)

    async def _is_full(self, destination: PurePosixPath) -> bool:
        """Whether the file system of `destination`, a file that could not be finished, takes no more."""
        # through cat, which says why: a shell's own printf says only "I/O error"
        reply = await self._shell(f"printf %65536s x | cat >> {quote(str(destination))}; :", None)
        return _NO_SPACE.search(reply.stderr) is not None

    async def _sweep(self, sftp: asyncssh.SFTPClient) -> None:
        """Remove what earlier transfers that broke off have left; best effort, what stays is never read."""
        for path in sorted(self._litter):
            try:
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await sftp.remove(str(path))
            except asyncssh.SFTPNoSuchFile:
                pass
            except (TimeoutError, asyncssh.Error) as e:
                log.warning("%s: a partial file stays there: %s (%s)", self.name, path, e)
                continue
            self._litter.discard(path)

    async def _receive(self, source: PurePosixPath, destination: Path, max_bytes: int) -> None:
        sftp = await self._files()
        copied = 0
        with destination.open("wb") as writer, self._sftp_errors(f"fetching {source}", f"cannot read {source}"):
            async with sftp.open(str(source), "rb", encoding=None) as reader:
                while chunk := cast(bytes, await reader.read(min(_CHUNK, max_bytes - copied + 1))):
                    copied += len(chunk)
                    if copied > max_bytes:
                        said = f"{source} is larger than the {max_bytes} bytes allowed"
                        raise OutputLimitError(said, device=self.name)
                    writer.write(chunk)

    @contextmanager
    def _sftp_errors(self, doing: str, refused: str) -> Iterator[None]:
        """SFTP's errors as edgekit's: a lost link, or what the device says of the path."""
        try:
            yield
        except asyncssh.SFTPError as e:
            if isinstance(e, _LOST_SFTP) or self._connection is None or self._connection.is_lost:
                self._sftp = None
                raise DeviceLost(f"{doing} broke off ({e})", device=self.name, hint=self._hint) from e
            raise DeviceError(f"{refused}: {e.reason}", device=self.name) from e
        except (asyncssh.Error, ConnectionError) as e:
            raise DeviceLost(f"{doing} broke off ({e})", device=self.name, hint=self._hint) from e
