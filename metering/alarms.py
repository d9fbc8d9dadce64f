"""Alarms as they are listed: newest first, in pages. The platform's own, so of no organization."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from metering.tables import alarms


@dataclass(frozen=True, slots=True)
class RaisedAlarm:
    """One alarm, with its place in the list."""

    row_id: int
    kind: str
    source: str
    detail: str
    at_ms: int


def raised_alarms(
    conn: Connection, limit: int, *, before: int | None = None, kind: str | None = None
) -> list[RaisedAlarm]:
    """The newest, or those raised before number `before`."""
    table = alarms
    query = select(table.c.row_id, table.c.kind, table.c.source, table.c.detail, table.c.at_ms)
    if before is not None:
        query = query.where(table.c.row_id < before)
    if kind is not None:
        query = query.where(table.c.kind == kind)
    return [RaisedAlarm(*row) for row in conn.execute(query.order_by(table.c.row_id.desc()).limit(limit))]
