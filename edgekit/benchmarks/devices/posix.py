"""The one implementation of the `Device` contract, over any transport to a POSIX shell.

What each promise rests on:

* `run`: both streams end in a sentinel with a nonce (`script`), else DeviceLost. Tried again only when the link
  was down before it was sent: the command may have effects.
* `put`: sent to `cas/.<sha>.<random>`, hashed *on the device*, then renamed to `cas/<sha>`. A cut transfer
  leaves at worst a file that no one will ever read. A large file of a size that is not there is sent while it is
  hashed here.
* `start`: `mkdir` of the start lock (`jobs`); idempotent, so it is retried when the link is lost.
  Processes that an earlier job left behind are ended first where the caller asks for it (`alone`).
* `pull`: size and hash are asked first, the copy goes into a temporary file that is renamed when it matches.

Only errors that may go away (`retryable`) are retried, only in these idempotent steps, and each retry is logged.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self, TypeVar

from edgekit.benchmarks.devices.base import Completed, Deadline, Launch, Watched
from edgekit.benchmarks.devices.jobs import alive_script, end_others_script, kill_script, start_script
from edgekit.benchmarks.devices.launching import Seen, launch_script, read_watched, watch_script
from edgekit.benchmarks.devices.room import free_room_script
from edgekit.benchmarks.devices.script import checked_name, command, new_nonce, number, quote, under_root, unwrap, wrap
from edgekit.benchmarks.devices.transport import LinkDown, OnOutput, Reply, Transport
from edgekit.errors import (
    CommandError,
    DeviceDiskFull,
    DeviceError,
    DeviceFileMissing,
    DeviceLost,
    DeviceTimeout,
    DeviceUnusable,
    HostError,
    HungCommand,
    IntegrityError,
    OutputLimitError,
    UserError,
)
from edgekit.schema import known_sha256, sha256_of

__all__ = ["PosixDevice"]

log = logging.getLogger(__name__)

_ATTEMPTS = 4
_AHEAD_BYTES = 4 << 20
"""From here on hashing takes longer than one more question."""
_CLEANUP_SECONDS = 1.5
_KEEP_SECONDS = 900.0
"""A file that was put so lately is not removed to make room: the job it is for may be about to start."""
_START_BYTES = 1 << 20
"""Room that is made where a job could not be started for want of it."""
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded|ENOSPC", re.IGNORECASE)
_SHA256 = 'sha() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi <"$1"; }; '

T = TypeVar("T")


class PosixDevice:
    """A device with a POSIX shell. Subclasses give the transport, and what `probe` says of it."""

    setsid = "setsid"
    """What begins a new session on the device, as shell words."""

    connect_seconds = 60.0
    """How long entering may take."""

    def __init__(self, *, spec: str, transport: Transport, root: PurePosixPath, python: str = "python3") -> None:
        if not root.is_absolute():
            raise UserError(f"edgekit's folder on the device must be an absolute path, not '{root}'")
        self._spec = spec
        self._transport = transport
        self._root = root
        self._python = python
        self._put_at: dict[str, float] = {}
        """sha256 of what this object has put, to the monotonic time of it."""
        self._orphans: list[str] = []
        """Nonces of commands that were lost with the link and may still run."""

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
        deadline = Deadline.after(self.connect_seconds)
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
        reply = self._retried("run", deadline, lambda: self._command(body, deadline), only=LinkDown)
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

    def _command(self, body: str, deadline: Deadline) -> Reply:
        """One command of the caller's; what of it outlives a lost link is ended when the link is back."""
        nonce = new_nonce()
        try:
            return self._shell(body, deadline, nonce)
        except LinkDown:
            raise
        except DeviceLost:
            if self._transport.outlives_client:
                self._orphans.append(nonce)
            raise

    def put(self, source: Path, deadline: Deadline) -> PurePosixPath:
        try:
            size = source.stat().st_size
            with ThreadPoolExecutor(1) as beside:
                hashing = beside.submit(known_sha256, source)
                ahead = self._send_ahead(source, size, deadline) if size >= _AHEAD_BYTES else None
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
        if self._query(here, deadline).strip() == str(size):
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

    def start(
        self,
        job: str,
        argv: Sequence[str],
        deadline: Deadline,
        *,
        env: Mapping[str, str] | None = None,
        alone: bool = False,
    ) -> bool:
        """As in the protocol; the job's working directory is its folder, and `exit` there gets its exit status."""
        token = new_nonce()
        script = start_script(self._root / "jobs", checked_name(job), argv, token, self.setsid, env)
        if alone:
            script = end_others_script(self._root / "jobs", job) + script
        said = self._with_room(_START_BYTES, deadline, lambda: self._query(script, deadline)).split("\n")
        self._tell_of_ghosts([line for line in said if line.startswith("ghost")], job)
        owner = [line for line in said if line and not line.startswith("ghost")]
        if not owner:
            raise DeviceError(f"job {job} was begun by a caller that died before it could start it", device=self.spec)
        return owner[-1] == token

    def _tell_of_ghosts(self, lines: Sequence[str], job: str) -> None:
        """Log which jobs' processes were ended for `job`. Raises DeviceUnusable when one would not end."""
        for line in lines:
            name, *left = line.split()[1:] or ["?"]
            if left:
                raise DeviceUnusable(
                    f"processes of the earlier job {name[:80]} do not die: {' '.join(left)[:80]}",
                    device=self.spec,
                    hint="restart the device, then `edgekit devices`",
                )
            log.warning("%s: processes of job %s still ran and were ended for %s", self.spec, name[:80], job)

    def launch(self, launch: Launch, deadline: Deadline, *, seconds: float, on_line: Callable[[str], None]) -> Watched:
        token, folder, jobs = new_nonce(), self.job_dir(launch.job), self._root / "jobs"
        alone = end_others_script(jobs, launch.job)
        start = start_script(jobs, launch.job, launch.argv, token, self.setsid, launch.env)
        script = launch_script(folder, launch, alone, start, token, seconds)
        self._put_at.update((needed.path.name, time.monotonic()) for needed in launch.needed)
        watched = self._with_room(_START_BYTES, deadline, lambda: self._watched(script, token, deadline, on_line))
        self._tell_of_ghosts(watched.ghosts, launch.job)
        return watched

    def watch(self, job: str, deadline: Deadline, *, seconds: float, on_line: Callable[[str], None]) -> Watched:
        return self._watched(watch_script(self.job_dir(job), seconds), "", deadline, on_line)

    def _watched(self, script: str, token: str, deadline: Deadline, on_line: Callable[[str], None]) -> Watched:
        def step() -> Watched:
            reply = self._shell(script, deadline, on_output=Seen(self.spec, on_line))
            if reply.returncode != 0:
                self._raise_if_full(reply)
                raise self._failed("start of a job", reply)
            return read_watched(reply.stdout, token, self.spec)

        return self._retried("watching a job", deadline, step)

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

    def _query(self, body: str, deadline: Deadline) -> str:
        """What an idempotent script printed; retried when the link is lost. Raises CommandError when it failed."""
        reply = self._retried("query", deadline, lambda: self._shell(body, deadline))
        if reply.returncode != 0:
            self._raise_if_full(reply)
            raise self._failed(body.strip().splitlines()[0], reply)
        return reply.stdout.decode("utf-8", "replace")

    def _shell(
        self, body: str, deadline: Deadline, nonce: str | None = None, on_output: OnOutput | None = None
    ) -> Reply:
        """One script to its end, whole. Kills what it left behind when it had to be given up."""
        nonce = nonce or new_nonce()
        script = wrap(body, nonce)
        orphans, self._orphans = self._orphans, []
        for orphan in orphans:
            if self._end_abandoned(orphan, deadline) is None:
                self._orphans.append(orphan)
        try:
            return unwrap(self._transport.shell(script, deadline, on_output=on_output), nonce, self.spec)
        except DeviceTimeout as e:
            # Killed on a device that answers: it was the command that hung, not the link.
            if not self._transport.outlives_client or self._end_abandoned(nonce):
                raise HungCommand("a command was not done at its deadline and was killed", device=self.spec) from e
            raise
        except (OutputLimitError, KeyboardInterrupt):
            if self._transport.outlives_client:
                self._end_abandoned(nonce)
            raise

    def _end_abandoned(self, nonce: str, deadline: Deadline | None = None) -> bool | None:
        """Kill the processes of a script that no one waits for any more; whether the device says it killed some.

        Best effort: None where the link is gone.
        """
        # adbd kills the shell when its client goes, not what the shell runs: that is found by its environment.
        # Quotes in the middle of the nonce keep this script from finding itself.
        split = f"{nonce[:8]}''{nonce[8:]}"
        script = (
            f"for f in $(grep -l {split} /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null); do "
            "p=${f#/proc/}; kill -9 ${p%/*} 2>/dev/null && echo killed; done; :"
        )
        try:
            until = deadline.within(_CLEANUP_SECONDS) if deadline else Deadline.after(_CLEANUP_SECONDS)
            reply = self._transport.shell(script, until)
        except DeviceError as e:
            log.warning("%s: a command that was given up may still run: %s", self.spec, e.message)
            return None
        return b"killed" in reply.stdout

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
