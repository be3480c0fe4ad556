"""`ssh:HOST`: Raspberry Pi OS and other Linux boards, and anything with sshd, `sh` and Python."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.facts import PROBE_SCRIPT, device_info
from edgekit.benchmarks.devices.posix import PosixDevice
from edgekit.benchmarks.devices.script import command
from edgekit.benchmarks.devices.ssh_target import parse_target
from edgekit.benchmarks.devices.ssh_transport import SshTransport
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import DeviceUnusable, UserError

__all__ = ["SshDevice", "SshTransport", "accept_host_key", "open_ssh", "parse_target"]

_NOT_CONNECTED = PurePosixPath("/edgekit-is-not-connected")
_FOLDER = PurePosixPath(".cache/edgekit/devices/ssh")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


class SshDevice(PosixDevice):
    """A device behind sshd; edgekit's folder is below the account's home."""

    kind = "ssh"

    def __init__(self, transport: SshTransport, *, root: PurePosixPath | None = None) -> None:
        super().__init__(spec=transport.name, transport=transport, root=root or _NOT_CONNECTED)
        self._ssh = transport

    def _settle(self, deadline: Deadline) -> None:
        if self._root != _NOT_CONNECTED:
            return
        home = PurePosixPath(self._query('printf %s "$HOME"', deadline))
        if not home.is_absolute():
            raise DeviceUnusable("the account has no home folder", device=self.spec, hint="log in with another account")
        self._root = home / _FOLDER

    def probe(self, deadline: Deadline) -> DeviceInfo:
        ask = command([self.python, "-c", "import platform; print(platform.python_version())"])
        text = self._query(f'{PROBE_SCRIPT}\nsay python "$({ask} 2>/dev/null)"; :', deadline)
        info = device_info(text, spec=self.spec, kind=self.kind)
        facts: dict[str, object] = {}
        if info.serial == self.spec and self._ssh.host_key:
            # no identity of its own: its host key is one device's, whatever address it is reached by
            facts["serial"] = f"ssh-{self._ssh.host_key}"
        if info.boot_id is not None and info.boot_id == _own_boot_id():
            facts["shares_host_cpu"] = True
        return info.model_copy(update=facts)


def _own_boot_id() -> str | None:
    """This host's boot id, which a device that is this host (or a container of it) tells as well."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def open_ssh(argument: str | None) -> SshDevice:
    """The device for `ssh:HOST`."""
    if argument is None:
        raise UserError("'ssh' names no host", hint="write ssh:HOST, ssh:USER@HOST:PORT or ssh:ALIAS")
    return SshDevice(SshTransport(parse_target(argument)))


def accept_host_key(spec: str, fingerprint: str, deadline: Deadline) -> None:
    """Store the host key of `spec` when the host proves to have the one with this fingerprint, and it has no other.

    Raises UserError for what is no fingerprint or no ssh device, HostKeyUnknown when it shows another key,
    HostKeyChanged when another one is known.
    """
    kind, _, argument = spec.partition(":")
    if kind != "ssh" or not argument:
        raise UserError(f"'{spec}' has no host key", hint="--accept-host-key goes with one device, ssh:HOST")
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise UserError(
            f"{fingerprint[:80]!r} is not a host key's fingerprint",
            hint="it is SHA256: and 43 characters, as `ssh-keygen -lf` prints it",
        )
    transport = SshTransport(parse_target(argument), accepted=fingerprint)
    try:
        transport.open(deadline)
    finally:
        transport.close()
