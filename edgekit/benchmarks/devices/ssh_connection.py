"""One authenticated ssh connection to a device, and what can go wrong on the way to it."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias, cast

import asyncssh

from edgekit.benchmarks.devices.ssh_target import SshTarget, config_files, own_known_hosts, parse_target
from edgekit.benchmarks.devices.ssh_trust import HostTrust, host_trust, remember
from edgekit.benchmarks.devices.transport import LinkDown
from edgekit.errors import DeviceUnauthorized, DeviceUnusable, EdgekitError, UserError

__all__ = ["Connection", "connect"]

log = logging.getLogger(__name__)

_Options: TypeAlias = asyncssh.SSHClientConnectionOptions

_ATTEMPTS = 6
_CONNECT_SECONDS = 15.0
_KEEPALIVE_SECONDS = 3
_KEEPALIVE_COUNT = 2
"""A link that swallows everything is given up after about 9 s, whatever waits on it."""
_USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")


class _Client(asyncssh.SSHClient):
    """Judges the host key, and notes when the connection ends."""

    def __init__(self, trust: HostTrust) -> None:
        self._trust = trust
        self.shown: asyncssh.SSHKey | None = None
        """The host's key, where it was in no file."""
        self.is_lost = False

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.shown = key
        return self._trust.accepts(key)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A connection that passed the host key check and the login."""

    ssh: asyncssh.SSHClientConnection
    host_key: str
    """Fingerprint of the host's key (`SHA256:…`)."""
    client: _Client
    through: Connection | None
    """The connection to the jump host (ProxyJump) it goes through."""

    @property
    def is_lost(self) -> bool:
        """Whether it is known to have ended; a silent link is found out by the keepalive."""
        return self.client.is_lost or self.ssh.is_closed()

    async def close(self) -> None:
        """End it, and those it goes through."""
        self.ssh.close()
        await self.ssh.wait_closed()
        if self.through is not None:
            await self.through.close()


async def connect(target: SshTarget, *, accepted: str | None = None) -> Connection:
    """Connect and log in, through the jump hosts that the configuration names.

    `accepted` is the fingerprint of a host key that the user compared; it is stored when the host proves to have it.
    Raises HostKeyUnknown, HostKeyChanged, DeviceUnauthorized, DeviceUnusable, UserError (a wrong configuration), and
    LinkDown for what may go away: refused, unreachable, silent.
    """
    options = _options(target)
    through = None
    try:
        for hop in options.tunnel.removeprefix("ssh://").split(",") if isinstance(options.tunnel, str) else ():
            jump = parse_target(hop)
            through = await _persistent(jump, _options(jump), None, through)
        return await _persistent(target, options, accepted, through)
    except BaseException:
        if through is not None:
            through.ssh.abort()
        raise


class _Dropped(LinkDown):
    """The host hung up during the handshake."""


async def _persistent(
    target: SshTarget, options: _Options, accepted: str | None, through: Connection | None
) -> Connection:
    """`_connect`, again when the host hangs up: sshd turns logins away at random when many come at once."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return await _connect(target, options, accepted, through)
        except _Dropped:
            await asyncio.sleep(random.uniform(0.1, 0.4) * attempt)  # noqa: S311
    return await _connect(target, options, accepted, through)


async def _connect(
    target: SshTarget, options: _Options, accepted: str | None, through: Connection | None
) -> Connection:
    trust = _trust(target, options, accepted)
    client = _Client(trust)
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            ssh = await asyncssh.connect(
                target.host,
                tunnel=through.ssh if through else None,
                config=None,
                options=options,
                client_factory=lambda: client,
                known_hosts=([*trust.keys, *trust.portless_keys], trust.authorities, trust.revoked),
                server_host_key_algs=trust.algorithms(),
            )
    except asyncssh.HostKeyNotVerifiable as e:
        raise trust.refusal(client.shown, e.reason) from e
    except asyncssh.PermissionDenied as e:
        _keep_accepted(trust, client)
        raise _unauthorized(target.spec, options.username) from e
    except (OSError, asyncssh.Error) as e:
        _raise_unreachable(target, options, e)
    _keep_accepted(trust, client)
    key = ssh.get_server_host_key()
    return Connection(ssh=ssh, host_key=key.get_fingerprint() if key else "", client=client, through=through)


def _options(target: SshTarget) -> _Options:
    """The user's configuration for this host; keys and agent only, and nothing that opens the user's own side."""
    try:
        config = [str(path) for path in config_files()]
        named = {
            "host": target.host,
            "port": target.port if target.port is not None else (),
            "username": target.user if target.user is not None else (),
        }
        asked = _Options(config=config, client_keys=None, **named).config.get("IdentityFile")
        return _Options(
            config=config,
            client_keys=() if asked is None else _those_there(target, cast("list[str]", asked)),
            ignore_encrypted=True,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_auth=False,
            gss_kex=False,
            agent_forwarding=False,
            x11_forwarding=False,
            command=None,
            request_pty=False,
            keepalive_interval=_KEEPALIVE_SECONDS,
            keepalive_count_max=_KEEPALIVE_COUNT,
            connect_timeout=None,
            **named,
        )
    except EdgekitError:
        raise
    except (OSError, ValueError, asyncssh.Error) as e:
        raise UserError(
            f"{target.spec}: the ssh configuration for it cannot be used: {e}",
            hint="see whether `ssh` itself takes it; EDGEKIT_SSH_CONFIG names another file than ~/.ssh/config",
        ) from e


def _those_there(target: SshTarget, identities: list[str]) -> list[str]:
    """The key files that exist; of the others it is said that they do not, as `ssh` does."""
    there = [name for name in identities if Path(name).expanduser().exists()]
    for name in identities:
        if name not in there:
            log.warning("%s: no such identity: %s", target.spec, name)
    return there


def _trust(target: SshTarget, options: _Options, accepted: str | None) -> HostTrust:
    config = options.config
    files = [
        own_known_hosts(),
        *(Path(name).expanduser() for name in cast("list[str]", config.get("UserKnownHostsFile", _USER_KNOWN_HOSTS))),
        *(Path(name) for name in cast("list[str]", config.get("GlobalKnownHostsFile", _GLOBAL_KNOWN_HOSTS))),
    ]
    return host_trust(
        spec=target.spec,
        host=options.host,
        port=options.port,
        alias=options.host_key_alias,
        files=files,
        accepted=accepted,
    )


def _keep_accepted(trust: HostTrust, client: _Client) -> None:
    """Store the key that was accepted; the key exchange is over, so the host has proved that it is its own."""
    if client.shown is not None and trust.accepts(client.shown):
        remember(trust, client.shown, own_known_hosts())


def _unauthorized(spec: str, user: str) -> DeviceUnauthorized:
    return DeviceUnauthorized(
        f"accepts no key that this host offers for user '{user}'",
        device=spec,
        hint="put one there (`ssh-copy-id`), name it with IdentityFile in ~/.ssh/config, or add it to the agent "
        "(`ssh-add`; a key with a passphrase is only used from there); edgekit asks for no passwords",
    )


def _raise_unreachable(target: SshTarget, options: _Options, error: OSError | asyncssh.Error) -> NoReturn:
    """The error for a connection that was not made."""
    spec, place = target.spec, f"{options.host} port {options.port}"
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            raise LinkDown(f"the name {options.host} cannot be looked up now", device=spec, hint="is the network up?")
        raise DeviceUnusable(
            f"no host is called {options.host}", device=spec, hint="check the name, or use the address"
        ) from error
    if isinstance(error, ConnectionRefusedError):
        hint = "is it on, and its ssh server? (on Raspberry Pi OS: `sudo systemctl enable --now ssh`)"
        raise LinkDown(f"{place} refuses connections", device=spec, hint=hint) from error
    if isinstance(error, TimeoutError):
        raise LinkDown(f"{place} does not answer", device=spec, hint="is it on, and on this network?") from error
    if isinstance(error, asyncssh.ChannelOpenError):
        said = f"{place} cannot be reached through {options.config.get('ProxyJump')} ({error.reason})"
        raise LinkDown(said, device=spec, hint="is it on, and on that network?") from error
    if isinstance(error, asyncssh.KeyExchangeFailed):
        raise DeviceUnusable(f"no way to encrypt in common with {place} ({error.reason})", device=spec) from error
    if isinstance(error, asyncssh.ConnectionLost | ConnectionError | BrokenPipeError):
        hint = "try again; if it stays so, look at the log of its ssh server"
        raise _Dropped(f"{place} hung up during the login ({error})", device=spec, hint=hint) from error
    if isinstance(error, OSError):
        said = error.strerror or str(error)
        raise LinkDown(f"{place} cannot be reached: {said}", device=spec, hint="check the network") from error
    raise DeviceUnusable(
        f"what answers on {place} is not a usable ssh server ({error})", device=spec, hint="check the port"
    ) from error
