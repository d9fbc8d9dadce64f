"""An invoice's lines as CSV, for spreadsheets."""

import csv
import io
from collections.abc import Sequence

from billing.invoicing.model import Invoice, InvoiceLine
from core.clock import iso
from core.money import format_cents, format_pico

_COLUMNS = (
    "invoice",
    "period_start",
    "period_end",
    "currency",
    "line",
    "kind",
    "sku",
    "model",
    "endpoint",
    "quantity",
    "unit_price_usd",
    "amount_exact_usd",
    "amount_usd",
    "text",
)


def render_csv(invoice: Invoice, lines: Sequence[InvoiceLine]) -> bytes:
    """UTF-8 with a heading. Texts that a spreadsheet would take for a formula begin with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(_COLUMNS)
    for line in lines:
        charge = line.kind == "charge"
        writer.writerow(
            [
                invoice.number or invoice.id,
                iso(invoice.start_ms),
                iso(invoice.end_ms),
                invoice.currency,
                line.line,
                line.kind,
                _plain(line.sku),
                _plain(line.model_id),
                _plain(line.endpoint_name),
                line.quantity if charge else "",
                format_pico(line.unit_price_pico) if charge else "",
                format_pico(line.amount_pico),
                format_cents(line.amount_cents),
                _plain(line.text),
            ]
        )
    return text.getvalue().encode()


def _plain(text: str) -> str:
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
