"""Closing minutes: one aggregate per closed minute, and the watermark, in the caller's transaction.

Rows know the minute they are billed in from the moment they are stored (`billing_minute_ms`): their own, or
the first open one when their own was closed already. So a closed minute never changes, and a late event is a
dated adjustment: billed in an open minute, priced as of the minute in which it happened.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, insert, select, union_all

from core.clock import MINUTE_MS, minute_floor
from metering.ingest import digest
from metering.model import CALL_SKUS
from metering.records import ENDPOINT_MINUTE_SKU, ClosedMinute, MinuteKind
from metering.rollups import add_closed
from metering.store import first_open_minute, lock_first_open_minute, set_first_open_minute
from metering.tables import (
    call_quantities,
    endpoint_minutes,
    usage_corrections,
    usage_events,
    usage_minutes,
)

MAX_MINUTES = 60  # closed in one transaction
# Added up in one transaction, unless a single minute has more: other writers wait meanwhile.
MAX_EVENTS = 200_000
_KEY = ("billing_minute_ms", "service_minute_ms", "org_id", "project_id", "key_id", "endpoint_id", "model_id")


def close_minutes(conn: Connection, now_ms: int, lateness_ms: int) -> list[ClosedMinute]:
    """Close minutes that ended `lateness_ms` ago, a span of at most `MAX_MINUTES`; repeat while `is_due`.

    What is returned must be posted in the same transaction.
    """
    first_open = lock_first_open_minute(conn, exclusive=True)
    target = _target(now_ms, lateness_ms)
    if target <= first_open:  # nothing to do, or the clock went back: a closed minute stays closed
        return []
    start = _first_minute_with_rows(conn, first_open, target)
    if start is None:
        set_first_open_minute(conn, target)
        return []
    end = _end(conn, start, min(target, start + MAX_MINUTES * MINUTE_MS))
    rows = _aggregate(conn, start, end, org_id=None)
    if rows:
        conn.execute(insert(usage_minutes), [{**row, "closed_ms": now_ms} for row in rows])
    minutes = _endpoint_minutes(conn, start, end, org_id=None)
    corrections = _corrections(conn, start, end, org_id=None)
    add_closed(conn, [*rows, *map(_counted, minutes), *corrections])
    set_first_open_minute(conn, end)
    return [
        *(_usage_minute(row) for row in rows),
        *minutes,
        *(_usage_minute(row, "correction") for row in corrections),
    ]


def is_due(conn: Connection, now_ms: int, lateness_ms: int) -> bool:
    """Whether `close_minutes` would close something."""
    return _target(now_ms, lateness_ms) > first_open_minute(conn)


def open_minutes(
    conn: Connection, org_id: str, start_ms: int, end_ms: int, first_open_ms: int
) -> list[ClosedMinute]:
    """What closing would yield for an organization's minutes in [start, end) from `first_open_ms` on."""
    start = max(start_ms, first_open_ms)
    if start >= end_ms:
        return []
    rows = _aggregate(conn, start, end_ms, org_id=org_id)
    return [
        *(_usage_minute(row) for row in rows),
        *_endpoint_minutes(conn, start, end_ms, org_id),
        *(_usage_minute(row, "correction") for row in _corrections(conn, start, end_ms, org_id)),
    ]


def stamp(minute_ms: int) -> str:
    """A minute as it stands in ids: `20261123T1201Z`."""
    return datetime.fromtimestamp(minute_ms // 1000, tz=UTC).strftime("%Y%m%dT%H%MZ")


def _target(now_ms: int, lateness_ms: int) -> int:
    return minute_floor(now_ms - lateness_ms)


def _first_minute_with_rows(conn: Connection, start: int, end: int) -> int | None:
    parts = [
        select(func.min(table.c.billing_minute_ms).label("first")).where(
            table.c.billing_minute_ms >= start, table.c.billing_minute_ms < end
        )
        for table in (usage_events, endpoint_minutes, usage_corrections)
    ]
    firsts = [first for first in conn.execute(union_all(*parts)).scalars() if first is not None]
    return min(firsts) if firsts else None


def _end(conn: Connection, start: int, end: int) -> int:
    """`end`, or the start of the minute in which one event too many lies."""
    at = usage_events.c.billing_minute_ms
    query = select(at).where(at >= start, at < end).order_by(at).offset(MAX_EVENTS).limit(1)
    crowded = conn.execute(query).scalar()
    return end if crowded is None else max(start + MINUTE_MS, crowded)


def _aggregate(conn: Connection, start: int, end: int, org_id: str | None) -> list[dict[str, Any]]:
    table = usage_events
    key = [table.c[name] for name in _KEY]

    def billed(quantity: ColumnElement[int]) -> ColumnElement[int]:
        return func.sum(case((table.c.status == "error", 0), else_=quantity))

    query = (
        select(
            *key,
            func.count().label("requests"),
            func.sum(case((table.c.status == "error", 1), else_=0)).label("errors"),
            func.sum(case((table.c.batch, 1), else_=0)).label("batch_requests"),
            *(billed(quantity).label(sku) for sku, quantity in call_quantities().items()),
            billed(table.c.reasoning).label("reasoning"),
        )
        .where(table.c.billing_minute_ms >= start, table.c.billing_minute_ms < end)
        .group_by(*key)
        .order_by(*key)
    )
    if org_id is not None:
        query = query.where(table.c.org_id == org_id)
    rows = []
    for row in conn.execute(query).mappings():
        # PostgreSQL sums BIGINT to NUMERIC.
        values = {name: row[name] if isinstance(row[name], str) else int(row[name]) for name in row}
        rows.append({"id": minute_id([values[name] for name in _KEY]), **values})
    return rows


def minute_id(key: Sequence[object]) -> str:
    """Names one aggregate for ever: its billing minute, and a hash of everything it is grouped by."""
    return f"usage/{stamp(int(str(key[0])))}/{digest(chr(0).join(map(str, key)).encode())}"


def _usage_minute(row: Mapping[str, Any], kind: MinuteKind = "usage") -> ClosedMinute:
    return ClosedMinute(
        id=row["id"],
        kind=kind,
        billing_minute_ms=row["billing_minute_ms"],
        service_minute_ms=row["service_minute_ms"],
        org_id=row["org_id"],
        project_id=row["project_id"],
        key_id=row["key_id"],
        endpoint_id=row["endpoint_id"],
        model_id=row["model_id"],
        quantities={sku: row[sku] for sku in CALL_SKUS},
    )


def _corrections(conn: Connection, start: int, end: int, org_id: str | None) -> list[dict[str, Any]]:
    """Each correction is a minute of its own."""
    table = usage_corrections
    query = select(table).where(table.c.billing_minute_ms >= start, table.c.billing_minute_ms < end)
    if org_id is not None:
        query = query.where(table.c.org_id == org_id)
    rows = conn.execute(query.order_by(table.c.billing_minute_ms, table.c.minute_id)).mappings()
    return [{**row, "id": row["minute_id"]} for row in rows]


def _counted(minute: ClosedMinute) -> dict[str, Any]:
    """An endpoint's minute as the roll-ups take it."""
    return {
        "billing_minute_ms": minute.billing_minute_ms,
        "org_id": minute.org_id,
        "project_id": minute.project_id,
        "key_id": minute.key_id,
        "endpoint_id": minute.endpoint_id,
        "model_id": minute.model_id,
        **minute.quantities,
    }


def _endpoint_minutes(conn: Connection, start: int, end: int, org_id: str | None) -> list[ClosedMinute]:
    table = endpoint_minutes
    query = select(table).where(table.c.billing_minute_ms >= start, table.c.billing_minute_ms < end)
    if org_id is not None:
        query = query.where(table.c.org_id == org_id)
    rows = conn.execute(query.order_by(table.c.billing_minute_ms, table.c.id))
    return [
        ClosedMinute(
            id=row.id,
            kind="endpoint_minute",
            billing_minute_ms=row.billing_minute_ms,
            service_minute_ms=row.service_minute_ms,
            org_id=row.org_id,
            project_id=row.project_id,
            key_id="",
            endpoint_id=row.endpoint_id,
            model_id=row.model_id,
            quantities={ENDPOINT_MINUTE_SKU: 1},
        )
        for row in rows
    ]
