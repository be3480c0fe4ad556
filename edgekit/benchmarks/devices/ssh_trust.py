"""Which host keys are believed: those in the user's known_hosts files and those accepted by fingerprint, no others.

There is no trust on first use. A host that is in none of the files is an error with its fingerprint; a host whose
key differs from the one in a file is refused whatever was accepted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from edgekit.errors import DeviceUnusable, HostError, HostKeyChanged, HostKeyUnknown

__all__ = ["HostTrust", "host_trust", "remember"]

_DEFAULT_PORT = 22
_KEY_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
_CERTIFICATE_ALGORITHMS = tuple(f"{name}-cert-v01@openssh.com" for name in _KEY_ALGORITHMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTrust:
    """What the files say of one host."""

    spec: str
    name: str
    """As a known_hosts file has it: `host`, or `[host]:port`."""
    keys: tuple[asyncssh.SSHKey, ...]
    """Keys of exactly this name; one of them has to be presented where there are any."""
    portless_keys: tuple[asyncssh.SSHKey, ...]
    """Keys of the host without its port: they are good as well, but another key is not a changed one."""
    authorities: tuple[asyncssh.SSHKey, ...]
    revoked: tuple[asyncssh.SSHKey, ...]
    files: tuple[Path, ...]
    accepted: str | None
    """A fingerprint that the user compared and accepts for a host that is in no file."""

    def algorithms(self) -> list[str]:
        """What to ask the host for, best first: the kinds of the keys that are known, so that it shows that one."""
        known = [name.decode() for key in (*self.keys, *self.portless_keys) for name in key.sig_algorithms]
        wanted = [name for name in known if name in _KEY_ALGORITHMS]
        certificates = _CERTIFICATE_ALGORITHMS if self.authorities else ()
        # The others follow: a host that shows another kind than the known one is refused by name, with its fingerprint.
        return [*certificates, *dict.fromkeys((*wanted, *_KEY_ALGORITHMS))]

    def accepts(self, key: asyncssh.SSHKey) -> bool:
        """Whether a key that is in no file is the one the user accepts."""
        return self.accepted is not None and not self.keys and key.get_fingerprint() == self.accepted

    def refusal(self, key: asyncssh.SSHKey | None, reason: str) -> DeviceUnusable:
        """The error for a host that showed `key`, or failed for `reason` before a plain key was looked at."""
        if "revoked" in reason:
            return HostKeyChanged(
                "shows a host key that is marked as revoked in known_hosts", device=self.spec, hint="do not use it"
            )
        if key is None:
            return DeviceUnusable(
                f"its host key cannot be verified ({reason})",
                device=self.spec,
                hint="see what `ssh` says of it; the certificate authority in known_hosts may be another's",
            )
        shown = f"{key.algorithm.decode()} {key.get_fingerprint()}"
        return self._changed(shown) if self.keys else self._unknown(shown, key.get_fingerprint())

    def _changed(self, shown: str) -> HostKeyChanged:
        known = ", ".join(key.get_fingerprint() for key in self.keys)
        removals = " && ".join(f"ssh-keygen -R '{self.name}' -f {path}" for path in self.files)
        return HostKeyChanged(
            f"shows another host key ({shown}) than the one known for {self.name} ({known}); someone may be between",
            device=self.spec,
            hint=f"only if you know why it changed (a new SD card, a new system): {removals}, then accept the new key",
        )

    def _unknown(self, shown: str, fingerprint: str) -> HostKeyUnknown:
        if self.accepted is not None:
            said = f"shows the host key {shown}, which is not the one accepted ({self.accepted})"
            return HostKeyUnknown(said, device=self.spec, hint="compare the fingerprints again, on the device itself")
        return HostKeyUnknown(
            f"its host key is in no known_hosts file: {shown}",
            device=self.spec,
            hint="compare it with what `ssh-keygen -lf` says of /etc/ssh/ssh_host_*_key.pub on the device; "
            f"if it is there: edgekit devices {self.spec} --accept-host-key {fingerprint}",
        )


def host_trust(
    *, spec: str, host: str, port: int, alias: str | None, files: list[Path], accepted: str | None
) -> HostTrust:
    """What `files` say of a host. Raises HostError for a file that cannot be read or understood."""
    bare = alias or host.lower()
    name = bare if port == _DEFAULT_PORT else f"[{bare}]:{port}"
    exact: list[asyncssh.SSHKey] = []
    portless: list[asyncssh.SSHKey] = []
    authorities: list[asyncssh.SSHKey] = []
    revoked: list[asyncssh.SSHKey] = []
    holding = []
    for path in files:
        known = _read(path)
        if known is None:
            continue
        # The name is looked up whole, and without its address: an address is another machine's after a while.
        for looked_up, keys in ((name, exact), (bare, portless)):
            found = known.match(looked_up, "", None)
            keys += found[0]
            authorities += found[1]
            revoked += found[2]
            if found[0] and looked_up == name and path not in holding:
                holding.append(path)
    return HostTrust(
        spec=spec,
        name=name,
        keys=tuple(exact),
        portless_keys=tuple(portless),
        authorities=tuple(authorities),
        revoked=tuple(revoked),
        files=tuple(holding),
        accepted=accepted,
    )


def _read(path: Path) -> asyncssh.SSHKnownHosts | None:
    """A known_hosts file; None where there is none."""
    try:
        return asyncssh.read_known_hosts(str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise HostError(f"cannot read the known hosts in {path}: {e}", hint="correct or remove that line") from e


def remember(trust: HostTrust, key: asyncssh.SSHKey, path: Path) -> None:
    """Add `key` to edgekit's own known hosts, for the host of `trust`."""
    kind, data = key.export_public_key("openssh").split()[:2]
    line = f"{trust.name} {kind.decode()} {data.decode()}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except OSError as e:
        raise HostError(f"cannot store the host key in {path}: {e.strerror}") from e
