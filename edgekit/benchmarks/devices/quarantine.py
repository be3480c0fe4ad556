"""A link that breaks again and again: three measurements lost in half a minute, and the device is left alone.

A loose cable or a failing hub gives a device that is there whenever one looks and gone whenever one measures. Each
measurement that ends with a lost link is a strike. The third within `WINDOW_SECONDS` puts the device aside for
`REST_SECONDS`, for all of this user's processes on the host, so that a queue goes on with other devices at once.
(Three missed checks of ten seconds, then a power cycle of the port, is FAI-PEP's rule.)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import DeviceFlapping, DeviceLost

__all__ = ["REST_SECONDS", "STRIKES", "WINDOW_SECONDS", "quarantined"]

STRIKES = 3
WINDOW_SECONDS = 30.0
REST_SECONDS = 120.0
_MAX_FILE_BYTES = 4096


@contextmanager
def quarantined(info: DeviceInfo) -> Iterator[None]:
    """Runs a measurement on `info`'s device unless its link is known to flap; a DeviceLost out of it is a strike.

    Raises DeviceFlapping before a measurement while the device rests, and instead of the strike that makes it rest.
    """
    path = _file(info)
    strikes = _read(path)
    left = _rest_left(strikes)
    if left > 0:
        raise _flapping(info, f"its link broke {STRIKES} times in {WINDOW_SECONDS:.0f} s; not used for {left:.0f} s")
    try:
        yield
    except DeviceLost as e:
        strikes = [*strikes, time.time()][-STRIKES:]
        _write(path, strikes)
        if _rest_left(strikes) > 0:
            said = e.message.removeprefix(f"{e.device}: ")
            raise _flapping(info, f"its link broke {STRIKES} times in {WINDOW_SECONDS:.0f} s, last: {said}") from e
        raise


def _flapping(info: DeviceInfo, message: str) -> DeviceFlapping:
    return DeviceFlapping(message, device=info.spec)


def _rest_left(strikes: list[float]) -> float:
    """Seconds that the device still rests, 0 when it does not."""
    if len(strikes) < STRIKES or strikes[-1] - strikes[-STRIKES] > WINDOW_SECONDS:
        return 0.0
    since = time.time() - strikes[-1]
    return REST_SECONDS - since if 0 <= since < REST_SECONDS else 0.0  # a clock that was set back ends the rest


def _file(info: DeviceInfo) -> Path:
    key = hashlib.sha256(info.serial.encode()).hexdigest()[:24]
    return _folder() / f"edgekit-{os.getuid()}-strikes-{key}"


def _folder() -> Path:
    return Path(tempfile.gettempdir())


def _read(path: Path) -> list[float]:
    """The times in the file, in order; none where it is not this user's own or is not one of ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return []
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            return []
        words = os.read(descriptor, _MAX_FILE_BYTES).decode("ascii", "replace").split()
    finally:
        os.close(descriptor)
    return sorted(float(w) for w in words if re.fullmatch(r"[0-9]{1,12}\.[0-9]{1,6}", w))


def _write(path: Path, strikes: list[float]) -> None:
    with contextlib.suppress(OSError):  # the strike is lost, the error that was one is still raised
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(" ".join(f"{at:.3f}" for at in strikes))
        os.replace(temporary, path)
