"""SQL of credit notes."""

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from billing.invoicing.model import CreditNote
from billing.tables import credit_notes
from core.errors import NotFound


def insert_note(conn: Connection, note: CreditNote) -> None:
    """A new credit note; they never change."""
    values = asdict(note) | {"lines": json.dumps(note.lines), "as_credit": int(note.as_credit)}
    conn.execute(insert(credit_notes).values(**values))


def notes_of(conn: Connection, invoice_id: str) -> list[CreditNote]:
    """The credit notes of an invoice, oldest first."""
    table = credit_notes
    rows = conn.execute(select(table).where(table.c.invoice_id == invoice_id).order_by(table.c.id))
    return [_note(row) for row in rows]


def off_due_cents(conn: Connection, invoice_id: str) -> int:
    """What credit notes take off an invoice's amount due (or paid back, of a paid one)."""
    table = credit_notes
    query = select(func.sum(table.c.amount_cents)).where(
        table.c.invoice_id == invoice_id, table.c.as_credit == 0
    )
    return int(conn.execute(query).scalar() or 0)


def notes_between(conn: Connection, org_id: str, start_ms: int, end_ms: int) -> list[CreditNote]:
    """Credit notes of an organization that were made in [start, end)."""
    table = credit_notes
    query = select(table).where(
        table.c.org_id == org_id, table.c.created_ms >= start_ms, table.c.created_ms < end_ms
    )
    return [_note(row) for row in conn.execute(query.order_by(table.c.id))]


def find_note(conn: Connection, name: str) -> CreditNote:
    """The credit note with that id or number; NotFound when there is none."""
    table = credit_notes
    row = conn.execute(select(table).where((table.c.id == name) | (table.c.number == name))).first()
    if row is None:
        raise NotFound(
            f"there is no credit note {name!r}; see `farebox credit-note list`", param="credit_note"
        )
    return _note(row)


def list_notes(
    conn: Connection, *, org_id: str | None = None, limit: int = 50, after: str = ""
) -> list[CreditNote]:
    """Newest first: one organization's, or all (for the operator)."""
    table = credit_notes
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    if after:
        query = query.where(table.c.id < after)
    if org_id is not None:
        query = query.where(table.c.org_id == org_id)
    return [_note(row) for row in conn.execute(query)]


def _note(row: Row[Any]) -> CreditNote:
    lines = tuple((int(line), int(cents)) for line, cents in json.loads(row.lines))
    return CreditNote(**dict(row._mapping) | {"lines": lines, "as_credit": bool(row.as_credit)})
