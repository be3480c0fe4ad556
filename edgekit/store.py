"""Results: every attempt at every measurement, in SQLite or any database SQLAlchemy speaks.

One row per (job, attempt), written once; the published attempt of a job is its latest one that ended well.
An attempt is journaled before it starts (`begin`), so a harness that died finds what it left on a device.
SQLite runs in WAL mode with full synchronisation and takes its write lock at the start of a transaction:
several edgekit processes may share one file (not over NFS).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgekit.benchmarks.values import DeviceInfo, Run, RunStatus
from edgekit.errors import StoreError
from edgekit.schema import parse_record

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = ["ResultStore"]

SCHEMA_VERSION = 1


class ResultStore:
    """The results database and, beside it, the outputs that devices gave.

    `folder` holds `results.db` (unless `url` names another database) and `outputs/<sha256>.npz`.
    Raises StoreError when the database cannot be opened or is of a newer edgekit.
    """

    def __init__(self, folder: Path, *, url: str | None = None) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        self._folder = folder
        (folder / "outputs").mkdir(parents=True, exist_ok=True)
        self._engine = _engine(url or f"sqlite:///{folder / 'results.db'}")
        self._tables = _tables()
        try:
            self._prepare()
        except SQLAlchemyError as e:
            raise StoreError(
                f"cannot open the results database {self._engine.url!r}: {e}",
                hint="check that the folder is writable and not on a full disk",
            ) from e

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engine.dispose()

    def _prepare(self) -> None:
        from sqlalchemy import insert, select

        with self._transaction() as connection:
            self._tables.metadata.create_all(connection)
            found = connection.execute(select(self._tables.meta.c.schema_version)).scalar()
            if found is None:
                connection.execute(insert(self._tables.meta).values(schema_version=SCHEMA_VERSION))
            elif found > SCHEMA_VERSION:
                raise StoreError(
                    f"the results database has schema {found}; this edgekit knows {SCHEMA_VERSION}",
                    hint="upgrade edgekit, or choose another --workspace",
                )

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        from sqlalchemy.exc import OperationalError

        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as e:
            raise StoreError(f"results database: {e.orig}", hint="is the disk full, or the file on NFS?") from e

    def begin(self, job_key: str) -> int:
        """The number of a new attempt at `job_key`, journaled before anything happens on a device."""
        from sqlalchemy import func, insert, select

        attempts = self._tables.attempts
        with self._transaction() as connection:
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

    def record(self, run: Run) -> None:
        """Keep `run`; recording the same (job, attempt) again changes nothing."""
        from sqlalchemy import insert, update

        attempts = self._tables.attempts
        place = (attempts.c.job_key == run.job_key) & (attempts.c.attempt == run.attempt)
        with self._transaction() as connection:
            filled = connection.execute(
                update(attempts)
                .where(place, attempts.c.run.is_(None))
                .values(run=run.model_dump_json(), status=run.status.value, recorded=_now())
            ).rowcount
            if not filled and not self._known(connection, run):
                connection.execute(
                    insert(attempts).values(
                        job_key=run.job_key,
                        attempt=run.attempt,
                        begun=_now(),
                        recorded=_now(),
                        status=run.status.value,
                        run=run.model_dump_json(),
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


class _Tables:
    """The tables of schema 1."""

    def __init__(self) -> None:
        from sqlalchemy import Column, Integer, MetaData, String, Table, Text

        self.metadata = MetaData()
        self.meta = Table("edgekit_meta", self.metadata, Column("schema_version", Integer, primary_key=True))
        self.attempts = Table(
            "attempts",
            self.metadata,
            Column("job_key", String(64), primary_key=True),
            Column("attempt", Integer, primary_key=True),
            Column("begun", String(32), nullable=False),
            Column("recorded", String(32)),
            Column("status", String(16)),
            Column("run", Text),
        )
        self.devices = Table(
            "devices",
            self.metadata,
            Column("fingerprint", String(64), primary_key=True),
            Column("info", Text, nullable=False),
        )


def _tables() -> _Tables:
    return _Tables()


def _engine(url: str) -> Engine:
    from sqlalchemy import create_engine, event
    from sqlalchemy.exc import ArgumentError

    try:
        engine = create_engine(url)
    except (ArgumentError, ImportError) as e:
        raise StoreError(f"cannot use the database {url!r}: {e}") from e
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # this module says BEGIN itself
            for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL"):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _immediate(connection: Any) -> None:
            # a plain BEGIN that reads first loses the race for the write lock at once, whatever the timeout
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
