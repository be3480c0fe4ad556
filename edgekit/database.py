"""The results database: engine, tables, transactions, and how an older file becomes this edgekit's.

SQLite runs in WAL mode with full synchronisation and takes its write lock at the start of a transaction; PostgreSQL
transactions take one advisory lock. Either way the transactions of all processes that share a database come one
after the other, so a check and the write that rests on it are one step. Not over NFS.

Schema 2 only adds tables to schema 1 (`leases`, `late_runs`), so migrating is making what is missing and writing
the number down. A migration that changes a column is where Alembic begins to pay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgekit.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = ["SCHEMA_VERSION", "Database"]

SCHEMA_VERSION = 2

_POSTGRES_LOCK = 0x6564_6765_6B69_74
""""edgekit" in ASCII; the key of the advisory lock."""


class Database:
    """One results database. Raises StoreError when it cannot be opened or is of a newer edgekit."""

    def __init__(self, url: str) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        self._engine = _engine(url)
        self.tables = Tables()
        try:
            self._prepare()
        except SQLAlchemyError as e:
            raise StoreError(
                f"cannot open the results database {self._engine.url!r}: {e}",
                hint="check that the folder is writable and not on a full disk",
            ) from e

    def close(self) -> None:
        self._engine.dispose()

    def _prepare(self) -> None:
        from sqlalchemy import insert, select, update

        with self.transaction() as connection:
            self.tables.metadata.create_all(connection)
            found = connection.execute(select(self.tables.meta.c.schema_version)).scalar()
            if found is None:
                connection.execute(insert(self.tables.meta).values(schema_version=SCHEMA_VERSION))
            elif found > SCHEMA_VERSION:
                raise StoreError(
                    f"the results database has schema {found}; this edgekit knows {SCHEMA_VERSION}",
                    hint="upgrade edgekit, or choose another --workspace",
                )
            elif found < SCHEMA_VERSION:
                connection.execute(update(self.tables.meta).values(schema_version=SCHEMA_VERSION))

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction, alone in the database. Raises StoreError."""
        from sqlalchemy.exc import OperationalError

        try:
            with self._engine.begin() as connection:
                if self._engine.dialect.name == "postgresql":
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})")
                yield connection
        except OperationalError as e:
            raise StoreError(f"results database: {e.orig}", hint="is the disk full, or the file on NFS?") from e


class Tables:
    """The tables of schema 2."""

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
        self.leases = Table(
            "leases",
            self.metadata,
            Column("device", String(64), primary_key=True),  # sha256 of the identity read from it
            Column("spec", String(200), nullable=False),
            Column("token", Integer, nullable=False),  # grows with every new owner and never goes back
            Column("beat", Integer, nullable=False),
            Column("expiry_ms", Integer, nullable=False),
            Column("since", String(32), nullable=False),  # for people; nothing is decided by it
            Column("owner", Text),  # JSON; NULL: free
        )
        self.late_runs = Table(
            "late_runs",
            self.metadata,
            Column("job_key", String(64), primary_key=True),
            Column("attempt", Integer, primary_key=True),
            Column("token", Integer, primary_key=True),
            Column("recorded", String(32), nullable=False),
            Column("run", Text, nullable=False),
        )


def _engine(url: str) -> Engine:
    from sqlalchemy import create_engine, event
    from sqlalchemy.exc import ArgumentError

    try:
        engine = create_engine(url, pool_pre_ping=True)  # a server that was restarted costs no attempt
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
