"""SQL of the quarantine: events that cannot be taken in are kept with the reason until somebody decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, func, select, update

from core.errors import Conflict, NotFound
from metering.records import QuarantineKind
from metering.store import QuarantineRow, put_in_quarantine
from metering.tables import quarantine

MAX_OPEN = 10_000  # of one organization; whoever sends more nonsense than that is refused

State = Literal["open", "replayed", "dropped"]
STATES: tuple[State, ...] = ("open", "replayed", "dropped")


@dataclass(frozen=True, slots=True)
class Entry:
    """One event in quarantine. `payload` is what was sent, structured JSON where it could be read."""

    id: int
    kind: QuarantineKind
    source: str
    event_id: str
    reason: str
    payload: str
    recorded_ms: int
    org_id: str
    state: State
    resolved_ms: int


def quarantine_ids(conn: Connection, rows: Sequence[QuarantineRow], now_ms: int) -> list[int]:
    """Put these aside, each once; returns their ids."""
    put_in_quarantine(conn, rows, now_ms)
    table, ids = quarantine, []
    for row in rows:
        found = conn.execute(
            select(table.c.row_id).where(
                table.c.source == row.source,
                table.c.event_id == row.event_id.replace("\x00", ""),
                table.c.payload_hash == row.payload_hash,
            )
        ).scalar_one()
        ids.append(int(found))
    return ids


def count_open(conn: Connection, org_id: str) -> int:
    """How many entries of an organization (or of none, "") wait for a decision."""
    query = select(func.count()).where(quarantine.c.state == "open", quarantine.c.org_id == org_id)
    return int(conn.execute(query.select_from(quarantine)).scalar_one())


def list_entries(
    conn: Connection, *, state: State | None, org_id: str | None, limit: int, before: int | None = None
) -> list[Entry]:
    """The newest first: of one organization, or of all (for the operator)."""
    table = quarantine
    query = _entries().order_by(table.c.row_id.desc()).limit(limit)
    if state is not None:
        query = query.where(table.c.state == state)
    if org_id is not None:
        query = query.where(table.c.org_id == org_id)
    if before is not None:
        query = query.where(table.c.row_id < before)
    return [_entry(row) for row in conn.execute(query)]


def get_entry(conn: Connection, entry_id: str, *, lock: bool = False) -> Entry:
    """The entry with that id; NotFound when there is none. Locked, nobody else decides about it."""
    number = int(entry_id) if entry_id.isascii() and entry_id.isdigit() and len(entry_id) < 18 else -1
    query = _entries().where(quarantine.c.row_id == number)
    row = conn.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound(f"there is nothing with id {entry_id[:80]!r} in quarantine", param="id")
    return _entry(row)


def open_entry(conn: Connection, entry_id: str) -> Entry:
    """The same, locked; Conflict when it was decided about already."""
    entry = get_entry(conn, entry_id, lock=True)
    if entry.state != "open":
        raise Conflict(f"entry {entry.id} was {entry.state} already", code="already_resolved", param="id")
    return entry


def resolve(conn: Connection, entry: Entry, state: State, now_ms: int) -> None:
    """The decision."""
    conn.execute(
        update(quarantine).where(quarantine.c.row_id == entry.id).values(state=state, resolved_ms=now_ms)
    )


def _entries() -> Select[Any]:
    return select(quarantine)


def _entry(row: Row[Any]) -> Entry:
    return Entry(
        row.row_id,
        row.kind,
        row.source,
        row.event_id,
        row.reason,
        row.payload,
        row.recorded_ms,
        row.org_id,
        row.state,
        row.resolved_ms,
    )
