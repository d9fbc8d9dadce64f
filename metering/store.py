"""SQL of metering: cursors, usage rows, progress, quarantine, alarms, the first open minute, receipts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, and_, delete, insert, or_, select, update

from core.inserts import insert_ignoring
from metering.ingest import Accepted
from metering.records import Alarm, QuarantineKind, StoredEvent
from metering.summary import usage_summary
from metering.tables import (
    FIRST_OPEN_MINUTE,
    alarms,
    gateway_starts,
    journal_cursors,
    journal_progress,
    metering_state,
    quarantine,
    usage_events,
)
from metering.usage_rows import insert_rows, known_hashes

_CHUNK = 500  # ids in one IN list
MAX_ATTEMPTS = 100
MAX_PAGE = 1000

_STORED = tuple(usage_events.c[field.name] for field in fields(StoredEvent))


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a gateway's journal was taken in."""

    gateway: str
    epoch: int = 0
    segment: int = 0
    position: int = 0
    last_seq: int = 0


# The first open minute


def first_open_minute(conn: Connection) -> int:
    """Every minute before it is closed; 0 when none ever was."""
    return (
        conn.execute(
            select(metering_state.c.value).where(metering_state.c.name == FIRST_OPEN_MINUTE)
        ).scalar()
        or 0
    )


def lock_first_open_minute(conn: Connection, *, exclusive: bool) -> int:
    """The same, and it stays so until the transaction ends: writers of rows share it, closing owns it."""
    query = select(metering_state.c.value).where(metering_state.c.name == FIRST_OPEN_MINUTE)
    query = query.with_for_update(read=not exclusive)  # SQLite has one writer anyway, and ignores this
    value = conn.execute(query).scalar()
    if value is None:
        insert_ignoring(conn, metering_state, [{"name": FIRST_OPEN_MINUTE, "value": 0}])
        value = conn.execute(query).scalar_one()
    return int(value)


def set_first_open_minute(conn: Connection, minute_ms: int) -> None:
    """Close everything before `minute_ms`; call it under the exclusive lock."""
    conn.execute(
        update(metering_state).where(metering_state.c.name == FIRST_OPEN_MINUTE).values(value=minute_ms)
    )


# Journal cursors


def read_cursor(conn: Connection, gateway: str) -> Cursor:
    """The gateway's cursor; at zero when nothing was taken in yet."""
    row = conn.execute(_select_cursor(gateway)).first()
    return Cursor(*row) if row else Cursor(gateway)


def lock_cursor(conn: Connection, gateway: str) -> Cursor:
    """The same, and no other relay moves it until the transaction ends."""
    row = conn.execute(_select_cursor(gateway).with_for_update()).first()
    if row is None:
        start = {"gateway": gateway, "epoch": 0, "segment": 0, "position": 0, "last_seq": 0, "updated_ms": 0}
        insert_ignoring(conn, journal_cursors, [start])
        row = conn.execute(_select_cursor(gateway).with_for_update()).one()
    return Cursor(*row)


def recorded_sequences(conn: Connection) -> dict[str, int]:
    """Of each gateway: the number of its last event that is on record."""
    rows = conn.execute(select(journal_cursors.c.gateway, journal_cursors.c.last_seq))
    return {row.gateway: row.last_seq for row in rows}


def _select_cursor(gateway: str) -> Select[Any]:
    table = journal_cursors
    query = select(table.c.gateway, table.c.epoch, table.c.segment, table.c.position, table.c.last_seq)
    return query.where(table.c.gateway == gateway)


def write_cursor(conn: Connection, cursor: Cursor, now_ms: int) -> None:
    """Move a locked cursor, in the transaction that writes what was read up to it."""
    conn.execute(
        update(journal_cursors)
        .where(journal_cursors.c.gateway == cursor.gateway)
        .values(
            epoch=cursor.epoch,
            segment=cursor.segment,
            position=cursor.position,
            last_seq=cursor.last_seq,
            updated_ms=now_ms,
        )
    )


def note_gateway_start(conn: Connection, source: str, epoch: int) -> None:
    """A gateway began again; its epoch is the instant."""
    insert_ignoring(conn, gateway_starts, [{"source": source, "started_ms": epoch}])


# Usage rows


def insert_usage(conn: Connection, events: Iterable[tuple[Accepted, int]], now_ms: int) -> None:
    """Store new events, each with its sequence number; one that is late goes to the first open minute."""
    insert_rows(conn, events, lock_first_open_minute(conn, exclusive=False), now_ms)


def receipt_row(conn: Connection, request_id: str) -> list[StoredEvent]:
    """All attempts of a request, first to last; empty when there is none (or not yet)."""
    rows = conn.execute(
        select(*_STORED)
        .where(usage_events.c.request_id == request_id)
        .order_by(usage_events.c.attempt, usage_events.c.row_id)
        .limit(MAX_ATTEMPTS)
    ).mappings()
    return [_stored(row) for row in rows]


def list_requests(
    conn: Connection,
    org_id: str,
    start_ms: int,
    end_ms: int,
    *,
    project_id: str | None = None,
    limit: int = 100,
    after: str | None = None,
) -> list[str]:
    """Requests of an organization that ended in [start, end), newest first, after request `after`."""
    table = usage_events
    query = select(table.c.request_id).where(
        table.c.org_id == org_id,
        table.c.ended_ms >= start_ms,
        table.c.ended_ms < end_ms,
        table.c.attempt == 1,
    )
    if project_id is not None:
        query = query.where(table.c.project_id == project_id)
    if after is not None:
        mark = conn.execute(
            select(table.c.ended_ms, table.c.request_id).where(
                table.c.request_id == after, table.c.org_id == org_id, table.c.attempt == 1
            )
        ).first()
        if mark is None:
            return []
        query = query.where(
            or_(
                table.c.ended_ms < mark.ended_ms,
                and_(table.c.ended_ms == mark.ended_ms, table.c.request_id < mark.request_id),
            )
        )
    query = query.order_by(table.c.ended_ms.desc(), table.c.request_id.desc()).limit(min(limit, MAX_PAGE))
    return list(conn.execute(query).scalars())


def _stored(row: RowMapping) -> StoredEvent:
    return StoredEvent(**row)


# Progress of streams under way


def note_progress(conn: Connection, source: str, epoch: int, notes: dict[str, str], now_ms: int) -> None:
    """Replace what is known of these streams: event id to CloudEvent text."""
    forget_progress(conn, source, list(notes))
    rows = [
        {"source": source, "event_id": event_id, "epoch": epoch, "payload": payload, "noted_ms": now_ms}
        for event_id, payload in notes.items()
    ]
    if rows:
        conn.execute(insert(journal_progress), rows)


def forget_progress(conn: Connection, source: str, event_ids: Sequence[str]) -> None:
    """These streams have ended."""
    for start in range(0, len(event_ids), _CHUNK):
        conn.execute(
            delete(journal_progress).where(
                journal_progress.c.source == source,
                journal_progress.c.event_id.in_(event_ids[start : start + _CHUNK]),
            )
        )


def any_progress(conn: Connection, source: str) -> bool:
    """Whether any stream of this gateway is noted as under way."""
    query = select(journal_progress.c.event_id).where(journal_progress.c.source == source).limit(1)
    return conn.execute(query).first() is not None


def take_progress_before(conn: Connection, source: str, epoch: int) -> list[str]:
    """Remove and return what streams of earlier epochs had come to; their process is gone."""
    where = and_(journal_progress.c.source == source, journal_progress.c.epoch < epoch)
    payloads = list(conn.execute(select(journal_progress.c.payload).where(where)).scalars())
    if payloads:
        conn.execute(delete(journal_progress).where(where))
    return payloads


# Quarantine and alarms


@dataclass(frozen=True, slots=True)
class QuarantineRow:
    """An event kept aside, with the reason."""

    kind: QuarantineKind
    source: str
    event_id: str
    payload_hash: str
    reason: str
    payload: str
    org_id: str = ""


def put_in_quarantine(conn: Connection, rows: Sequence[QuarantineRow], now_ms: int) -> None:
    """Keep these aside; the same one twice is kept once."""
    insert_ignoring(
        conn,
        quarantine,
        [
            {
                "kind": row.kind,
                "source": row.source,
                "event_id": row.event_id.replace("\x00", ""),
                "payload_hash": row.payload_hash,
                "reason": row.reason,
                # PostgreSQL's text cannot hold NUL.
                "payload": row.payload.replace("\x00", "\\u0000"),
                "recorded_ms": now_ms,
                "org_id": row.org_id,
            }
            for row in rows
        ],
    )


def list_quarantine(conn: Connection, limit: int = 100) -> list[QuarantineRow]:
    """The newest entries."""
    table = quarantine
    columns = [table.c[field.name] for field in fields(QuarantineRow)]
    rows = conn.execute(select(*columns).order_by(table.c.row_id.desc()).limit(min(limit, MAX_PAGE)))
    return [QuarantineRow(*row) for row in rows]


def record_alarms(conn: Connection, raised: Sequence[Alarm], now_ms: int) -> None:
    """Keep alarms for whoever looks later."""
    if raised:
        conn.execute(
            insert(alarms),
            [{"kind": a.kind, "source": a.source, "detail": a.detail, "at_ms": now_ms} for a in raised],
        )


def list_alarms(conn: Connection, limit: int = 100) -> list[Alarm]:
    """The newest alarms."""
    query = select(alarms.c.kind, alarms.c.source, alarms.c.detail)
    return [
        Alarm(*row)
        for row in conn.execute(query.order_by(alarms.c.row_id.desc()).limit(min(limit, MAX_PAGE)))
    ]


__all__ = [
    "Cursor",
    "QuarantineRow",
    "any_progress",
    "first_open_minute",
    "forget_progress",
    "insert_ignoring",
    "insert_usage",
    "known_hashes",
    "list_alarms",
    "list_quarantine",
    "list_requests",
    "lock_cursor",
    "lock_first_open_minute",
    "note_gateway_start",
    "note_progress",
    "put_in_quarantine",
    "read_cursor",
    "receipt_row",
    "record_alarms",
    "recorded_sequences",
    "set_first_open_minute",
    "take_progress_before",
    "usage_summary",
    "write_cursor",
]
