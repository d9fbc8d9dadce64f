"""Our invoices, credit notes and meters as the provider's parameters. Pure."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from billing.invoicing.model import CreditNote, Invoice, InvoiceLine, Party
from core.clock import iso
from core.money import format_cents, format_pico

MAX_ITEMS = 200  # of one invoice at the provider; the lines behind are one item together
MAX_TEXT = 500
MAX_IDENTIFIER = 100
MAX_VALUE = 10**15 - 1  # 15 digits
OURS_INVOICE, OURS_LINE, OURS_ORG, OURS_NOTE = (
    "farebox_invoice_id",
    "farebox_line",
    "farebox_org_id",
    "farebox_credit_note_id",
)
_PICO_PER_CENT_DIGITS = 10


@dataclass(frozen=True, slots=True)
class MeteredLine:
    """What a meter counts: one SKU of a model (or of an endpoint, its minutes) at one price, as an invoice's line."""

    sku: str
    of: str
    unit_price_pico: int

    @property
    def name(self) -> str:
        """The meter's event name: readable, and cut with a digest where it is too long."""
        return _short(f"farebox.{self.sku}.{self.of}.{self.unit_price_pico}")

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.sku} of {self.of} at {format_pico(self.unit_price_pico)} USD"


def customer_params(org_id: str, party: Party) -> dict[str, Any]:
    """An organization."""
    wanted: dict[str, Any] = {"name": party.name or org_id, "metadata": {OURS_ORG: org_id}}
    if party.email:
        wanted["email"] = party.email
    if party.address:
        wanted["description"] = party.address[:MAX_TEXT]
    return wanted


def invoice_params(invoice: Invoice, customer_id: str, *, charges: bool) -> dict[str, Any]:
    """The head: it waits for its lines, and takes no others that lie about."""
    number, proof = invoice.number or "", invoice.lines_hash
    wanted: dict[str, Any] = {
        "customer": customer_id,
        "currency": invoice.currency,
        "auto_advance": False,
        "pending_invoice_items_behavior": "exclude",
        "description": f"Invoice {number}, {iso(invoice.start_ms)[:10]} to {iso(invoice.end_ms)[:16]}Z (UTC)",
        "footer": f"Farebox invoice {number}. SHA-256 of its lines: {proof}. "
        f"Ledger: {invoice.ledger_seq} {invoice.ledger_hash}",
        "metadata": {
            OURS_INVOICE: invoice.id,
            OURS_ORG: invoice.org_id,
            "farebox_number": number,
            "farebox_lines_hash": proof,
            "farebox_ledger_hash": invoice.ledger_hash,
            "farebox_due_cents": str(invoice.due_cents),
        },
    }
    if charges:
        return wanted | {"collection_method": "charge_automatically"}
    days = max(0, -(-(invoice.due_ms - invoice.finalized_ms) // 86_400_000))
    return wanted | {"collection_method": "send_invoice", "days_until_due": days}


def items(invoice: Invoice, lines: Sequence[InvoiceLine]) -> list[tuple[str, int, str]]:
    """(our name, cents, text) of each line, credit negative: their sum is what is due."""
    shown, rest = list(lines), []
    if len(lines) > MAX_ITEMS:
        shown, rest = list(lines[: MAX_ITEMS - 1]), list(lines[MAX_ITEMS - 1 :])
    found = [(str(line.line), line.amount_cents, line_text(line)) for line in shown]
    if rest:
        text = f"{len(rest)} further lines of invoice {invoice.number}"
        found.append((f"{rest[0].line}-{rest[-1].line}", sum(line.amount_cents for line in rest), text))
    return found


def line_text(line: InvoiceLine) -> str:
    """A line for people, with how it comes about."""
    if line.kind != "charge":
        return (line.text or line.kind)[:MAX_TEXT]
    of = line.endpoint_name or line.endpoint_id if line.sku == "endpoint_minute" else line.model_id
    return f"{line.sku} of {of}: {line.quantity} x {format_pico(line.unit_price_pico)} USD"[:MAX_TEXT]


def item_params(customer_id: str, provider_id: str, name: str, cents: int, text: str) -> dict[str, Any]:
    """One line on an invoice ("": on the customer's next one)."""
    wanted = {
        "customer": customer_id,
        "amount": cents,
        "currency": "usd",
        "description": text,
        "metadata": {OURS_LINE: name},
    }
    return wanted | ({"invoice": provider_id} if provider_id else {})


def note_params(note: CreditNote, provider_id: str, *, paid: bool) -> dict[str, Any]:
    """A credit note; of a paid invoice the money is paid back outside, as a person decided."""
    wanted: dict[str, Any] = {
        "invoice": provider_id,
        "amount": note.amount_cents,
        "memo": f"Credit note {note.number} ({format_cents(note.amount_cents)} USD): {note.reason}"[
            :MAX_TEXT
        ],
        "metadata": {OURS_NOTE: note.id, "farebox_number": note.number},
    }
    return wanted | ({"out_of_band_amount": note.amount_cents} if paid else {})


def meter_params(line: MeteredLine) -> dict[str, Any]:
    """A meter, which adds up."""
    return {
        "display_name": line.title[:250],
        "event_name": line.name,
        "default_aggregation": {"formula": "sum"},
        "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
        "value_settings": {"event_payload_key": "value"},
    }


def price_params(line: MeteredLine, meter_id: str) -> dict[str, Any]:
    """The price of a meter's unit: pico-dollars are 10^-10 cents, well within the provider's twelve decimals."""
    return {
        "currency": "usd",
        "unit_amount_decimal": Decimal(line.unit_price_pico).scaleb(-_PICO_PER_CENT_DIGITS),
        "recurring": {"interval": "month", "usage_type": "metered", "meter": meter_id},
        "product_data": {"name": line.title[:250]},
        "lookup_key": line.name,
        "metadata": {"farebox_meter": line.name},
    }


def subscription_params(
    org_id: str, customer_id: str, price_id: str, due_days: int, start_ms: int
) -> dict[str, Any]:
    """A subscription by the calendar month, of metered items only, from the start of this one."""
    return {
        "customer": customer_id,
        "items": [{"price": price_id}],
        "collection_method": "send_invoice",
        "days_until_due": due_days,
        "billing_cycle_anchor_config": {"day_of_month": 1, "hour": 0, "minute": 0, "second": 0},
        "backdate_start_date": start_ms // 1000,
        "proration_behavior": "none",
        "metadata": {OURS_ORG: org_id},
    }


def event_params(line_name: str, customer_id: str, subject: str, quantity: int, at_ms: int) -> dict[str, Any]:
    """An event of a meter: whole numbers of at most 15 digits."""
    return {
        "event_name": line_name,
        "identifier": identifier(subject),
        "timestamp": at_ms // 1000,
        "payload": {"stripe_customer_id": customer_id, "value": str(quantity)},
    }


def identifier(subject: str) -> str:
    """At most 100 characters, and the same for the same subject."""
    return _short(subject)


def _short(text: str) -> str:
    if len(text) <= MAX_IDENTIFIER:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:40]
    return f"{text[: MAX_IDENTIFIER - 41]}.{digest}"
