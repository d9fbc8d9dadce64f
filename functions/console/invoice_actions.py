"""Invoices: made, finalized, paid, void; their lines down to single events; their proof."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Query, status
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from access.store import find_organization
from billing.invoicing import drill
from billing.invoicing.check import CheckReport, check_invoice
from billing.invoicing.issue import finalize, invoice_period
from billing.invoicing.model import Invoice, InvoiceState
from billing.invoicing.settle import outstanding_cents, record_payment, void_invoice
from billing.invoicing.store import find_invoice, lines_of, list_invoices
from catalog import price_book
from core.clock import iso
from core.errors import Conflict, Invalid, NotFound
from core.money import format_pico, parse_usd
from functions.console.dependencies import ConsoleDependencies, Deps
from functions.console.invoice_shapes import InvoiceLineOut, InvoiceOut, invoice_line_out, invoice_out
from functions.console.periods import month
from functions.console.routing import console_router
from functions.console.shapes import After, Input, Limit, Page, Text, page
from functions.console.usage import Named

router = console_router("invoices")
_HEARTBEAT_S = 5.0


class NewInvoice(Input):
    """The invoice of a month that is over, where the invoicer has not made it: after a void one, for example."""

    organization: Text = Field(examples=["acme"], description="Its id or name.")
    period: Text = Field(examples=["2026-11"], description="YYYY-MM (UTC).")
    draft: bool = Field(default=False, description="Leave it a draft, to be finalized by a person.")


class Payment(Input):
    """A payment that came in, of all that is due."""

    reference: Text = Field(examples=["bank transfer 4711"])
    amount_usd: Text | None = Field(default=None, description="To be sure: must be what is due.")


class MinuteOut(BaseModel):
    """What one closed minute adds to a line; `id` is that of its transaction on the ledger."""

    id: str
    kind: str
    minute: str = Field(description="Billed in.")
    service_minute: str = Field(description="Happened in: earlier, when it was late.")
    project_id: str
    key_id: str
    endpoint_id: str
    quantity: int
    amount_usd: str


class MinutesOut(Page[MinuteOut]):
    """Minutes of a line; all pages together are its quantity and amount, to the last digit."""

    line_quantity: int
    line_amount_usd: str


class EventOut(BaseModel):
    """What one event adds to a minute. `request_id` is that of the call's receipt."""

    id: str
    request_id: str | None
    status: str
    time: str
    quantity: int


class EventsOut(Page[EventOut]):
    """Events of a minute; all pages together are its quantity."""

    minute_quantity: int


class VerificationOut(BaseModel):
    """What was recomputed and compared. Without a difference the invoice is proved."""

    invoice_id: str
    number: str | None
    proved: bool
    events: int = Field(description="Usage events of its period, added up again one by one.")
    endpoint_minutes: int
    corrections: int
    ledger_transactions: int = Field(description="Of the organization's chain, recomputed up to the invoice.")
    lines: int
    differences: list[str]


@router.post("/invoices", status_code=status.HTTP_201_CREATED, summary="Make the invoices of a month")
def create(body: NewInvoice, deps: Deps) -> Page[InvoiceOut]:
    """Of what of the month is charged and not invoiced. 409 while the month is open, or when there is nothing."""
    now_ms = deps.clock.now_ms()
    span = month(body.period, now_ms)
    with deps.db.begin() as connection:
        org_id = find_organization(connection, body.organization).id
        made = invoice_period(connection, deps.issuer, org_id, span, now_ms, finalized=not body.draft)
        if not made:
            raise Conflict(
                f"period: {body.period} has nothing to invoice: no charges, or an invoice covers them already",
                code="nothing_to_invoice",
                param="period",
            )
        return Page(data=[_shown(connection, each) for each in made])


@router.get("/invoices", summary="List invoices")
def list_all(
    deps: Deps,
    organization: Named = None,
    state: InvoiceState | None = None,
    period: Annotated[str | None, Query(max_length=20, description="YYYY-MM (UTC).")] = None,
    limit: Limit = 50,
    after: After = "",
) -> Page[InvoiceOut]:
    """Newest first, one organization's or all."""
    start_ms, end_ms = (None, None) if period is None else month(period, 0)
    with deps.db.read() as connection:
        org_id = None if organization is None else find_organization(connection, organization).id
        found = list_invoices(
            connection,
            org_id=org_id,
            state=state,
            start_ms=start_ms,
            end_ms=end_ms,
            limit=limit + 1,
            after=after,
        )
        return page(found, limit, lambda each: _shown(connection, each), lambda each: each.id)


@router.get("/invoices/{invoice_id}", summary="Show an invoice")
def get(invoice_id: str, deps: Deps) -> InvoiceOut:
    """By its id or number."""
    with deps.db.read() as connection:
        return _shown(connection, find_invoice(connection, invoice_id))


@router.post("/invoices/{invoice_id}/finalize", summary="Finalize a draft")
def finalize_draft(invoice_id: str, deps: Deps) -> InvoiceOut:
    """It gets its number, takes credit, goes to the ledger, and never changes again."""
    with deps.db.begin() as connection:
        made = finalize(connection, deps.issuer, invoice_id, deps.clock.now_ms())
        return _shown(connection, made)


@router.post("/invoices/{invoice_id}/void", summary="Take an invoice back")
def void(invoice_id: str, deps: Deps) -> InvoiceOut:
    """Its entry is reversed, credit given back. Its period is invoiced again when somebody asks for it."""
    with deps.db.begin() as connection:
        return _shown(connection, void_invoice(connection, invoice_id, deps.clock.now_ms()))


@router.post("/invoices/{invoice_id}/pay", summary="Record a payment")
def pay(invoice_id: str, body: Payment, deps: Deps) -> InvoiceOut:
    """Of all that is due; paying twice is refused."""
    cents = None if body.amount_usd is None else cents_of(body.amount_usd, "amount_usd")
    with deps.db.begin() as connection:
        paid = record_payment(
            connection,
            invoice_id,
            amount_cents=cents,
            reference=body.reference,
            now_ms=deps.clock.now_ms(),
        )
        return _shown(connection, paid)


@router.get("/invoices/{invoice_id}/lines", summary="The lines of an invoice")
def lines(
    invoice_id: str, deps: Deps, limit: Limit = 50, after: Annotated[int, Query(ge=0, le=10**9)] = 0
) -> Page[InvoiceLineOut]:
    """In their order on the invoice."""
    with deps.db.read() as connection:
        invoice = find_invoice(connection, invoice_id)
        found = lines_of(connection, invoice.id, after=after, limit=limit + 1)
        return page(found, limit, invoice_line_out, lambda each: str(each.line))


@router.get("/invoices/{invoice_id}/lines/{line}/minutes", summary="The minutes behind a line")
def minutes(invoice_id: str, line: int, deps: Deps, limit: Limit = 50, after: After = "") -> MinutesOut:
    """Oldest first. Only charges have minutes behind them."""
    with deps.db.read() as connection:
        invoice = find_invoice(connection, invoice_id)
        found = next(iter(lines_of(connection, invoice.id, after=line - 1, limit=1)), None)
        if found is None or found.line != line:
            raise NotFound(f"invoice {invoice.number or invoice.id} has no line {line}", param="line")
        part = drill.minutes_of_line(connection, invoice, found, limit=limit + 1, after=after)
    shown = page(part.rows, limit, _minute, lambda each: each.id)
    return MinutesOut(
        data=shown.data,
        next=shown.next,
        line_quantity=part.quantity,
        line_amount_usd=format_pico(part.quantity * found.unit_price_pico),
    )


@router.get("/invoices/{invoice_id}/events", summary="The events behind a minute")
def events(
    invoice_id: str,
    minute: Annotated[str, Query(max_length=300, description="`id` of one of a line's minutes.")],
    sku: Annotated[str, Query(max_length=60, examples=["input"])],
    deps: Deps,
    limit: Limit = 50,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
) -> EventsOut:
    """In order of arrival. A call's receipt is at `/api/receipts/{request_id}`."""
    with deps.db.read() as connection:
        invoice = find_invoice(connection, invoice_id)
        part, following = drill.events_of_minute(
            connection, invoice.org_id, minute, sku, limit=limit, after=after
        )
    return EventsOut(
        data=[_event(each) for each in part.rows],
        next=str(following) if following else None,
        minute_quantity=part.quantity,
    )


@router.get("/invoices/{invoice_id}/verification", summary="Prove an invoice", response_model=VerificationOut)
async def verification(invoice_id: str, deps: Deps) -> StreamingResponse:
    """Adds up all raw events of the period again, which may take minutes for millions of them: blanks are sent
    meanwhile, so that nobody on the way gives up, and then the report."""
    invoice = await asyncio.to_thread(_final, deps, invoice_id)
    return StreamingResponse(_verify(deps, invoice.id), media_type="application/json")


def _final(deps: ConsoleDependencies, invoice_id: str) -> Invoice:
    with deps.db.read() as connection:
        invoice = find_invoice(connection, invoice_id)
    if invoice.number is None:
        raise Conflict(
            f"invoice {invoice.id} is a draft: only a final one can be verified", code="invoice_state"
        )
    return invoice


async def _verify(deps: ConsoleDependencies, invoice_id: str) -> AsyncIterator[bytes]:
    def check() -> CheckReport:
        with deps.db.read() as connection:
            return check_invoice(connection, invoice_id, price_book)

    work = asyncio.create_task(asyncio.to_thread(check))
    while not work.done():
        await asyncio.wait([work], timeout=_HEARTBEAT_S)
        yield b" "
    yield verification_out(work.result()).model_dump_json().encode()


def verification_out(report: CheckReport) -> VerificationOut:
    """The report for people and programs."""
    return VerificationOut(
        invoice_id=report.invoice.id,
        number=report.invoice.number,
        proved=not report.differences,
        events=report.events,
        endpoint_minutes=report.endpoint_minutes,
        corrections=report.corrections,
        ledger_transactions=report.ledger_transactions,
        lines=report.lines,
        differences=list(report.differences),
    )


def cents_of(text: str, param: str) -> int:
    """Whole cents of a decimal text; Invalid names the field."""
    try:
        return parse_usd(text, decimals=2)
    except ValueError as error:
        raise Invalid(f"{param}: {error}", param=param) from None


def _shown(connection: Connection, invoice: Invoice) -> InvoiceOut:
    return invoice_out(invoice, outstanding_cents(connection, invoice))


def _minute(part: drill.MinutePart) -> MinuteOut:
    return MinuteOut(
        id=part.id,
        kind=part.kind,
        minute=iso(part.minute_ms),
        service_minute=iso(part.service_minute_ms),
        project_id=part.project_id,
        key_id=part.key_id,
        endpoint_id=part.endpoint_id,
        quantity=part.quantity,
        amount_usd=format_pico(part.amount_pico),
    )


def _event(part: drill.EventPart) -> EventOut:
    return EventOut(
        id=part.id,
        request_id=part.request_id or None,
        status=part.status,
        time=iso(part.ended_ms),
        quantity=part.quantity,
    )
