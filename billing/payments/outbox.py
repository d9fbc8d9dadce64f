"""SQL of the outbox: tasks written with what they are about, claimed by lanes, done or tried again."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, tuple_, update

from billing.invoicing.model import CreditNote, Invoice
from billing.payments.model import ITEMS, Task, TaskKind
from billing.payments.tables import provider_tasks
from core.inserts import insert_ignoring

LEASE_MS = 10 * 60_000  # a worker that is gone for this long has died; longer than any one task takes
_COLUMNS = [provider_tasks.c[each.name] for each in fields(Task)]
_table = provider_tasks


def task(kind: TaskKind, subject: str, org_id: str, lane: str, now_ms: int, **values: Any) -> dict[str, Any]:
    """A row of a new task."""
    fresh = Task(
        f"{kind}/{subject}", org_id, lane, kind, subject, "waiting", 0, 0, now_ms, 0, now_ms, 0, "", ""
    )
    return {each.name: getattr(fresh, each.name) for each in fields(Task)} | values


def add(conn: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Put tasks into the outbox; what is there already stays as it is."""
    insert_ignoring(conn, _table, rows)


def lane_of(org_id: str) -> str:
    """Everything about an organization's invoices, in order."""
    return f"invoices/{org_id}"


def invoice_finalized(conn: Connection, invoice: Invoice, provider: str, now_ms: int) -> None:
    """With finalizing: the provider gets the invoice, unless nothing is due or it bills by its own meters."""
    if provider == ITEMS and invoice.due_cents > 0:
        add(conn, [task("invoice", invoice.id, invoice.org_id, lane_of(invoice.org_id), now_ms)])


def invoice_changed(conn: Connection, invoice: Invoice, kind: TaskKind, now_ms: int) -> None:
    """With becoming void or paid: the provider is told, when it was given the invoice."""
    if _given(conn, invoice.id):
        add(conn, [task(kind, invoice.id, invoice.org_id, lane_of(invoice.org_id), now_ms)])


def note_made(conn: Connection, note: CreditNote, now_ms: int) -> None:
    """With a credit note off what is due: the provider is told. Credit for later is ours alone."""
    if not note.as_credit and _given(conn, note.invoice_id):
        add(conn, [task("credit_note", note.id, note.org_id, lane_of(note.org_id), now_ms)])


def _given(conn: Connection, invoice_id: str) -> bool:
    return find(conn, f"invoice/{invoice_id}") is not None


def find(conn: Connection, task_id: str) -> Task | None:
    """The task with that id."""
    row = conn.execute(select(*_COLUMNS).where(_table.c.id == task_id)).first()
    return None if row is None else _task(row)


def is_due(conn: Connection, now_ms: int) -> bool:
    """Whether there may be something to claim."""
    query = select(_table.c.id).where(_table.c.state == "waiting", _table.c.next_ms <= now_ms)
    return conn.execute(query.limit(1)).first() is not None


def claim(conn: Connection, now_ms: int, limit: int) -> list[Task]:
    """The first tasks of lanes, where they are due, at most `limit`; nobody else gets them for ten minutes."""
    waiting = _table.c.state == "waiting"
    firsts = (
        select(_table.c.lane, func.min(_table.c.created_ms).label("at"))
        .where(waiting)
        .group_by(_table.c.lane)
    ).subquery()
    query = (
        select(*_COLUMNS)
        .join(firsts, (firsts.c.lane == _table.c.lane) & (firsts.c["at"] == _table.c.created_ms))
        .where(waiting, _table.c.next_ms <= now_ms)
        .order_by(_table.c.created_ms, _table.c.id)
        .limit(limit * 4)
    )
    claimed: dict[str, Task] = {}
    for found in map(_task, conn.execute(query).all()):
        if found.lane in claimed or len(claimed) == limit or _busy(conn, found, now_ms):
            continue
        first_ms = found.first_ms or now_ms
        values: dict[str, Any] = {
            "next_ms": now_ms + LEASE_MS, "attempts": found.attempts + 1, "first_ms": first_ms,
        }  # fmt: skip
        where = (_table.c.id == found.id, _table.c.next_ms == found.next_ms, waiting)
        if conn.execute(update(_table).where(*where).values(**values)).rowcount == 1:
            claimed[found.lane] = replace(found, **values)
    return list(claimed.values())


def _busy(conn: Connection, wanted: Task, now_ms: int) -> bool:
    """Whether an earlier task of the lane (of the same millisecond, even) is with a worker or to be done first."""
    earlier = tuple_(_table.c.created_ms, _table.c.id) < tuple_(wanted.created_ms, wanted.id)
    query = select(_table.c.id).where(_table.c.lane == wanted.lane, _table.c.state == "waiting", earlier)
    return conn.execute(query.limit(1)).first() is not None


def done(conn: Connection, task_id: str, now_ms: int, provider_id: str = "") -> None:
    """The provider has it."""
    values = {"state": "done", "done_ms": now_ms, "last_error": "", "provider_id": provider_id}
    conn.execute(update(_table).where(_table.c.id == task_id).values(**values))


def failed(conn: Connection, task_id: str, error: str) -> None:
    """It will not work; a person must look. The rest of its lane goes on."""
    conn.execute(update(_table).where(_table.c.id == task_id).values(state="failed", last_error=error[:500]))


def postpone(conn: Connection, task_id: str, next_ms: int, error: str, *, new_keys: bool) -> None:
    """Try it again then; `new_keys`: with other idempotency keys."""
    values: dict[str, Any] = {"next_ms": next_ms, "last_error": error[:500]}
    if new_keys:
        values |= {"generation": _table.c.generation + 1, "first_ms": 0}
    conn.execute(update(_table).where(_table.c.id == task_id).values(**values))


def new_generation(conn: Connection, task: Task, now_ms: int) -> Task:
    """The provider has forgotten the keys of the first try: use new ones, from now on."""
    values: dict[str, Any] = {"generation": task.generation + 1, "first_ms": now_ms}
    conn.execute(update(_table).where(_table.c.id == task.id).values(**values))
    return replace(task, **values)


def retry_now(conn: Connection, now_ms: int, *, failed_too: bool) -> int:
    """Everything that waits after an error is due now; returns how many. A worker may be at it: the keys are the same."""
    waiting = (_table.c.state == "waiting") & (_table.c.next_ms > now_ms) & (_table.c.last_error != "")
    count = conn.execute(update(_table).where(waiting).values(next_ms=now_ms)).rowcount
    if failed_too:
        again = {"state": "waiting", "next_ms": now_ms}
        count += conn.execute(update(_table).where(_table.c.state == "failed").values(**again)).rowcount
    return count


def counts(conn: Connection) -> dict[tuple[str, str], int]:
    """How many tasks by kind and state."""
    query = select(_table.c.kind, _table.c.state, func.count()).group_by(_table.c.kind, _table.c.state)
    return {(row[0], row[1]): int(row[2]) for row in conn.execute(query)}


def troubled(conn: Connection, limit: int) -> list[Task]:
    """Tasks that failed, or wait after an error: oldest first."""
    query = select(*_COLUMNS).where(_table.c.state != "done", _table.c.last_error != "")
    rows = conn.execute(query.order_by(_table.c.created_ms, _table.c.id).limit(limit))
    return [_task(row) for row in rows]


def oldest_waiting_ms(conn: Connection) -> int:
    """When the oldest task that is not done was made; 0: none waits."""
    query = select(func.min(_table.c.created_ms)).where(_table.c.state == "waiting")
    return conn.execute(query).scalar() or 0


def delivered(conn: Connection, lane: str, start_ms: int, end_ms: int) -> int:
    """The quantity of a meter's events in [start, end) that the provider has as events."""
    query = select(func.sum(_table.c.quantity)).where(
        _table.c.lane == lane,
        _table.c.state == "done",
        _table.c.at_ms >= start_ms,
        _table.c.at_ms < end_ms,
        _table.c.provider_id.not_like("late/%"),
    )
    return int(conn.execute(query).scalar() or 0)


def join_batch(conn: Connection, task: Task, batch: str, before_ms: int, limit: int) -> str:
    """Tasks of the lane for usage before then, this one first, become one batch, for good; its name."""
    lane = (_table.c.lane == task.lane, _table.c.state == "waiting", _table.c.provider_id == "")
    query = select(_table.c.id).where(*lane, _table.c.at_ms < before_ms).order_by(_table.c.id).limit(limit)
    ids = {task.id, *conn.execute(query).scalars()}
    for each in sorted(ids):
        conn.execute(update(_table).where(_table.c.id == each).values(provider_id=batch))
    return batch


def batch_quantity(conn: Connection, lane: str, batch: str) -> int:
    """The quantity of a batch."""
    query = select(func.sum(_table.c.quantity)).where(_table.c.lane == lane, _table.c.provider_id == batch)
    return int(conn.execute(query).scalar() or 0)


def batch_done(conn: Connection, lane: str, batch: str, now_ms: int) -> None:
    """The provider has the batch."""
    where = (_table.c.lane == lane, _table.c.provider_id == batch, _table.c.state == "waiting")
    conn.execute(update(_table).where(*where).values(state="done", done_ms=now_ms, last_error=""))


def forget_delivered(conn: Connection, before_ms: int, limit: int = 1000) -> int:
    """Events of meters that were delivered before then need not be known any more; returns how many went."""
    query = select(_table.c.id).where(
        _table.c.kind == "meter_event", _table.c.state == "done", _table.c.done_ms < before_ms
    )
    ids = list(conn.execute(query.limit(limit)).scalars())
    if ids:
        conn.execute(delete(_table).where(_table.c.id.in_(ids)))
    return len(ids)


def _task(row: Row[Any]) -> Task:
    return Task(**dict(row._mapping))
