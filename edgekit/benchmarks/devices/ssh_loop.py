"""An event loop in a thread of its own, whose every call ends by its deadline."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

from edgekit.benchmarks.devices.base import Deadline
from edgekit.errors import DeviceTimeout

__all__ = ["LoopThread"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_GRACE_SECONDS = 0.4
"""What a call may take to end after its deadline; one that cannot even be cancelled is left to the loop."""
_CLOSE_SECONDS = 1.0


class LoopThread:
    """Runs coroutines for callers in any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def call(self, step: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        """What `step()` gives, run in the loop. Raises DeviceTimeout at the deadline, and what `step` raises."""

        async def bounded() -> T:
            try:
                async with asyncio.timeout(deadline.remaining):
                    return await step()
            except TimeoutError as e:
                raise DeviceTimeout("no answer before the deadline", device=self._name) from e

        future = asyncio.run_coroutine_threadsafe(bounded(), self._running())
        try:
            return future.result(deadline.remaining + _GRACE_SECONDS)
        except concurrent.futures.TimeoutError as e:
            raise DeviceTimeout("no answer before the deadline", device=self._name) from e
        except concurrent.futures.CancelledError as e:
            raise DeviceTimeout("the link was closed before there was an answer", device=self._name) from e
        finally:
            future.cancel()  # of a call that ended this changes nothing; Ctrl-C and a late one leave it running

    def close(self) -> None:
        """End the loop and its thread; a later call begins a new one."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_serve, args=(self._loop,), name=self._name, daemon=True).start()
            return self._loop


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """False of what asyncio says for every packet written to a lost connection; each call tells its caller once."""
    return not (record.threadName or "").startswith("ssh:") or "socket.send() raised" not in record.getMessage()


logging.getLogger("asyncio").addFilter(_is_worth_saying)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run `loop` until it is stopped, then end what is left in it."""
    asyncio.set_event_loop(loop)
    # Requests that were under way when a transfer failed fail as well; the transfer has told its caller.
    loop.set_exception_handler(lambda _, context: log.debug("%s", context.get("exception") or context.get("message")))
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=_CLOSE_SECONDS))
    finally:
        loop.close()
