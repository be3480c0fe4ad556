"""The one implementation of the `Device` contract, over any transport to a POSIX shell.

What each promise rests on:

* `run`: both streams end in a sentinel with a nonce (`script`), else DeviceLost. Tried again only when the link
  was down before it was sent: the command may have effects.
* `put`: sent to `cas/.<sha>.<random>`, hashed *on the device*, then renamed to `cas/<sha>`. A cut transfer
  leaves at worst a file that no one will ever read. A large file of a size that is not there is sent while it is
  hashed here.
* `start`: `mkdir` of the start lock (`jobs`); idempotent, so it is retried when the link is lost.
* `pull`: size and hash are asked first, the copy goes into a temporary file that is renamed when it matches.

Only errors that may go away (`transient`) are retried, only in these idempotent steps, and each retry is logged.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self, TypeVar

from edgekit.benchmarks.devices.base import Completed, Deadline
from edgekit.benchmarks.devices.jobs import alive_script, kill_script, start_script
from edgekit.benchmarks.devices.script import checked_name, command, new_nonce, quote, under_root, unwrap, wrap
from edgekit.benchmarks.devices.transport import LinkDown, Reply, Transport
from edgekit.errors import (
    CommandError,
    DeviceDiskFull,
    DeviceError,
    DeviceFileMissing,
    DeviceLost,
    DeviceTimeout,
    HostError,
    IntegrityError,
    OutputLimitError,
    UserError,
)
from edgekit.schema import sha256_of

__all__ = ["PosixDevice"]

log = logging.getLogger(__name__)

_ATTEMPTS = 4
_AHEAD_BYTES = 4 << 20
"""From here on hashing takes longer than one more question."""
_CLEANUP_SECONDS = 1.5
_CONNECT_SECONDS = 60.0
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded|ENOSPC", re.IGNORECASE)
_SHA256 = 'sha() { if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi; }; '

T = TypeVar("T")


class PosixDevice:
    """A device with a POSIX shell. Subclasses give the transport, and what `probe` says of it."""

    setsid = "setsid"
    """What begins a new session on the device, as shell words."""

    def __init__(self, *, spec: str, transport: Transport, root: PurePosixPath, python: str = "python3") -> None:
        if not root.is_absolute():
            raise UserError(f"edgekit's folder on the device must be an absolute path, not '{root}'")
        self._spec = spec
        self._transport = transport
        self._root = root
        self._python = python

    @property
    def spec(self) -> str:
        return self._spec

    @property
    def root(self) -> PurePosixPath:
        return self._root

    @property
    def python(self) -> str:
        return self._python

    def job_dir(self, job: str) -> PurePosixPath:
        return self._root / "jobs" / checked_name(job)

    def __enter__(self) -> Self:
        deadline = Deadline.after(_CONNECT_SECONDS)
        self._transport.open(deadline)
        try:
            self._settle(deadline)
            folders = " ".join(quote(str(self._root / name)) for name in ("cas", "jobs", "site"))
            self._query(f"mkdir -p {folders}", deadline)
        except BaseException:
            self._transport.close()
            raise
        return self

    def _settle(self, deadline: Deadline) -> None:
        """What a kind of device has to ask before it can be used; `root` may change here."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._transport.close()

    def run(
        self,
        argv: Sequence[str],
        deadline: Deadline,
        *,
        env: Mapping[str, str] | None = None,
        check: bool = False,
    ) -> Completed:
        body = command(argv, env)
        # It may have effects, so it is sent again only when nothing of it reached the device.
        reply = self._retried("run", deadline, lambda: self._shell(body, deadline), only=LinkDown)
        done = Completed(
            argv=tuple(argv),
            returncode=reply.returncode,
            stdout=reply.stdout.decode("utf-8", "replace"),
            stderr=reply.stderr.decode("utf-8", "replace"),
        )
        if check and done.returncode != 0:
            raise CommandError(
                device=self.spec, argv=argv, returncode=done.returncode, stdout=done.stdout, stderr=done.stderr
            )
        return done

    def put(self, source: Path, deadline: Deadline) -> PurePosixPath:
        try:
            size = source.stat().st_size
            with ThreadPoolExecutor(1) as beside:
                hashing = beside.submit(sha256_of, source)
                ahead = self._send_ahead(source, size, deadline) if size >= _AHEAD_BYTES else None
                sha = hashing.result()
        except OSError as e:
            raise HostError(f"cannot read {source}: {e.strerror}") from e
        final = self._root / "cas" / sha
        if ahead is not None and self._settled_ahead(ahead, final, sha, deadline):
            return final
        here = f"[ -f {quote(str(final))} ] && wc -c < {quote(str(final))} || echo none"
        # The size catches a file emptied by a power cut after its rename; the hash was checked when it was put.
        if self._query(here, deadline).strip() == str(size):
            return final
        self._retried("put", deadline, lambda: self._send(source, final, sha, deadline))
        return final

    def write(self, path: PurePosixPath, data: bytes, deadline: Deadline) -> None:
        under_root(path, self._root)
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            local = Path(folder) / "data"
            local.write_bytes(data)
            sha = sha256_of(local)
            self._retried("write", deadline, lambda: self._send(local, path, sha, deadline))

    def pull(self, source: PurePosixPath, destination: Path, deadline: Deadline, *, max_bytes: int) -> None:
        under_root(source, self._root)
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}.partial")
        try:
            self._retried("pull", deadline, lambda: self._receive(source, partial, deadline, max_bytes))
            os.replace(partial, destination)
        finally:
            partial.unlink(missing_ok=True)

    def start(
        self,
        job: str,
        argv: Sequence[str],
        deadline: Deadline,
        *,
        env: Mapping[str, str] | None = None,
    ) -> bool:
        """As in the protocol; the job's working directory is its folder, and `exit` there gets its exit status."""
        token = new_nonce()
        script = start_script(self._root / "jobs", checked_name(job), argv, token, self.setsid, env)
        owner = self._query(script, deadline).strip()
        if not owner:
            raise DeviceError(f"job {job} was begun by a caller that died before it could start it", device=self.spec)
        return owner == token

    def is_alive(self, job: str, deadline: Deadline) -> bool:
        return bool(self._query(alive_script(self.job_dir(job)), deadline).strip())

    def kill(self, job: str, deadline: Deadline) -> None:
        rounds = max(1, int(min(deadline.remaining, 10.0) / 0.15))
        left = self._query(kill_script(self.job_dir(job), rounds), deadline).split()
        if left:
            raise DeviceError(
                f"job {job} could not be killed; still there: {' '.join(left[:10])}",
                device=self.spec,
                hint="a process that ignores SIGKILL waits for a driver; restart the device",
            )

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
        self._transport.send(source, temporary, deadline)
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
        if len(words) < 2 or not words[0].isdigit():
            raise DeviceError(f"the size of {source} cannot be told", device=self.spec)
        size, sha = int(words[0]), words[1]
        if size > max_bytes:
            raise OutputLimitError(f"{source} has {size} bytes, more than the {max_bytes} allowed", device=self.spec)
        self._transport.receive(source, partial, deadline, max_bytes=max_bytes)
        if partial.stat().st_size != size or sha256_of(partial) != sha:
            raise IntegrityError(
                f"{source} arrived changed", device=self.spec, hint="is it still being written? pull it when it is done"
            )

    def _query(self, body: str, deadline: Deadline) -> str:
        """What an idempotent script printed; retried when the link is lost. Raises CommandError when it failed."""
        reply = self._retried("query", deadline, lambda: self._shell(body, deadline))
        if reply.returncode != 0:
            self._raise_if_full(reply)
            raise self._failed(body.strip().splitlines()[0], reply)
        return reply.stdout.decode("utf-8", "replace")

    def _shell(self, body: str, deadline: Deadline) -> Reply:
        """One script to its end, whole. Kills what it left behind when it had to be given up."""
        nonce = new_nonce()
        script = wrap(body, nonce)
        try:
            return unwrap(self._transport.shell(script, deadline), nonce, self.spec)
        except (DeviceTimeout, OutputLimitError, KeyboardInterrupt):
            if self._transport.outlives_client:
                self._end_abandoned(nonce)
            raise

    def _end_abandoned(self, nonce: str) -> None:
        """Kill the process group of a script that no one waits for any more; best effort, the link may be gone."""
        # adbd kills the shell when its client goes, not what the shell runs: that is found by its environment.
        # Quotes in the middle of the nonce keep this script from finding itself.
        split = f"{nonce[:8]}''{nonce[8:]}"
        script = (
            f"for f in $(grep -l {split} /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null); do "
            "p=${f#/proc/}; kill -9 ${p%/*} 2>/dev/null; done; :"
        )
        try:
            self._transport.shell(script, Deadline.after(_CLEANUP_SECONDS))
        except DeviceError as e:
            log.warning("%s: a command that was given up may still run: %s", self.spec, e.message)

    def _retried(
        self, what: str, deadline: Deadline, step: Callable[[], T], *, only: type[DeviceLost] = DeviceLost
    ) -> T:
        """`step()`, tried again after a lost link (of the kind `only`) while time is left."""
        for attempt in range(1, _ATTEMPTS):
            try:
                return step()
            except only as e:
                if deadline.remaining <= 0:
                    raise
                log.warning(
                    "%s: %s failed (attempt %d of %d), trying again: %s", self.spec, what, attempt, _ATTEMPTS, e
                )
                time.sleep(min(0.1 * attempt, deadline.remaining))
                self._transport.recover(deadline)
        return step()

    def _raise_if_full(self, reply: Reply) -> None:
        if _NO_SPACE.search(reply.stderr.decode("utf-8", "replace")):
            raise DeviceDiskFull(
                f"no space left where {self._root} lies",
                device=self.spec,
                hint=f"free some, for example by removing {self._root}/cas (files there are sent again when needed)",
            )

    def _failed(self, what: str, reply: Reply) -> CommandError:
        return CommandError(
            device=self.spec,
            argv=[what],
            returncode=reply.returncode,
            stdout=reply.stdout.decode("utf-8", "replace"),
            stderr=reply.stderr.decode("utf-8", "replace"),
        )
