"""One SQLAlchemy Core text, two engines: SQLite (WAL) on one machine, PostgreSQL in a cluster.

Stores take a `Connection`; the edge (a route, a job step) opens the transaction with `Database.begin` and none
is open across a network call. SQLite allows one writer at a time: `begin` takes the write lock at once, so two
writers queue (up to the busy timeout) instead of failing half way.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import BigInteger, Connection, Engine, Integer, MetaData, create_engine, event
from sqlalchemy.pool import QueuePool

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Of a column that numbers its rows by itself, which SQLite does only for a column of type INTEGER.
ROW_NUMBER = BigInteger().with_variant(Integer, "sqlite")

_BUSY_TIMEOUT_MS = 10_000


class Database:
    """A pool of connections. `read` gives a consistent snapshot, `begin` a transaction that may write."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only unit of work (rolled back at its end): every statement sees the same instant.

        SQLite in WAL mode does that by itself from the first statement on; PostgreSQL must be told.
        """
        with self.engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            yield connection

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A writing unit of work: committed at its end, rolled back when it raises."""
        with self.engine.connect().execution_options(farebox_write=True) as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def open_database(url: str, *, pool_size: int = 5) -> Database:
    """Open `sqlite:///FILE` or `postgresql+psycopg://…`; nothing is created or migrated here."""
    if url.startswith("sqlite"):
        engine = create_engine(
            url,
            poolclass=QueuePool,
            pool_size=pool_size,
            max_overflow=5,
            connect_args={"check_same_thread": False},
        )
        _configure_sqlite(engine)
    else:
        engine = create_engine(url, pool_size=pool_size, max_overflow=5, pool_pre_ping=True)
    return Database(engine)


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
        # The driver's own implicit BEGIN comes too late for us: transactions are begun below, explicitly.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: the journal's segments are deleted once their rows are committed, so a commit must be on disk.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # Bulk writing touches the newest page of every index, of every organization: they should stay in memory,
        # and be written back once for several commits.
        connection.execute("PRAGMA cache_size = -16384")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("farebox_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
