"""A month of finalized invoices as FOCUS 1.4 (FinOps Open Cost and Usage Specification), dataset Cost and Usage, CSV.

The sum of BilledCost by InvoiceId is the amount payable on that document; that is checked before anything is returned.
Charges of months that were billed before (late events, corrections) are rows of ChargeClass `Correction`. The
contract's discount is in the rows that it lowers. A credit note that lowers what is due is a document of its own.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, func, select

from access.store import find_organization
from billing import store
from billing.invoicing.credit import find_grant
from billing.invoicing.model import CreditNote, Invoice, InvoiceLine
from billing.invoicing.notes_store import notes_between
from billing.invoicing.periods import Span
from billing.invoicing.run import unfinished
from billing.invoicing.store import find_invoice, lines_of, period_invoices
from billing.model import ENDPOINT_MINUTE_SKU, TOKEN_SKUS
from billing.tables import credit_uses, ledger_postings, ledger_transactions
from core.clock import iso, month_bounds
from core.errors import Conflict
from core.money import format_cents, format_pico, round_to_cents, split_largest_remainder
from metering.store import first_open_minute

VERSION = "1.4"
COLUMNS: Final = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "HostProviderName",
    "InvoiceDetailId",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingCurrency",
    "PricingQuantity",
    "PricingUnit",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceProviderName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "x_Model",
    "x_PriceVersion",
)
Row = dict[str, str]
_FULL_BP = 10_000
_LateKey = tuple[str, str, str, str, int]  # SKU, model, endpoint, price version, unit price


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a line: what was used in one month, and how many cents of the line it is."""

    span: Span
    quantity: int
    cents: int
    correction: bool


def focus_csv(conn: Connection, org_id: str, month: Span) -> str:
    """The rows of an organization's month. Conflict while some of it is open or not invoiced."""
    _check_final(conn, org_id, month)
    name = find_organization(conn, org_id).name
    rows: list[Row] = []
    for invoice in period_invoices(conn, org_id, *month):
        if invoice.state in ("finalized", "paid"):
            made = list(_invoice_rows(conn, invoice, name, month))
            _check_sum(made, invoice.number or "", invoice.due_cents)
            rows += made
    for note in notes_between(conn, org_id, *month):
        if not note.as_credit:
            made = [_note_row(note, find_invoice(conn, note.invoice_id), name, month)]
            _check_sum(made, note.number, -note.amount_cents)
            rows += made
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _check_final(conn: Connection, org_id: str, month: Span) -> None:
    open_ms = first_open_minute(conn)
    if month[1] > open_ms:
        raise Conflict(
            f"period: {iso(month[0])[:7]} is not over yet: it is closed up to {iso(max(open_ms, 0))}; export it when it "
            "is invoiced",
            code="period_open",
            param="period",
        )
    missing = unfinished(conn, org_id, [month])
    if missing:
        spans = ", ".join(f"{iso(start)} to {iso(end)}" for start, end in missing)
        raise Conflict(
            f"period: {spans} has charges and no final invoice; finalize its draft or make it: farebox invoice create",
            code="period_open",
            param="period",
        )


def _check_sum(rows: Sequence[Row], document: str, payable_cents: int) -> None:
    billed = sum(_cents(row["BilledCost"]) for row in rows)
    if billed != payable_cents or any(row["InvoiceId"] != document for row in rows):
        raise Conflict(
            f"the rows of {document} come to {format_cents(billed)}, but {format_cents(payable_cents)} is payable on it; "
            f"nothing was exported. See what changed: farebox invoice verify {document}",
            code="export_mismatch",
        )


def _cents(text: str) -> int:
    return int(text.replace(".", ""))


def _invoice_rows(conn: Connection, invoice: Invoice, name: str, month: Span) -> Iterator[Row]:
    lines = lines_of(conn, invoice.id)
    common = _common(invoice, name, month)
    discounted = _discounted(lines)
    contract = store.contract_at(conn, invoice.org_id, invoice.start_ms)
    kept_bp = _FULL_BP - (contract.discount_bp if contract is not None and any(discounted.values()) else 0)
    late = _late(conn, invoice, month)
    kinds = _credit_kinds(conn, invoice.id)
    for line in lines:
        detail = common | {"InvoiceDetailId": str(line.line)}
        if line.kind == "charge":
            for piece in _pieces(
                line, discounted.get(line.line, 0), late, (invoice.start_ms, invoice.end_ms)
            ):
                yield detail | _usage(line, piece, kept_bp)
        elif line.kind == "credit":
            prepaid = kinds.get(line.text.rpartition(" ")[2]) == "prepaid"
            # Prepaid credit was bought: the usage that it covers keeps its effective cost.
            yield detail | _fixed(
                line.amount_cents, "Credit", line.text, effective=0 if prepaid else line.amount_cents
            )
        elif line.kind != "discount" or not discounted:
            of = " ".join(part for part in (line.kind, line.sku, line.model_id, line.text) if part)
            yield detail | _fixed(line.amount_cents, "Adjustment", of)
    if invoice.credit_cents < 0:
        given = "negative total, given as credit for later invoices"
        yield common | {"InvoiceDetailId": "credit"} | _fixed(-invoice.credit_cents, "Adjustment", given)


def _common(invoice: Invoice, name: str, month: Span) -> Row:
    issuer = invoice.parties.issuer.name
    return {
        "BillingAccountId": invoice.org_id,
        "BillingAccountName": name,
        "BillingAccountType": "Organization",
        "BillingCurrency": invoice.currency.upper(),
        "BillingPeriodStart": _time(month[0]),
        "BillingPeriodEnd": _time(month[1]),
        "ChargePeriodStart": _time(invoice.start_ms),
        "ChargePeriodEnd": _time(invoice.end_ms),
        "ChargeFrequency": "Usage-Based",
        "HostProviderName": issuer,
        "InvoiceId": invoice.number or "",
        "InvoiceIssuerName": issuer,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Model API",
        "ServiceProviderName": issuer,
        "ServiceSubcategory": "Generative AI",
    }


def _discounted(lines: Sequence[InvoiceLine]) -> dict[int, int]:
    """By line: the cents of the discount that it bears; empty when there is none, or nothing to bear it."""
    discount = -sum(line.amount_cents for line in lines if line.kind == "discount")
    charges = [line for line in lines if line.kind == "charge" and line.amount_cents > 0]
    if discount <= 0 or discount > sum(line.amount_cents for line in charges):
        return {}
    parts = split_largest_remainder(discount, [line.amount_cents for line in charges])
    return {line.line: part for line, part in zip(charges, parts, strict=True)}


def _late(conn: Connection, invoice: Invoice, month: Span) -> Mapping[_LateKey, Mapping[int, int]]:
    """Quantities of months before this one, by line and month."""
    entries, postings = ledger_transactions, ledger_postings
    key = (
        postings.c.sku,
        entries.c.model_id,
        entries.c.endpoint_id,
        postings.c.price_version,
        postings.c.unit_price_pico,
        entries.c.service_minute_ms,
    )
    rows = conn.execute(
        select(*key, func.sum(postings.c.quantity))
        .join(entries, entries.c.id == postings.c.transaction_id)
        .where(
            entries.c.org_id == invoice.org_id,
            entries.c.minute_ms >= invoice.start_ms,
            entries.c.minute_ms < invoice.end_ms,
            entries.c.service_minute_ms < month[0],
            postings.c.sku != "",
        )
        .group_by(*key)
    )
    found: dict[_LateKey, dict[int, int]] = {}
    for row in rows:
        at = month_bounds(row.service_minute_ms)[0]
        endpoint = row.endpoint_id if row.sku == ENDPOINT_MINUTE_SKU else ""
        for version in {"", row.price_version}:  # a line names the version only where it has terms
            months = found.setdefault((row.sku, row.model_id, endpoint, version, row.unit_price_pico), {})
            months[at] = months.get(at, 0) + int(row[-1])
    return found


def _pieces(
    line: InvoiceLine, discount: int, late: Mapping[_LateKey, Mapping[int, int]], span: Span
) -> Iterator[_Piece]:
    key = (line.sku, line.model_id, line.endpoint_id, line.price_version, line.unit_price_pico)
    quantity, cents = line.quantity, line.amount_cents - discount
    for month_ms, part in sorted(late.get(key, {}).items()):
        of_it = round_to_cents(part * line.unit_price_pico)
        quantity, cents = quantity - part, cents - of_it
        yield _Piece(month_bounds(month_ms), part, of_it, True)
    if quantity or cents:
        yield _Piece(span, quantity, cents, False)


def _usage(line: InvoiceLine, piece: _Piece, kept_bp: int) -> Row:
    unit = "Tokens" if line.sku in TOKEN_SKUS else "Minutes" if line.sku == ENDPOINT_MINUTE_SKU else "Seconds"
    sku = f"{line.model_id}/{line.sku}"
    listed = piece.quantity * line.unit_price_pico
    billed = format_cents(piece.cents)
    return {
        "BilledCost": billed,
        "EffectiveCost": billed,
        "ListCost": format_pico(listed),
        "ContractedCost": _parts(listed, kept_bp),
        "ListUnitPrice": format_pico(line.unit_price_pico),
        "ContractedUnitPrice": _parts(line.unit_price_pico, kept_bp),
        "ChargeCategory": "Usage",
        "ChargeClass": "Correction" if piece.correction else "",
        "ChargeDescription": f"{line.sku} of {line.endpoint_name or line.model_id}",
        "ChargePeriodStart": _time(piece.span[0]),
        "ChargePeriodEnd": _time(piece.span[1]),
        "ConsumedQuantity": str(piece.quantity),
        "ConsumedUnit": unit,
        "PricingCategory": "Standard",
        "PricingCurrency": "USD",
        "PricingQuantity": str(piece.quantity),
        "PricingUnit": unit,
        "ResourceId": line.endpoint_id,
        "ResourceName": line.endpoint_name,
        "ResourceType": "Endpoint" if line.endpoint_id else "",
        "SkuId": sku,
        "SkuMeter": line.sku.replace("_", " ").title(),
        "SkuPriceId": f"{sku}@{format_pico(line.unit_price_pico)}",
        "x_Model": line.model_id,
        "x_PriceVersion": line.price_version,
    }


def _parts(amount_pico: int, basis_points: int) -> str:
    """So many basis points of an amount, exactly: up to 16 decimals."""
    sign = "-" if amount_pico < 0 else ""
    whole, rest = divmod(abs(amount_pico) * basis_points, 10**16)
    fraction = f"{rest:016d}".rstrip("0")
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


def _fixed(cents: int, category: str, description: str, *, effective: int | None = None) -> Row:
    amount = format_cents(cents)
    return {
        "BilledCost": amount,
        "EffectiveCost": amount if effective is None else format_cents(effective),
        "ListCost": amount,
        "ContractedCost": amount,
        "ChargeCategory": category,
        "ChargeDescription": description,
        "ChargeFrequency": "One-Time",
    }


def _note_row(note: CreditNote, invoice: Invoice, name: str, month: Span) -> Row:
    of = {
        "InvoiceId": note.number,
        "InvoiceDetailId": "1",
        "ChargeClass": "Correction",
        "ChargePeriodStart": _time(invoice.start_ms),
        "ChargePeriodEnd": _time(invoice.end_ms),
    }
    text = f"credit note on invoice {invoice.number}: {note.reason}"
    return _common(invoice, name, month) | _fixed(-note.amount_cents, "Adjustment", text) | of


def _credit_kinds(conn: Connection, invoice_id: str) -> dict[str, str]:
    rows = conn.execute(
        select(credit_uses.c.grant_id).where(credit_uses.c.invoice_id == invoice_id)
    ).scalars()
    return {grant_id: find_grant(conn, grant_id).kind for grant_id in rows.all()}


def _time(at_ms: int) -> str:
    return iso(at_ms)[:19] + "Z"
