"""From an invoice line to the minutes it is made of, and on to single events; the sums are exact at each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select

from billing.invoicing.model import Invoice, InvoiceLine
from billing.invoicing.raw import billed_quantities, events_behind, is_correction, origin_of
from billing.model import ENDPOINT_MINUTE_SKU
from billing.tables import ledger_postings, ledger_transactions
from core.errors import Invalid, NotFound
from metering.model import CALL_SKUS
from metering.tables import usage_events


@dataclass(frozen=True, slots=True)
class MinutePart:
    """What one transaction of the ledger adds to a line."""

    id: str  # the minute's, and its transaction's
    kind: str
    minute_ms: int  # billed in
    service_minute_ms: int  # happened in
    project_id: str
    key_id: str
    endpoint_id: str
    quantity: int
    amount_pico: int


@dataclass(frozen=True, slots=True)
class EventPart:
    """What one event adds to a minute. An endpoint minute is an event of its own."""

    id: str  # the event's; of a call its receipt is found by `request_id`
    request_id: str
    status: str
    ended_ms: int
    quantity: int


@dataclass(frozen=True, slots=True)
class Part:
    """A page of what a whole consists of, and how much the whole is."""

    quantity: int
    rows: Sequence[Any]


def minutes_of_line(
    conn: Connection, invoice: Invoice, line: InvoiceLine, *, limit: int, after: str = ""
) -> Part:
    """The minutes of a line of charges, oldest first, behind minute `after`. Invalid for a line of another kind."""
    if line.kind != "charge":
        raise Invalid(
            f"line: line {line.line} is {line.kind}, which no single minutes are behind; only charges have them",
            param="line",
        )
    entries, postings = ledger_transactions, ledger_postings
    where = _of_line(invoice, line)
    source = postings.join(entries, entries.c.id == postings.c.transaction_id)
    total = conn.execute(select(func.sum(postings.c.quantity)).select_from(source).where(*where)).scalar()
    query = (
        select(entries, postings.c.quantity, postings.c.unit_price_pico)
        .select_from(source)
        .where(*where)
        .order_by(entries.c.minute_ms, entries.c.id)
        .limit(limit)
    )
    if after:
        mark = conn.execute(
            select(entries).where(entries.c.id == after, entries.c.org_id == invoice.org_id)
        ).first()
        if mark is None:
            raise NotFound(f"there is no minute {after[:80]!r}", param="after")
        query = query.where(
            or_(
                entries.c.minute_ms > mark.minute_ms,
                and_(entries.c.minute_ms == mark.minute_ms, entries.c.id > mark.id),
            )
        )
    rows = [_minute(row) for row in conn.execute(query)]
    return Part(int(total or 0), rows)


def _of_line(invoice: Invoice, line: InvoiceLine) -> list[ColumnElement[bool]]:
    entries, postings = ledger_transactions, ledger_postings
    where = [
        entries.c.org_id == invoice.org_id,
        entries.c.minute_ms >= invoice.start_ms,
        entries.c.minute_ms < invoice.end_ms,
        entries.c.model_id == line.model_id,
        postings.c.sku == line.sku,
        postings.c.unit_price_pico == line.unit_price_pico,
    ]
    if line.sku == ENDPOINT_MINUTE_SKU:
        where.append(entries.c.endpoint_id == line.endpoint_id)
    if line.price_version:
        where.append(postings.c.price_version == line.price_version)
    return where


def _minute(row: Row[Any]) -> MinutePart:
    return MinutePart(
        row.id,
        row.kind,
        row.minute_ms,
        row.service_minute_ms,
        row.project_id,
        row.key_id,
        row.endpoint_id,
        row.quantity,
        row.quantity * row.unit_price_pico,
    )


def events_of_minute(
    conn: Connection, org_id: str, minute_id: str, sku: str, *, limit: int, after: int = 0
) -> tuple[Part, int]:
    """The events behind a minute that the SKU counts, in order of arrival, and the next page's `after` (0: none)."""
    minute = origin_of(conn, minute_id)
    if minute is None or minute.org_id != org_id:
        raise NotFound(f"there is no minute {minute_id[:120]!r}", param="minute")
    if sku == ENDPOINT_MINUTE_SKU:
        part = EventPart(minute.id, "", "minute", minute.service_minute_ms, 1)
        return Part(1, [] if after else [part]), 0
    if sku not in CALL_SKUS:
        raise Invalid(f"sku: expected one that calls are billed by, got {sku[:60]!r}", param="sku")
    if is_correction(minute):
        quantity = getattr(minute, sku)
        part = EventPart(minute.event_id, minute.request_id, "correction", minute.recorded_ms, quantity)
        return Part(quantity, [] if after else [part]), 0
    table = usage_events
    query = events_behind(minute).where(table.c.row_id > after).order_by(table.c.row_id).limit(limit + 1)
    rows = conn.execute(query).all()
    parts = [
        EventPart(row.event_id, row.request_id, row.status, row.ended_ms, billed_quantities(row).get(sku, 0))
        for row in rows[:limit]
    ]
    return Part(getattr(minute, sku), parts), int(rows[limit - 1].row_id) if len(rows) > limit else 0
