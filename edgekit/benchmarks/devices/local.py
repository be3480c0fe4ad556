"""`local`: this host as a device, with the same contract and the same code path as a phone."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shlex
import sys
import time
from pathlib import Path, PurePosixPath

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.facts import PROBE_SCRIPT, device_info
from edgekit.benchmarks.devices.posix import PosixDevice
from edgekit.benchmarks.devices.process import run_bounded
from edgekit.benchmarks.devices.transport import OnOutput, Reply
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import DeviceDiskFull, DeviceError, DeviceTimeout, DeviceUnusable, OutputLimitError

__all__ = ["LocalDevice", "LocalTransport", "cache_dir", "open_local"]

_CHUNK = 4 * 1024 * 1024
_SETSID = "import os, sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])"


def cache_dir() -> Path:
    """Where edgekit keeps what it can make again: `$EDGEKIT_CACHE`, else the platform's cache folder."""
    chosen = os.environ.get("EDGEKIT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgekit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit"


class LocalTransport:
    """Child processes and file copies on this host."""

    name = "local"
    outlives_client = False

    def open(self, deadline: Deadline) -> None:
        if os.name != "posix":
            raise DeviceUnusable("needs Linux or macOS", device=self.name, hint="use WSL, or a board")

    def close(self) -> None:
        pass

    def recover(self, deadline: Deadline) -> None:
        pass

    def shell(self, script: str, deadline: Deadline, *, on_output: OnOutput | None = None) -> Reply:
        # Bytes that are not UTF-8 arrive as surrogates and leave as the same bytes.
        argv = ["/bin/sh", "-c", script]
        env = {**os.environ, "PYTHONNOUSERSITE": "1"}
        return run_bounded(argv, deadline, device=self.name, env=env, on_output=on_output)

    def send(self, source: Path, destination: PurePosixPath, deadline: Deadline) -> None:
        target = Path(destination)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._copy(source, target, deadline, source.stat().st_size)
        except OSError as e:
            _discard(target)
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DeviceDiskFull(
                    f"no space left for {source.name}", device=self.name, hint=f"free some in {target.parent}"
                ) from e
            raise DeviceError(f"cannot copy {source} to {target}: {e.strerror}", device=self.name) from e
        except DeviceError:
            _discard(target)
            raise

    def receive(self, source: PurePosixPath, destination: Path, deadline: Deadline, *, max_bytes: int) -> None:
        try:
            self._copy(Path(source), destination, deadline, max_bytes)
        except OSError as e:
            raise DeviceError(f"cannot copy {source} to {destination}: {e.strerror}", device=self.name) from e

    def _copy(self, source: Path, target: Path, deadline: Deadline, max_bytes: int) -> None:
        copied = 0
        with source.open("rb") as reader, target.open("xb") as writer:
            while chunk := reader.read(_CHUNK):
                copied += len(chunk)
                if copied > max_bytes:
                    raise OutputLimitError(f"{source} grew beyond {max_bytes} bytes", device=self.name)
                if deadline.remaining <= 0:
                    raise DeviceTimeout(f"copying {source.name} took too long", device=self.name)
                writer.write(chunk)


def _discard(partial: Path) -> None:
    with contextlib.suppress(OSError):  # it was never made; the error that led here is the one to tell
        partial.unlink()


class LocalDevice(PosixDevice):
    """This host. Its processor is the one the rest of edgekit runs on, so keep the host idle while measuring."""

    def __init__(self, *, root: Path | None = None) -> None:
        folder = root if root is not None else cache_dir() / "devices" / "local"
        super().__init__(
            spec="local", transport=LocalTransport(), root=PurePosixPath(folder.absolute()), python=sys.executable
        )
        if sys.platform == "darwin":  # macOS has no setsid(1)
            self.setsid = shlex.join([sys.executable, "-c", _SETSID])

    def probe(self, deadline: Deadline) -> DeviceInfo:
        text = self._query(PROBE_SCRIPT, deadline)
        info = device_info(text, spec=self.spec, kind="local")
        return info.model_copy(update={"shares_host_cpu": True, **_host_facts(info)})


def _host_facts(info: DeviceInfo) -> dict[str, object]:
    """What the platform module knows better than /proc, or where there is no /proc (macOS)."""
    facts: dict[str, object] = {"python": platform.python_version()}
    facts["serial"] = info.serial if info.serial != "local" else f"local-{platform.node()}"
    if info.cores is None:
        facts["cores"] = os.cpu_count()
    if sys.platform == "darwin":
        facts["os"] = f"macOS {platform.mac_ver()[0]}"
        facts["cpu_model"] = platform.processor() or platform.machine()
        facts["ram_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        facts["boot_id"] = str(int(time.time() - time.monotonic()))
    return facts


def open_local(argument: str | None) -> LocalDevice:
    """The device for the spec `local`."""
    if argument:
        raise DeviceUnusable("takes no argument", device=f"local:{argument}", hint="write `local`")
    return LocalDevice()
