"""Commands that may run twice: asked again when the link breaks under them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from edgekit.benchmarks.devices.base import Completed, Deadline, Device
from edgekit.errors import DeviceLost

__all__ = ["ask"]

log = logging.getLogger(__name__)

_ATTEMPTS = 4
_NO_JOB = "none.1"


def ask(device: Device, argv: Sequence[str], deadline: Deadline) -> Completed:
    """What `argv` says, a command that may as well run twice (`Device.run` cannot know, and sends once).

    Raises DeviceLost when the link stays lost, DeviceTimeout.
    """
    for attempt in range(1, _ATTEMPTS):
        try:
            return device.run(argv, deadline)
        except DeviceLost as e:
            if deadline.remaining <= 0:
                raise
            log.warning("%s: asking again (attempt %d of %d): %s", device.spec, attempt, _ATTEMPTS, e.message)
            device.is_alive(_NO_JOB, deadline)  # retried by itself: brings the link back
    return device.run(argv, deadline)
