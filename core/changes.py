"""The change feed: how a process that caches rows learns that one of them changed.

A writer appends `(kind, ref)` in the transaction that changes the row. A reader keeps the last `seq` it saw and
polls; on a gap, or when told `CLEAR`, it forgets everything. Kinds in use: `key`, `endpoint`, `model`,
`deployment`, `project`, `organization`; `ref` is the row's id.
"""

from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Connection, Table, Text, delete, func, insert, select

from core.database import ROW_NUMBER, metadata

changes = Table(
    "changes",
    metadata,
    Column("seq", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("ref", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

MAX_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the feed."""

    seq: int
    kind: str
    ref: str


def record_change(connection: Connection, kind: str, ref: str, at_ms: int) -> None:
    """Tell every reader that the row `ref` of `kind` changed; call it in the transaction of the change."""
    number_in_order(connection)
    connection.execute(insert(changes).values(kind=kind, ref=ref, at_ms=at_ms))


def number_in_order(connection: Connection) -> None:
    """What this transaction numbers from now on commits before whatever gets a later number.

    PostgreSQL gives sequence numbers before commit; without this a reader could pass one that commits later.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7203117)")


def last_seq(connection: Connection) -> int:
    """The newest sequence number, 0 when there is none."""
    return connection.execute(select(func.max(changes.c.seq))).scalar() or 0


def read_changes(connection: Connection, after_seq: int) -> list[Change]:
    """The changes after `after_seq`, oldest first, at most `MAX_BATCH`."""
    rows = connection.execute(
        select(changes.c.seq, changes.c.kind, changes.c.ref)
        .where(changes.c.seq > after_seq)
        .order_by(changes.c.seq)
        .limit(MAX_BATCH)
    )
    return [Change(seq, kind, ref) for seq, kind, ref in rows]


def forget_changes(connection: Connection, before_ms: int) -> int:
    """Delete entries older than `before_ms`; returns how many. Readers poll every second, so a day is ample."""
    return connection.execute(delete(changes).where(changes.c.at_ms < before_ms)).rowcount
