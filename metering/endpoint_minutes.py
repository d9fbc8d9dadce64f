"""The minute clock: each UTC calendar minute in which an endpoint existed is recorded exactly once.

A minute that has begun counts, so the minute of creation counts, and so does the one of deletion unless the
endpoint was deleted exactly as it began. State does not matter: an endpoint that is scaled to zero, or not
healthy, still holds its URL and keys.

An instance of an online endpoint has a life of its own beside it: see `InstanceLife` in serving.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, insert, select, update

from core.clock import MINUTE_MS, minute_floor
from metering.close import stamp
from metering.records import ENDPOINT_MINUTE_SKU
from metering.store import insert_ignoring, lock_first_open_minute
from metering.tables import endpoint_cursors, endpoint_minutes

MAX_PER_SWEEP = 10_000


@dataclass(frozen=True, slots=True)
class EndpointLife:
    """When an endpoint existed: from `created_ms` until before `deleted_ms` (None: it still does)."""

    endpoint_id: str
    org_id: str
    project_id: str
    model_id: str
    created_ms: int
    deleted_ms: int | None
    name: str
    instance_id: str = ""  # of an instance's life: its minutes are counted beside those of others

    @property
    def id(self) -> str:
        """What has the minutes: the instance, or the endpoint itself."""
        return self.instance_id or self.endpoint_id


@dataclass(frozen=True, slots=True)
class _Cursor:
    next_minute_ms: int
    finished: bool
    name: str


def minute_event_id(life_id: str, minute_ms: int) -> str:
    """CloudEvents `id` of an endpoint's or instance's minute."""
    return f"{life_id}/{stamp(minute_ms)}/{ENDPOINT_MINUTE_SKU}"


def sweep(
    conn: Connection,
    lives: Iterable[EndpointLife],
    now_ms: int,
    limit: int = MAX_PER_SWEEP,
    *,
    on_minutes: Callable[[EndpointLife, range], None] | None = None,
) -> int:
    """Record the minutes that are due, at most `limit`; returns how many. Repeat until fewer than `limit`.

    `on_minutes` is told of each endpoint's minutes as they are recorded.
    """
    first_open = lock_first_open_minute(conn, exclusive=True)  # one sweeper at a time, in PostgreSQL too
    cursors = _read_cursors(conn)
    rows: list[dict[str, object]] = []
    moved: list[tuple[EndpointLife, _Cursor | None, _Cursor]] = []
    for life in lives:
        cursor = cursors.get(life.id)
        if cursor is not None and cursor.finished:
            continue
        due, next_minute, finished = _due(life, cursor, now_ms, limit - len(rows))
        if due:
            rows += [_row(life, m, max(m, first_open), now_ms) for m in due]
            if on_minutes is not None:
                on_minutes(life, due)
        moved.append((life, cursor, _Cursor(next_minute, finished, life.name)))
        if len(rows) >= limit:
            break
    # All in one go: ten thousand endpoints have a minute at the same instant, and others want to write.
    insert_ignoring(conn, endpoint_minutes, rows)
    _write_cursors(conn, moved)
    return len(rows)


def endpoint_names(conn: Connection, org_id: str) -> dict[str, str]:
    """Names of an organization's endpoints by id, deleted ones too."""
    table = endpoint_cursors
    query = select(table.c.endpoint_id, table.c.of_endpoint_id, table.c.name).where(table.c.org_id == org_id)
    return {row.of_endpoint_id or row.endpoint_id: row.name for row in conn.execute(query)}


def _due(life: EndpointLife, cursor: _Cursor | None, now_ms: int, limit: int) -> tuple[range, int, bool]:
    """The minutes to record now, the one after them, and whether none can follow."""
    created = minute_floor(life.created_ms)
    start = cursor.next_minute_ms if cursor is not None else created
    # Even an endpoint that was deleted at once (or before, if the clock went back) existed in one minute.
    last = None if life.deleted_ms is None else max(created, minute_floor(life.deleted_ms - 1))
    end = minute_floor(now_ms) if last is None else min(last, minute_floor(now_ms))
    stop = min(end + MINUTE_MS, start + limit * MINUTE_MS)
    due = range(start, max(start, stop), MINUTE_MS)
    next_minute = start + len(due) * MINUTE_MS
    return due, next_minute, last is not None and next_minute > last


def _row(life: EndpointLife, minute_ms: int, billing_minute_ms: int, now_ms: int) -> dict[str, object]:
    return {
        "id": minute_event_id(life.id, minute_ms),
        "endpoint_id": life.endpoint_id,
        "org_id": life.org_id,
        "project_id": life.project_id,
        "model_id": life.model_id,
        "service_minute_ms": minute_ms,
        "billing_minute_ms": billing_minute_ms,
        "recorded_ms": now_ms,
    }


def _read_cursors(conn: Connection) -> dict[str, _Cursor]:
    table = endpoint_cursors
    rows = conn.execute(select(table.c.endpoint_id, table.c.next_minute_ms, table.c.finished, table.c.name))
    return {row.endpoint_id: _Cursor(row.next_minute_ms, bool(row.finished), row.name) for row in rows}


_MOVE_CURSOR = update(endpoint_cursors).where(endpoint_cursors.c.endpoint_id == bindparam("id"))


def _write_cursors(conn: Connection, moved: Iterable[tuple[EndpointLife, _Cursor | None, _Cursor]]) -> None:
    new: list[dict[str, object]] = []
    changed: list[dict[str, object]] = []
    for life, before, after in moved:
        values = {"next_minute_ms": after.next_minute_ms, "finished": after.finished, "name": after.name}
        if before is None:
            of = life.endpoint_id if life.instance_id else ""
            new.append({"endpoint_id": life.id, "of_endpoint_id": of, "org_id": life.org_id, **values})
        elif after != before:
            changed.append({"id": life.id, **values})
    if new:
        conn.execute(insert(endpoint_cursors), new)
    if changed:
        conn.execute(_MOVE_CURSOR, changed)
