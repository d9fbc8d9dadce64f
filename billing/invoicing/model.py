"""Invoices and what belongs to them, as values. Whole cents but where the name says pico-dollars."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import msgspec

from billing.model import Line, LineKind
from core.errors import Conflict
from core.money import round_to_cents

InvoiceState = Literal["draft", "finalized", "paid", "void"]
InvoiceKind = Literal["monthly", "threshold"]
GrantKind = Literal["prepaid", "promotional"]
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Party:
    """Who issues an invoice, or is billed, as it stands on the document: copied when it was finalized."""

    name: str = ""
    address: str = ""
    email: str = ""
    tax_id: str = ""


@dataclass(frozen=True, slots=True)
class Parties:
    """Both sides of an invoice."""

    issuer: Party = field(default_factory=Party)
    customer: Party = field(default_factory=Party)


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """A line of an invoice: exact, and rounded once. `kind` "credit" is what credit paid (negative)."""

    line: int  # 1, 2, 3, ...
    kind: LineKind
    sku: str
    model_id: str
    endpoint_id: str
    endpoint_name: str
    price_version: str
    quantity: int
    unit_price_pico: int
    amount_pico: int
    amount_cents: int
    text: str


@dataclass(frozen=True, slots=True)
class Invoice:
    """The head of an invoice. Immutable from `finalized` on, but for its state and what pays it."""

    id: str
    org_id: str
    number: str | None  # None until finalized
    kind: InvoiceKind
    state: InvoiceState
    start_ms: int
    end_ms: int
    currency: str
    charges_pico: int  # exact sum of the charges at list price: what left `receivable`
    total_cents: int  # the sum of the rounded lines before credit
    credit_cents: int  # paid with credit; negative: given as credit, for the total was negative
    due_cents: int  # total - credit
    lines_hash: str
    ledger_seq: int
    ledger_hash: str
    created_ms: int
    finalized_ms: int
    due_ms: int
    paid_ms: int
    voided_ms: int
    memo: str
    parties: Parties
    payment_reference: str
    provider_id: str  # the payment provider's name for it, "" when it was not handed over


@dataclass(frozen=True, slots=True)
class Profile:
    """How an organization is invoiced."""

    org_id: str
    threshold_pico: int = 0
    due_days: int = 30
    legal_name: str = ""
    email: str = ""
    address: str = ""
    tax_id: str = ""
    provider: str = ""
    updated_ms: int = 0


@dataclass(frozen=True, slots=True)
class CreditScope:
    """What a credit pays for; empty: everything."""

    models: tuple[str, ...] = ()
    skus: tuple[str, ...] = ()

    def covers(self, sku: str, model_id: str) -> bool:
        """Whether charges of this SKU and model are in it. A line without a SKU only belongs to everything."""
        if not sku:
            return not self.models and not self.skus
        return (not self.models or model_id in self.models) and (not self.skus or sku in self.skus)


@dataclass(frozen=True, slots=True)
class Grant:
    """Credit of an organization: whole cents, in pico-dollars."""

    id: str
    org_id: str
    kind: GrantKind
    amount_pico: int
    left_pico: int
    priority: int  # lower is spent first
    scope: CreditScope
    starts_ms: int  # pays for usage from here on; 0: for any that is not invoiced yet
    expires_ms: int  # pays for usage before; 0: no end
    expired_ms: int
    voided_ms: int
    note: str
    created_ms: int
    source: str = ""  # the invoice or credit note it came from


@dataclass(frozen=True, slots=True)
class CreditNote:
    """What is given back of a finalized invoice."""

    id: str
    org_id: str
    invoice_id: str
    number: str
    reason: str
    amount_cents: int
    as_credit: bool  # else off what is due, or paid back
    created_ms: int
    lines: tuple[tuple[int, int], ...] = ()  # (invoice line, cents); empty: of the invoice as a whole


def numbered(lines: Sequence[Line]) -> list[InvoiceLine]:
    """The lines as they stand on an invoice: each rounded here, once, half away from zero."""
    return [
        InvoiceLine(
            number,
            line.kind,
            line.sku,
            line.model_id,
            line.endpoint_id,
            line.endpoint_name,
            line.price_version,
            line.quantity,
            line.unit_price_pico,
            line.amount_pico,
            round_to_cents(line.amount_pico),
            line.text,
        )
        for number, line in enumerate(lines, 1)
    ]


def lines_hash(invoice: Invoice, lines: Sequence[InvoiceLine]) -> str:
    """SHA-256 (hexadecimal) of what an invoice says: its head, parties and every line, as one JSON array.

    Amounts in pico-dollars are texts: JSON numbers of readers end at 2^53.
    """
    head = [invoice.id, invoice.number, invoice.kind, invoice.org_id, invoice.start_ms, invoice.end_ms]
    sums = [invoice.currency, str(invoice.charges_pico)]
    sums += [str(cents) for cents in (invoice.total_cents, invoice.credit_cents, invoice.due_cents)]
    times = [invoice.finalized_ms, invoice.due_ms, invoice.memo, invoice.ledger_seq, invoice.ledger_hash]
    parties = list(asdict(invoice.parties).items())
    rows = [
        [
            line.line,
            line.kind,
            line.sku,
            line.model_id,
            line.endpoint_id,
            line.endpoint_name,
            line.price_version,
            line.quantity,
            str(line.unit_price_pico),
            str(line.amount_pico),
            line.amount_cents,
            line.text,
        ]
        for line in lines
    ]
    return hashlib.sha256(_encoder.encode([head, sums, times, parties, rows])).hexdigest()


def check_state(invoice: Invoice, allowed: Sequence[InvoiceState], what: str) -> None:
    """Conflict, telling people why, unless the invoice is in one of the states."""
    if invoice.state not in allowed:
        named = invoice.number or invoice.id
        reasons: Mapping[InvoiceState, str] = {
            "draft": "it is a draft: finalize it first",
            "finalized": "it is finalized, and a finalized invoice never changes: void it, or make a credit note",
            "paid": "it is paid: a credit note can give money back",
            "void": "it is void",
        }
        raise Conflict(f"invoice {named} cannot be {what}: {reasons[invoice.state]}", code="invoice_state")
