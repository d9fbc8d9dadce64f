"""SQL of invoices, their lines and numbers, and billing profiles."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Table, delete, insert, select, update

from billing.invoicing.model import Invoice, InvoiceLine, InvoiceState, Parties, Profile
from billing.tables import (
    billing_profiles,
    credit_note_numbers,
    invoice_lines,
    invoice_numbers,
    invoices,
)
from core.errors import NotFound
from metering.store import insert_ignoring

MAX_PAGE = 1000
_LINE_COLUMNS = [invoice_lines.c[each.name] for each in fields(InvoiceLine)]


def insert_invoice(conn: Connection, invoice: Invoice, lines: Sequence[InvoiceLine]) -> None:
    """A new invoice with its lines."""
    conn.execute(insert(invoices).values(**_invoice_row(invoice)))
    insert_lines(conn, invoice, lines)


def insert_lines(conn: Connection, invoice: Invoice, lines: Sequence[InvoiceLine]) -> None:
    """The lines of an invoice that has none."""
    if lines:
        owner = {"invoice_id": invoice.id, "org_id": invoice.org_id}
        conn.execute(insert(invoice_lines), [asdict(line) | owner for line in lines])


def replace_draft(conn: Connection, invoice: Invoice, lines: Sequence[InvoiceLine]) -> None:
    """The draft becomes `invoice`, with these lines; whatever is no draft is not touched."""
    drafts = (invoices.c.id == invoice.id, invoices.c.state == "draft")
    changed = conn.execute(update(invoices).where(*drafts).values(**_invoice_row(invoice))).rowcount
    assert changed == 1, f"{invoice.id} is no draft"
    conn.execute(delete(invoice_lines).where(invoice_lines.c.invoice_id == invoice.id))
    insert_lines(conn, invoice, lines)


def set_state(conn: Connection, invoice: Invoice, state: InvoiceState, **values: object) -> None:
    """Move an invoice that was read as `invoice` to another state."""
    where = (invoices.c.id == invoice.id, invoices.c.state == invoice.state)
    changed = conn.execute(update(invoices).where(*where).values(state=state, **values)).rowcount
    assert changed == 1, f"{invoice.id} was {invoice.state} a moment ago, under the organization's lock"


def set_provider_id(conn: Connection, invoice_id: str, provider_id: str) -> None:
    """The provider has the invoice, and calls it this."""
    conn.execute(update(invoices).where(invoices.c.id == invoice_id).values(provider_id=provider_id))


def find_invoice(conn: Connection, name: str) -> Invoice:
    """The invoice with that id or number; NotFound when there is none."""
    row = conn.execute(select(invoices).where((invoices.c.id == name) | (invoices.c.number == name))).first()
    if row is None:
        raise NotFound(f"there is no invoice {name!r}; see `farebox invoice list`", param="invoice")
    return _invoice(row)


def list_invoices(
    conn: Connection,
    *,
    org_id: str | None = None,
    state: InvoiceState | None = None,
    start_ms: int | None = None,
    end_ms: int | None = None,
    limit: int = 50,
    after: str = "",
) -> list[Invoice]:
    """Newest first; those whose period begins in [start, end). For all organizations only for the operator."""
    query = select(invoices).order_by(invoices.c.id.desc()).limit(min(limit, MAX_PAGE))
    if after:
        query = query.where(invoices.c.id < after)
    if org_id is not None:
        query = query.where(invoices.c.org_id == org_id)
    if state is not None:
        query = query.where(invoices.c.state == state)
    if start_ms is not None:
        query = query.where(invoices.c.start_ms >= start_ms)
    if end_ms is not None:
        query = query.where(invoices.c.start_ms < end_ms)
    return [_invoice(row) for row in conn.execute(query)]


def period_invoices(conn: Connection, org_id: str, start_ms: int, end_ms: int) -> list[Invoice]:
    """Every invoice of an organization that touches [start, end), void ones too, by their start."""
    query = (
        select(invoices)
        .where(invoices.c.org_id == org_id, invoices.c.start_ms < end_ms, invoices.c.end_ms > start_ms)
        .order_by(invoices.c.start_ms, invoices.c.id)
    )
    return [_invoice(row) for row in conn.execute(query)]


def lines_of(
    conn: Connection, invoice_id: str, *, after: int = 0, limit: int | None = None
) -> list[InvoiceLine]:
    """The lines of an invoice, from the one behind number `after` on."""
    query = (
        select(*_LINE_COLUMNS)
        .where(invoice_lines.c.invoice_id == invoice_id, invoice_lines.c.line > after)
        .order_by(invoice_lines.c.line)
    )
    if limit is not None:
        query = query.limit(min(limit, MAX_PAGE))
    return [InvoiceLine(*row) for row in conn.execute(query)]


def next_number(conn: Connection, table: Table, at_ms: int) -> tuple[int, int]:
    """(UTC year, number): the next of the series, without gaps: whoever rolls back gives it back."""
    assert table is invoice_numbers or table is credit_note_numbers
    year = datetime.fromtimestamp(at_ms // 1000, tz=UTC).year
    insert_ignoring(conn, table, [{"year": year, "last": 0}])
    conn.execute(update(table).where(table.c.year == year).values(last=table.c.last + 1))
    return year, int(conn.execute(select(table.c.last).where(table.c.year == year)).scalar_one())


def profile_of(conn: Connection, org_id: str) -> Profile:
    """How the organization is invoiced; the defaults when nothing was set."""
    row = conn.execute(select(billing_profiles).where(billing_profiles.c.org_id == org_id)).first()
    return Profile(org_id) if row is None else Profile(*row)


def put_profile(conn: Connection, profile: Profile) -> None:
    """Set it, in the place of the one before."""
    conn.execute(delete(billing_profiles).where(billing_profiles.c.org_id == profile.org_id))
    conn.execute(insert(billing_profiles).values(**asdict(profile)))


def threshold_profiles(conn: Connection) -> list[Profile]:
    """Organizations that are invoiced within the month."""
    table = billing_profiles
    found = [Profile(*row) for row in conn.execute(select(table).order_by(table.c.org_id))]
    return [profile for profile in found if profile.threshold_pico > 0]


def _invoice_row(invoice: Invoice) -> dict[str, object]:
    values = {each.name: getattr(invoice, each.name) for each in fields(Invoice)}
    return values | {"parties": json.dumps(asdict(invoice.parties))}


def _invoice(row: Row[Any]) -> Invoice:
    values = dict(row._mapping)
    return Invoice(**values | {"parties": msgspec.json.decode(row.parties, type=Parties)})
