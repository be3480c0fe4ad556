"""Results: every attempt at every measurement, in SQLite or any database SQLAlchemy speaks.

One row per (job, attempt), written once; the published attempt of a job is its latest one that ended well.
An attempt is journaled before it starts (`begin`), so a harness that died finds what it left on a device.
Several edgekit processes may share one database (`edgekit.database`).

What a process begins or records under a lease (`fence`) is checked against that lease in the same transaction. A run
whose lease has gone to another process is not an attempt: it was perhaps measured beside that process's job. It is
kept apart (`late`), flagged, and never published; the attempt stays pending, for whoever has the device now.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from edgekit.benchmarks.values import DeviceInfo, Run, RunStatus
from edgekit.database import Database
from edgekit.errors import LeaseLost, StoreError
from edgekit.leases import Fence, Leases
from edgekit.schema import parse_record

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["ResultStore"]

LATE = "recorded after its lease had gone to another process: perhaps measured beside that one's job; not published"


class ResultStore:
    """The results database and, beside it, the outputs that devices gave.

    `folder` holds `outputs/<sha256>.npz` and `results.db`, unless `url` or `$EDGEKIT_STORE` names another database.
    Raises StoreError when the database cannot be opened or is of a newer edgekit.
    """

    def __init__(self, folder: Path, *, url: str | None = None) -> None:
        self._folder = folder
        (folder / "outputs").mkdir(parents=True, exist_ok=True)
        url = url or os.environ.get("EDGEKIT_STORE")
        self._database = Database(url or f"sqlite:///{folder / 'results.db'}")
        self._tables = self._database.tables
        self._transaction = self._database.transaction
        self.leases = Leases(self._database)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.close()

    def begin(self, job_key: str, *, fence: Fence | None = None) -> int:
        """The number of a new attempt at `job_key`, journaled before anything happens on a device.

        Raises LeaseLost where `fence` no longer holds.
        """
        from sqlalchemy import func, insert, select

        attempts = self._tables.attempts
        with self._transaction() as connection:
            if fence is not None:
                self.leases.require(connection, fence)
            last = connection.execute(
                select(func.max(attempts.c.attempt)).where(attempts.c.job_key == job_key)
            ).scalar()
            number = (last or 0) + 1
            connection.execute(insert(attempts).values(job_key=job_key, attempt=number, begun=_now()))
        return number

    def pending(self, job_key: str) -> int | None:
        """The latest attempt that was begun and has no result, or None."""
        from sqlalchemy import func, select

        attempts = self._tables.attempts
        with self._transaction() as connection:
            return connection.execute(
                select(func.max(attempts.c.attempt)).where(attempts.c.job_key == job_key, attempts.c.run.is_(None))
            ).scalar()

    def record(self, run: Run, *, fence: Fence | None = None) -> None:
        """Keep `run`; recording the same (job, attempt) again changes nothing.

        Raises LeaseLost where `fence` no longer holds; the run is then kept among the `late` ones.
        """
        with self._transaction() as connection:
            lost = self._lost(connection, fence)
            if fence is not None and lost is not None:
                self._keep_late(connection, run, fence)
            else:
                self._keep(connection, run)
        if lost is not None:
            raise lost

    def _lost(self, connection: Connection, fence: Fence | None) -> LeaseLost | None:
        try:
            if fence is not None:
                self.leases.require(connection, fence)
        except LeaseLost as e:
            return e
        return None

    def _keep(self, connection: Connection, run: Run) -> None:
        from sqlalchemy import insert, update

        attempts = self._tables.attempts
        place = (attempts.c.job_key == run.job_key) & (attempts.c.attempt == run.attempt)
        values = {"run": run.model_dump_json(), "status": run.status.value, "recorded": _now()}
        filled = connection.execute(update(attempts).where(place, attempts.c.run.is_(None)).values(values)).rowcount
        if not filled and not self._known(connection, run):
            connection.execute(
                insert(attempts).values(job_key=run.job_key, attempt=run.attempt, begun=_now(), **values)
            )

    def _keep_late(self, connection: Connection, run: Run, fence: Fence) -> None:
        """Keep a run apart, once for each lost lease, unless the very attempt was recorded by the rightful owner."""
        from sqlalchemy import insert, select

        late, attempts = self._tables.late_runs, self._tables.attempts
        here = (late.c.job_key == run.job_key) & (late.c.attempt == run.attempt) & (late.c.token == fence.token)
        there = (attempts.c.job_key == run.job_key) & (attempts.c.attempt == run.attempt) & attempts.c.run.is_not(None)
        if connection.execute(select(late.c.token).where(here)).first() is not None:
            return
        if connection.execute(select(attempts.c.attempt).where(there)).first() is not None:
            return
        kept = run.model_copy(update={"flags": (*run.flags, LATE)})
        connection.execute(
            insert(late).values(
                job_key=run.job_key,
                attempt=run.attempt,
                token=fence.token,
                recorded=_now(),
                run=kept.model_dump_json(),
            )
        )

    def _known(self, connection: Connection, run: Run) -> bool:
        from sqlalchemy import select

        attempts = self._tables.attempts
        return (
            connection.execute(
                select(attempts.c.attempt).where(attempts.c.job_key == run.job_key, attempts.c.attempt == run.attempt)
            ).first()
            is not None
        )

    def selected(self, job_key: str) -> Run | None:
        """The published run of a job: its latest attempt that ended well, or None."""
        return self._one(job_key, ok_only=True)

    def latest(self, job_key: str) -> Run | None:
        """The latest recorded attempt, well or ill."""
        return self._one(job_key, ok_only=False)

    def _one(self, job_key: str, *, ok_only: bool) -> Run | None:
        from sqlalchemy import select

        attempts = self._tables.attempts
        query = (
            select(attempts.c.run)
            .where(attempts.c.job_key == job_key, attempts.c.run.is_not(None))
            .order_by(attempts.c.attempt.desc())
            .limit(1)
        )
        if ok_only:
            query = query.where(attempts.c.status == RunStatus.OK.value)
        with self._transaction() as connection:
            text = connection.execute(query).scalar()
        return None if text is None else self._parse(text, job_key)

    def _parse(self, text: str, job_key: str) -> Run:
        try:
            return parse_record(Run, text)
        except ValueError as e:
            raise StoreError(f"the stored run of job {job_key[:12]} cannot be read: {e}") from e

    def attempts(self, job_key: str) -> tuple[Run, ...]:
        """Every recorded attempt, oldest first."""
        from sqlalchemy import select

        attempts = self._tables.attempts
        with self._transaction() as connection:
            texts = connection.execute(
                select(attempts.c.run)
                .where(attempts.c.job_key == job_key, attempts.c.run.is_not(None))
                .order_by(attempts.c.attempt)
            ).scalars()
            return tuple(self._parse(text, job_key) for text in texts if text is not None)

    def late(self, job_key: str) -> tuple[Run, ...]:
        """Runs that came after their lease had gone to another process, oldest first; flagged, never published."""
        from sqlalchemy import select

        late = self._tables.late_runs
        with self._transaction() as connection:
            texts = connection.execute(
                select(late.c.run).where(late.c.job_key == job_key).order_by(late.c.attempt, late.c.token)
            ).scalars()
            return tuple(self._parse(text, job_key) for text in texts)

    def remember_device(self, info: DeviceInfo) -> None:
        """Keep a device's facts under its fingerprint."""
        from sqlalchemy import insert, select

        devices = self._tables.devices
        with self._transaction() as connection:
            fingerprint = info.fingerprint()
            known = connection.execute(select(devices.c.fingerprint).where(devices.c.fingerprint == fingerprint))
            if known.first() is None:
                connection.execute(insert(devices).values(fingerprint=fingerprint, info=info.model_dump_json()))

    def device(self, fingerprint: str) -> DeviceInfo | None:
        """The facts of the device a run was made on."""
        from sqlalchemy import select

        devices = self._tables.devices
        with self._transaction() as connection:
            text = connection.execute(select(devices.c.info).where(devices.c.fingerprint == fingerprint)).scalar()
        return None if text is None else parse_record(DeviceInfo, text)

    def outputs_path(self, sha256: str) -> Path:
        """Where the outputs with this hash lie, or would."""
        return self._folder / "outputs" / f"{sha256}.npz"

    def check(self) -> None:
        """Without a lease there is nothing to lose; see `edgekit.benchmarks.devices.lease`."""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
