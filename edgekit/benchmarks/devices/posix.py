"""The one implementation of the `Device` contract, over any transport to a POSIX shell: calls, files, jobs.

What each promise rests on (`calls` has the first, `files` the second and the last):

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
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self, TypeVar

from edgekit.benchmarks.devices.base import Completed, Deadline, Launch, Watched
from edgekit.benchmarks.devices.files import StoredFiles
from edgekit.benchmarks.devices.jobs import alive_script, end_others_script, kill_script, start_script
from edgekit.benchmarks.devices.launching import Seen, launch_script, read_watched, watch_script
from edgekit.benchmarks.devices.script import checked_name, command, new_nonce, quote
from edgekit.benchmarks.devices.transport import LinkDown, Transport
from edgekit.errors import CommandError, DeviceError, DeviceUnusable, UserError

__all__ = ["PosixDevice"]

log = logging.getLogger(__name__)

_START_BYTES = 1 << 20
"""Room that is made where a job could not be started for want of it."""

T = TypeVar("T")


class PosixDevice(StoredFiles):
    """A device with a POSIX shell. Subclasses give the transport, and what `probe` says of it."""

    setsid = "setsid"
    """What begins a new session on the device, as shell words."""

    connect_seconds = 60.0
    """How long entering may take."""

    def __init__(self, *, spec: str, transport: Transport, root: PurePosixPath, python: str = "python3") -> None:
        if not root.is_absolute():
            raise UserError(f"edgekit's folder on the device must be an absolute path, not '{root}'")
        super().__init__(spec=spec, transport=transport, root=root)
        self._python = python

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
