"""What stands on an invoice document, as texts, whatever it is made of. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from billing.invoicing.model import CreditNote, Invoice, InvoiceLine, InvoiceState, Party, numbered
from billing.model import ENDPOINT_MINUTE_SKU, TOKEN_SKUS, Preview
from catalog.model import INSTANCE_MODEL
from core.clock import iso
from core.money import format_cents, format_per_million, format_pico

_WATERMARKS: Final[Mapping[InvoiceState, str]] = {"draft": "DRAFT", "void": "VOID"}
_NAMES: Final[Mapping[str, str]] = {
    "input": "input tokens",
    "cached_input": "cached input tokens",
    "output": "output tokens",
    "batch_input": "input tokens (batch)",
    "batch_cached_input": "cached input tokens (batch)",
    "batch_output": "output tokens (batch)",
    "audio_second": "seconds of audio",
    ENDPOINT_MINUTE_SKU: "endpoint minutes",
}
TAX_NOTE = (
    "Tax is not included: it is left to the payment provider where one is used, and is not calculated here."
)
LINE_HEADINGS = ("", "Description", "Quantity", "Unit price", "Exact amount", "Amount")


@dataclass(frozen=True, slots=True)
class DocumentLine:
    """A line as it is printed."""

    number: str
    description: str
    quantity: str
    unit_price: str
    exact: str
    amount: str

    def cells(self) -> tuple[str, ...]:
        return (self.number, self.description, self.quantity, self.unit_price, self.exact, self.amount)


@dataclass(frozen=True, slots=True)
class Document:
    """An invoice for people. Amounts are in US dollars."""

    title: str
    number: str
    watermark: str  # "": it is final and holds
    issuer: Party
    customer: Party
    facts: Sequence[tuple[str, str]]  # number, dates, state
    lines: Sequence[DocumentLine]
    sums: Sequence[tuple[str, str]]  # the last one is what is to be paid
    notes: Sequence[str]
    proof: Sequence[tuple[str, str]]  # digest, chain
    made_ms: int  # for the file's own date: the same invoice, the same bytes


def document_of(
    invoice: Invoice,
    lines: Sequence[InvoiceLine],
    notes: Sequence[CreditNote],
    customer: Party,
    issuer: Party,
) -> Document:
    """The document of an invoice. `customer` and `issuer` are for a draft, which has none of its own yet."""
    final = invoice.number is not None
    return Document(
        title="Invoice" if final else "Draft invoice",
        number=invoice.number or invoice.id,
        watermark=_WATERMARKS.get(invoice.state, ""),
        issuer=invoice.parties.issuer if final else issuer,
        customer=invoice.parties.customer if final else customer,
        facts=_facts(invoice),
        lines=[_line(line) for line in lines],
        sums=_sums(invoice, notes),
        notes=_notes(invoice, notes),
        proof=_proof(invoice),
        made_ms=invoice.finalized_ms or invoice.created_ms,
    )


def preview_document(preview: Preview, customer: Party, issuer: Party) -> Document:
    """What an invoice would look like if it were made now."""
    lines = numbered(preview.lines)
    return Document(
        title="Invoice preview",
        number=f"as of {iso(preview.as_of_ms)[:16].replace('T', ' ')} UTC",
        watermark="PREVIEW",
        issuer=issuer,
        customer=customer,
        facts=[("Period", f"{_day(preview.start_ms)} to {_day(preview.end_ms, before=True)} (UTC)")],
        lines=[_line(line) for line in lines],
        sums=[("Total so far (USD)", _cents(preview.total_cents))],
        notes=[
            TAX_NOTE,
            "Not an invoice: usage may still come in, and credit is taken when the invoice is made.",
            *(f"Not in the total: {h.quantity} {h.sku} of {h.model_id}: {h.reason}" for h in preview.held),
        ],
        proof=[],
        made_ms=preview.as_of_ms,
    )


def _facts(invoice: Invoice) -> list[tuple[str, str]]:
    facts = [
        ("Invoice number", invoice.number or "none yet"),
        ("Period", f"{_day(invoice.start_ms)} to {_day(invoice.end_ms, before=True)} (UTC)"),
    ]
    if invoice.finalized_ms:
        facts += [("Issued", iso(invoice.finalized_ms)[:10]), ("Due", iso(invoice.due_ms)[:10])]
    if invoice.state == "paid":
        facts.append(("Paid", iso(invoice.paid_ms)[:10]))
    if invoice.state == "void":
        facts.append(("Void since", iso(invoice.voided_ms)[:10]))
    return facts


def _day(at_ms: int, *, before: bool = False) -> str:
    """A day; the time too where the period begins or ends within one."""
    if at_ms % 86_400_000:
        return iso(at_ms)[:16].replace("T", " ")
    return iso(at_ms - before)[:10]


def _line(line: InvoiceLine) -> DocumentLine:
    if line.kind == "charge":
        of = line.endpoint_name or line.model_id
        name = _NAMES.get(line.sku, line.sku.replace("_", " "))
        if line.model_id.startswith(INSTANCE_MODEL):
            name = f"instance minutes ({line.model_id.removeprefix(INSTANCE_MODEL)})"
        quantity = f"{line.quantity:,}"
        unit = _unit_price(line)
        return DocumentLine(
            str(line.line),
            f"{of}: {name}",
            quantity,
            unit,
            _exact(line.amount_pico),
            _cents(line.amount_cents),
        )
    of = ": ".join(
        part for part in (line.endpoint_name or line.model_id, _NAMES.get(line.sku, line.sku)) if part
    )
    text = ", ".join(part for part in (of, line.text or line.kind) if part)
    return DocumentLine(str(line.line), text, "", "", _exact(line.amount_pico), _cents(line.amount_cents))


def _cents(cents: int) -> str:
    """With commas between thousands."""
    return _grouped(format_cents(cents))


def _exact(amount_pico: int) -> str:
    return _grouped(format_pico(amount_pico))


def _grouped(decimal: str) -> str:
    whole, point, fraction = decimal.partition(".")
    sign, digits = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    return f"{sign}{int(digits):,}{point}{fraction}"


def _unit_price(line: InvoiceLine) -> str:
    if line.sku in TOKEN_SKUS:
        return f"{format_per_million(line.unit_price_pico)} / M"
    unit = "min" if line.sku == ENDPOINT_MINUTE_SKU else "s"
    return f"{format_pico(line.unit_price_pico)} / {unit}"


def _sums(invoice: Invoice, notes: Sequence[CreditNote]) -> list[tuple[str, str]]:
    off = sum(note.amount_cents for note in notes if not note.as_credit)
    sums = [("Total", _cents(invoice.total_cents))]
    if invoice.credit_cents:
        said = "Paid with credit" if invoice.credit_cents > 0 else "Given as credit"
        sums.append((said, _cents(-invoice.credit_cents)))
    for note in notes:
        if not note.as_credit:
            sums.append((f"Credit note {note.number}", _cents(-note.amount_cents)))
    paid = invoice.state == "paid"
    sums.append(("Paid (USD)" if paid else "Amount due (USD)", _cents(invoice.due_cents - off)))
    return sums


def _notes(invoice: Invoice, notes: Sequence[CreditNote]) -> list[str]:
    said = [
        TAX_NOTE,
        "Each line is rounded once, half away from zero; the total is the sum of the rounded lines.",
    ]
    said += [
        f"Credit note {note.number}: {_cents(note.amount_cents)} USD were given as credit. {note.reason}"
        for note in notes
        if note.as_credit
    ]
    return ([invoice.memo] if invoice.memo else []) + said


def _proof(invoice: Invoice) -> list[tuple[str, str]]:
    if not invoice.lines_hash:
        return []
    return [
        ("Digest of this invoice (SHA-256)", invoice.lines_hash),
        (f"Ledger at transaction {invoice.ledger_seq} (SHA-256 chain)", invoice.ledger_hash),
    ]
