"""Leases on devices, in the results database: who uses one now, and by which right what is recorded.

A lease is a row: an owner, a fencing token that grows with every new owner, and a beat that its owner counts up.
Nothing is decided by a wall clock. Whoever wants the device watches the beat by its own monotonic clock, and takes
over what stood still for the expiry that the owner wrote down; so a clock that is set forward on one host frees
nothing. An owner that is a dead process of this host, as far as its pid means anything here, is taken over at once.
"""

from __future__ import annotations

import datetime
import getpass
import hashlib
import json
import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit.benchmarks.devices.process import process_start
from edgekit.database import Database
from edgekit.errors import LeaseLost, StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

__all__ = ["Fence", "Holder", "Leases", "Owner"]

_MAX_TEXT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The process that holds a lease."""

    host: str
    place: str
    """Equal where two processes see the same pids: boot id and pid namespace."""
    pid: int
    start: str
    """When the process began, as the kernel tells it; tells a reused pid."""
    user: str

    def state(self) -> Literal["dead", "running", "unknown"]:
        """Whether it lives; `unknown` for a process that cannot be seen from here, or that is stopped."""
        if self.place != _place():
            return "unknown"
        found = process_start(self.pid)
        if found is None or found.start != self.start or found.is_zombie:
            return "dead"
        return "unknown" if found.is_stopped else "running"

    @classmethod
    def this_process(cls) -> Owner:
        found = process_start(os.getpid())
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a uid without a name
            user = str(os.getuid())
        return cls(
            host=socket.gethostname()[:_MAX_TEXT],
            place=_place(),
            pid=os.getpid(),
            start=found.start if found else "",
            user=user[:_MAX_TEXT],
        )


@cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux: one pid namespace, and no two hosts of one name, it is hoped
        boot = namespace = ""
    parts = (socket.gethostname(), boot, namespace)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """The right to record what a device did: its key and the token its lease was given."""

    device: str
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a device."""

    spec: str
    """What its owner typed to name the device."""
    device: str
    token: int
    beat: int
    expiry_seconds: float
    since: str
    """UTC, by the owner's clock."""
    owner: Owner

    def __str__(self) -> str:
        return f"process {self.owner.pid} of {self.owner.user} on {self.owner.host}, since {self.since}"


class Leases:
    """The leases of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._leases = database.tables.leases

    @staticmethod
    def key(identity: str) -> str:
        """The key of a device with this identity (`DeviceInfo.serial`)."""
        return hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()

    def acquire(
        self, identity: str, spec: str, owner: Owner, *, expiry_seconds: float, silent: Holder | None = None
    ) -> Fence | Holder:
        """A fence for `owner`, or who holds the device instead. `silent` is a holder whose beat has stood still."""
        from sqlalchemy import insert, update

        key = self.key(identity)
        values = {
            "spec": spec[:_MAX_TEXT],
            "beat": 0,
            "expiry_ms": max(1, round(expiry_seconds * 1000)),
            "since": _now(),
            "owner": json.dumps(asdict(owner)),
        }
        with self._database.transaction() as connection:
            row = self._row(connection, key)
            if row is None:
                connection.execute(insert(self._leases).values(device=key, token=1, **values))
                return Fence(device=key, token=1)
            held = _holder(row)
            if held is not None and held.owner.state() != "dead" and not _is_still(held, silent):
                return held
            connection.execute(
                update(self._leases).where(self._leases.c.device == key).values(token=row.token + 1, **values)
            )
            return Fence(device=key, token=row.token + 1)

    def beat(self, fence: Fence) -> None:
        """Say that the owner lives. Raises LeaseLost when the lease is another's by now."""
        from sqlalchemy import update

        with self._database.transaction() as connection:
            self.require(connection, fence)
            connection.execute(
                update(self._leases).where(self._leases.c.device == fence.device).values(beat=self._leases.c.beat + 1)
            )

    def require(self, connection: Connection, fence: Fence) -> None:
        """Raise LeaseLost unless `fence` holds, within the transaction that rests on it."""
        row = self._row(connection, fence.device)
        if row is not None and row.token == fence.token and row.owner is not None:
            return
        held = _holder(row) if row is not None else None
        raise LeaseLost(
            f"this process stood still for longer than its lease on {row.spec if row else 'the device'} lasts, and "
            + (f"{held} has the device now" if held else "it was given to another since"),
            hint="run the same command again: what is finished is kept",
        )

    def release(self, fence: Fence) -> bool:
        """Free the device; False when the lease was not `fence`'s any more. The token stays, so that it only grows."""
        from sqlalchemy import update

        leases = self._leases
        with self._database.transaction() as connection:
            changed = connection.execute(
                update(leases).where(leases.c.device == fence.device, leases.c.token == fence.token).values(owner=None)
            ).rowcount
        return bool(changed)

    def evict(self, identity: str) -> Holder | None:
        """Free the device whoever holds it, and say who did; what that process records from now on is not published."""
        held = self.holder(identity)
        if held is not None:
            self.release(Fence(device=held.device, token=held.token))
        return held

    def holder(self, identity: str) -> Holder | None:
        """Who holds the device, or None; an owner that is known to be dead holds nothing."""
        with self._database.transaction() as connection:
            row = self._row(connection, self.key(identity))
        held = _holder(row) if row is not None else None
        return None if held is None or held.owner.state() == "dead" else held

    def held(self) -> tuple[Holder, ...]:
        """Every lease with an owner, dead or alive."""
        from sqlalchemy import select

        with self._database.transaction() as connection:
            rows = connection.execute(select(self._leases).where(self._leases.c.owner.is_not(None))).all()
        return tuple(held for held in map(_holder, rows) if held is not None)

    def _row(self, connection: Connection, key: str) -> Row[tuple[object, ...]] | None:
        from sqlalchemy import select

        return connection.execute(select(self._leases).where(self._leases.c.device == key)).first()


def _is_still(held: Holder, silent: Holder | None) -> bool:
    return silent is not None and (held.token, held.beat) == (silent.token, silent.beat)


def _holder(row: Row[tuple[object, ...]]) -> Holder | None:
    if row.owner is None:
        return None
    try:
        owner = Owner(**json.loads(row.owner))
        if not isinstance(owner.pid, int):
            raise TypeError(owner.pid)
    except (TypeError, ValueError) as e:
        raise StoreError("the results database holds a lease that cannot be read", hint="edgekit wrote none") from e
    return Holder(
        spec=row.spec,
        device=row.device,
        token=row.token,
        beat=row.beat,
        expiry_seconds=row.expiry_ms / 1000,
        since=row.since,
        owner=owner,
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
