"""One call to a device's shell: whole or lost, tried again where that is safe, and nothing left behind.

A reply is believed when both its streams end in the call's own sentinel (`script`). Only errors that may go away
(`retryable`) are tried again, only for scripts that may run twice, and each retry is logged. What a call that was
given up has started there is killed: at once where the device answers, else with the next call that gets through.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TypeVar

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.script import new_nonce, unwrap, wrap
from edgekit.benchmarks.devices.transport import LinkDown, OnOutput, Reply, Transport
from edgekit.errors import (
    CommandError,
    DeviceDiskFull,
    DeviceError,
    DeviceLost,
    DeviceTimeout,
    HungCommand,
    OutputLimitError,
)

__all__ = ["Calls"]

log = logging.getLogger(__name__)

_ATTEMPTS = 4
_CLEANUP_SECONDS = 1.5
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded|ENOSPC", re.IGNORECASE)

T = TypeVar("T")


class Calls:
    """Scripts on the device behind `transport`, for a `Device` to be built on."""

    def __init__(self, *, spec: str, transport: Transport, root: PurePosixPath) -> None:
        self._spec = spec
        self._transport = transport
        self._root = root
        self._orphans: list[str] = []
        """Nonces of commands that were lost with the link and may still run."""

    @property
    def spec(self) -> str:
        return self._spec

    @property
    def root(self) -> PurePosixPath:
        return self._root

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
