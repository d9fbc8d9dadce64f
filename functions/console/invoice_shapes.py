"""Invoices, credit and contracts as the management API shows them."""

from typing import Literal

from pydantic import BaseModel, Field

from billing.invoicing.model import CreditNote, Invoice, InvoiceKind, InvoiceLine, InvoiceState, Party
from billing.model import TOKEN_SKUS, LineKind
from core.clock import iso
from core.money import format_cents, format_per_million, format_pico
from functions.console.shapes import iso_or_none


class PartyOut(BaseModel):
    """Who issues an invoice, or is billed, as it stood when the invoice was finalized."""

    name: str
    address: str
    email: str
    tax_id: str


class InvoiceOut(BaseModel):
    """The head of an invoice. Amounts are whole cents; the exact sum of the charges stands beside them."""

    id: str = Field(examples=["inv_01kafn3m8hzq4v6p9x2c7d5b1w"])
    number: str | None = Field(description="null until finalized.", examples=["FB-2026-000001"])
    organization_id: str
    kind: InvoiceKind = Field(description="monthly, or threshold: within the month.")
    state: InvoiceState
    period_start: str
    period_end: str
    currency: Literal["usd"] = "usd"
    charges_exact_usd: str
    total_usd: str = Field(description="The sum of the rounded lines, before credit.")
    credit_usd: str = Field(description="Paid with credit; below zero: given as credit.")
    due_usd: str = Field(description="Total less credit, as it was when the invoice was finalized.")
    open_usd: str = Field(description="What is still to be paid: due, less credit notes taken off it.")
    issuer: PartyOut | None = None
    customer: PartyOut | None = None
    digest: str | None = Field(description="SHA-256 over head and lines.")
    ledger_seq: int | None = Field(description="The organization's chain when it was finalized: how long,")
    ledger_hash: str | None = Field(description="and the hash of its last transaction.")
    created_at: str
    finalized_at: str | None
    due_at: str | None
    paid_at: str | None
    voided_at: str | None
    payment_reference: str | None
    provider_id: str | None = Field(description="The payment provider's name for it.")


class InvoiceLineOut(BaseModel):
    """A line as it is on the invoice; a credit is negative."""

    line: int
    kind: LineKind
    sku: str | None
    model: str | None
    endpoint_id: str | None
    endpoint: str | None
    quantity: int | None
    unit_price_usd: str | None
    price_per_million_usd: str | None
    price_version: str | None
    amount_usd: str = Field(description="Exact.")
    rounded_usd: str = Field(description="What is charged: rounded once, half away from zero.")
    text: str | None


class CreditNoteOut(BaseModel):
    """What was given back of an invoice."""

    id: str
    number: str = Field(examples=["FB-CN-2026-000001"])
    organization_id: str
    invoice_id: str
    reason: str
    amount_usd: str
    as_credit: bool = Field(description="As credit for later invoices; else off what was due, or paid back.")
    lines: list[dict[str, int | str]] = Field(description="Of which lines; empty: of the invoice as a whole.")
    created_at: str


def invoice_out(invoice: Invoice, open_cents: int) -> InvoiceOut:
    """The head for people and programs."""
    final = invoice.number is not None
    return InvoiceOut(
        id=invoice.id,
        number=invoice.number,
        organization_id=invoice.org_id,
        kind=invoice.kind,
        state=invoice.state,
        period_start=iso(invoice.start_ms),
        period_end=iso(invoice.end_ms),
        charges_exact_usd=format_pico(invoice.charges_pico),
        total_usd=format_cents(invoice.total_cents),
        credit_usd=format_cents(invoice.credit_cents),
        due_usd=format_cents(invoice.due_cents),
        open_usd=format_cents(open_cents),
        issuer=_party(invoice.parties.issuer) if final else None,
        customer=_party(invoice.parties.customer) if final else None,
        digest=invoice.lines_hash or None,
        ledger_seq=invoice.ledger_seq if final else None,
        ledger_hash=invoice.ledger_hash if final else None,
        created_at=iso(invoice.created_ms),
        finalized_at=iso_or_none(invoice.finalized_ms),
        due_at=iso_or_none(invoice.due_ms),
        paid_at=iso_or_none(invoice.paid_ms),
        voided_at=iso_or_none(invoice.voided_ms),
        payment_reference=invoice.payment_reference or None,
        provider_id=invoice.provider_id or None,
    )


def _party(party: Party) -> PartyOut:
    return PartyOut(name=party.name, address=party.address, email=party.email, tax_id=party.tax_id)


def invoice_line_out(line: InvoiceLine) -> InvoiceLineOut:
    """A line for people and programs."""
    is_charge = line.kind == "charge"
    return InvoiceLineOut(
        line=line.line,
        kind=line.kind,
        sku=line.sku or None,
        model=line.model_id or None,
        endpoint_id=line.endpoint_id or None,
        endpoint=line.endpoint_name or None,
        quantity=line.quantity if is_charge else None,
        unit_price_usd=format_pico(line.unit_price_pico) if is_charge else None,
        price_per_million_usd=format_per_million(line.unit_price_pico)
        if is_charge and line.sku in TOKEN_SKUS
        else None,
        price_version=line.price_version or None,
        amount_usd=format_pico(line.amount_pico),
        rounded_usd=format_cents(line.amount_cents),
        text=line.text or None,
    )


def note_out(note: CreditNote) -> CreditNoteOut:
    """A credit note for people and programs."""
    return CreditNoteOut(
        id=note.id,
        number=note.number,
        organization_id=note.org_id,
        invoice_id=note.invoice_id,
        reason=note.reason,
        amount_usd=format_cents(note.amount_cents),
        as_credit=note.as_credit,
        lines=[{"line": line, "amount_usd": format_cents(cents)} for line, cents in note.lines],
        created_at=iso(note.created_ms),
    )
