"""Making invoices: drafts of closed periods, and finalizing them. Each organization's in a transaction of its own.

All changes to an organization's invoices and credit happen under the lock of its ledger's chain, so that any number of
processes, any number of times, make one invoice of a period.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from access.store import find_organization
from billing import store
from billing.entries import transfer
from billing.invoicing import credit
from billing.invoicing.model import (
    Invoice,
    InvoiceKind,
    InvoiceLine,
    Parties,
    Party,
    check_state,
    lines_hash,
    numbered,
)
from billing.invoicing.periods import Span, overlaps, uncovered
from billing.invoicing.spend import Use, spend
from billing.invoicing.store import (
    find_invoice,
    insert_invoice,
    next_number,
    period_invoices,
    profile_of,
    replace_draft,
)
from billing.model import Line, PriceBook
from billing.payments import outbox
from billing.preview import closed_lines
from billing.tables import invoice_numbers
from core.clock import iso, minute_floor, month_bounds
from core.errors import Conflict, Invalid
from core.ids import new_id
from core.money import PICO_PER_CENT, format_cents
from metering.store import first_open_minute
from webhooks.model import INVOICE_FINALIZED
from webhooks.outbox import enqueue_event

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who makes the invoices: prices, our name on them, the prefix of their numbers."""

    book: PriceBook
    party: Party = field(default_factory=lambda: Party("Farebox"))
    prefix: str = "FB"


def invoice_period(
    conn: Connection,
    issuer: Issuer,
    org_id: str,
    span: Span,
    now_ms: int,
    *,
    kind: InvoiceKind = "monthly",
    finalized: bool = True,
    again: bool = True,
) -> list[Invoice]:
    """Invoices of what of a period within one month is charged and not invoiced: usually one, or none.

    `again`: also of what a void invoice covered. Conflict when some of the period is still open, Invalid when it is
    no period within a month.
    """
    start_ms, end_ms = check_period(conn, span)
    store.lock_heads(conn, [org_id])
    existing = period_invoices(conn, org_id, start_ms, end_ms)
    living = [(each.start_ms, each.end_ms) for each in existing if each.state != "void"]
    void = [(each.start_ms, each.end_ms) for each in existing if each.state == "void"]
    made = []
    for part in uncovered(start_ms, end_ms, living):
        if again or not overlaps(part, void):
            draft = _draft(conn, issuer, org_id, part, kind, now_ms)
            if draft is not None:
                made.append(finalize(conn, issuer, draft.id, now_ms) if finalized else draft)
    return made


def check_period(conn: Connection, span: Span) -> Span:
    """The span, when it lies within one UTC month of which all its minutes are closed."""
    start_ms, end_ms = span
    if not start_ms < end_ms <= month_bounds(start_ms)[1] or start_ms % 60_000 or end_ms % 60_000:
        raise Invalid("period: expected full minutes within one UTC month", param="period")
    open_ms = first_open_minute(conn)
    if end_ms > open_ms:
        closed = f"it is closed up to {iso(open_ms)}" if open_ms > start_ms else "none of it is closed"
        raise Conflict(
            f"period: {iso(start_ms)} to {iso(end_ms)} is not over yet, {closed}; usage may still come in",
            code="period_open",
            param="period",
        )
    return span


def _draft(
    conn: Connection, issuer: Issuer, org_id: str, span: Span, kind: InvoiceKind, now_ms: int
) -> Invoice | None:
    lines = closed_lines(conn, org_id, *span, issuer.book)
    if not lines:
        return None
    made = _summed(
        Invoice(
            id=new_id("inv", now_ms),
            org_id=org_id,
            number=None,
            kind=kind,
            state="draft",
            start_ms=span[0],
            end_ms=span[1],
            currency="usd",
            charges_pico=0,
            total_cents=0,
            credit_cents=0,
            due_cents=0,
            lines_hash="",
            ledger_seq=0,
            ledger_hash="",
            created_ms=now_ms,
            finalized_ms=0,
            due_ms=0,
            paid_ms=0,
            voided_ms=0,
            memo="",
            parties=Parties(),
            payment_reference="",
            provider_id="",
        ),
        numbered(lines),
        0,
    )
    insert_invoice(conn, made, numbered(lines))
    return made


def _summed(invoice: Invoice, lines: Sequence[InvoiceLine], credit_cents: int) -> Invoice:
    total = sum(line.amount_cents for line in lines)
    return replace(
        invoice,
        charges_pico=sum(line.amount_pico for line in lines if line.kind == "charge"),
        total_cents=total,
        credit_cents=credit_cents,
        due_cents=total - credit_cents,
    )


def finalize(conn: Connection, issuer: Issuer, invoice_id: str, now_ms: int) -> Invoice:
    """Number, lines, credit, ledger and hashes of a draft, which is immutable from then on."""
    draft = lock_invoice(conn, invoice_id)
    check_state(draft, ["draft"], "finalized")
    span = (draft.start_ms, draft.end_ms)
    lines = closed_lines(conn, draft.org_id, *span, issuer.book)
    grants = credit.usable_grants(conn, draft.org_id, *span)
    segments = credit.segments_of(conn, draft.org_id, span, grants)
    uses = spend(lines, grants, segments)
    rows = numbered(lines)
    total = sum(line.amount_cents for line in rows)
    # We owe a negative total: it becomes credit, and nothing is due.
    credit_cents = sum(use.cents for use in uses) if total >= 0 else total
    profile = profile_of(conn, draft.org_id)
    year, number = next_number(conn, invoice_numbers, now_ms)
    made = replace(
        _summed(draft, rows, credit_cents),
        number=f"{issuer.prefix}-{year}-{number:06d}",
        state="finalized",
        finalized_ms=now_ms,
        due_ms=now_ms + profile.due_days * _DAY_MS,
        parties=Parties(issuer.party, customer_of(conn, draft.org_id)),
    )
    rows += _credit_lines(uses, len(rows))
    _post(conn, made, lines, rows, now_ms)
    credit.take(conn, made.id, uses, now_ms)
    if credit_cents < 0:
        note = f"negative total of invoice {made.number}"
        wanted = credit.NewGrant(made.org_id, "prepaid", -credit_cents, note=note)
        credit.add_grant(conn, wanted, now_ms, funded_by=f"billed:{made.org_id}", source=made.id)
    seq, hash_ = store.chain_head(conn, made.org_id)
    made = replace(made, ledger_seq=seq, ledger_hash=hash_)
    made = replace(made, lines_hash=lines_hash(made, rows))
    if made.due_cents == 0:
        made = replace(made, state="paid", paid_ms=now_ms)
    replace_draft(conn, made, rows)
    _announce(conn, made, now_ms)
    outbox.invoice_finalized(conn, made, profile.provider, now_ms)
    return made


def _announce(conn: Connection, made: Invoice, now_ms: int) -> None:
    """Tell the organization's webhooks, in the transaction that makes the invoice final."""
    data = {
        "invoice_id": made.id,
        "number": made.number,
        "period_start": iso(made.start_ms),
        "period_end": iso(made.end_ms),
        "currency": made.currency,
        "total_usd": format_cents(made.total_cents),
        "due_usd": format_cents(made.due_cents),
    }
    enqueue_event(conn, made.org_id, INVOICE_FINALIZED, made.id, data, now_ms)


def lock_invoice(conn: Connection, name: str) -> Invoice:
    """The invoice as it is now; nobody else changes its organization's invoices until the transaction ends."""
    found = find_invoice(conn, name)
    store.lock_heads(conn, [found.org_id])
    return find_invoice(conn, found.id)


def customer_of(conn: Connection, org_id: str) -> Party:
    """Who is billed, as it would stand on an invoice now."""
    profile = profile_of(conn, org_id)
    name = profile.legal_name or find_organization(conn, org_id).name
    return Party(name, profile.address, profile.email, profile.tax_id)


def _credit_lines(uses: Sequence[Use], after: int) -> list[InvoiceLine]:
    return [
        InvoiceLine(
            after + number,
            "credit",
            "",
            "",
            "",
            "",
            "",
            0,
            0,
            -use.cents * PICO_PER_CENT,
            -use.cents,
            f"{use.grant.kind} credit {use.grant.id}",
        )
        for number, use in enumerate(uses, 1)
    ]


def _post(
    conn: Connection, invoice: Invoice, lines: Sequence[Line], rows: Sequence[InvoiceLine], now_ms: int
) -> None:
    """One entry: the charges leave `receivable`, what is due goes to `billed`, credit that was used is owed no more."""
    org = invoice.org_id
    exact = sum(line.amount_pico for line in lines)
    total = invoice.total_cents * PICO_PER_CENT
    used = -sum(row.amount_pico for row in rows if row.kind == "credit")
    amounts = {
        f"receivable:{org}": -invoice.charges_pico,
        "revenue:terms": -_sum(lines, "terms"),
        "revenue:discount": -_sum(lines, "discount"),
        "revenue:minimum": -_sum(lines, "minimum"),
        "rounding": exact - total,
        f"billed:{org}": total - used,
        f"credit:{org}": used,
    }
    entry = transfer(f"invoice/{invoice.id}", "invoice", org, minute_floor(now_ms), amounts)
    if entry.postings:
        store.insert_transactions(conn, [entry], now_ms)


def _sum(lines: Sequence[Line], kind: str) -> int:
    return sum(line.amount_pico for line in lines if line.kind == kind)
