"""`farebox invoice verify`: is an invoice what the raw events come to, and is nothing changed since it was final?

Compared: raw events (raw.py) with the ledger's postings, both with the invoice's lines, the lines with their hash, the
invoice with its entry on the ledger, and the ledger with its chain up to the hash that the invoice shows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from billing import store
from billing.entries import CHARGE_KINDS
from billing.invoicing.model import Invoice, InvoiceLine, lines_hash
from billing.invoicing.periods import Span
from billing.invoicing.raw import ChargeKey, RawCharges, RawRating, origin_of, raw_quantity
from billing.invoicing.store import find_invoice, lines_of
from billing.model import ENDPOINT_MINUTE_SKU, Contract, PriceBook
from billing.tables import credit_uses, held_quantities, ledger_postings, ledger_transactions
from billing.verify import verify_chain
from catalog.terms import effective_pico
from core.clock import month_bounds
from core.errors import Conflict
from core.money import PICO_PER_CENT, format_pico

MAX_DIFFERENCES = 100
_BATCH = 2000
LineKey = tuple[str, str, str, str, str, int, int]
"""Kind, SKU, model, endpoint, price version, unit price, quantity: what a line is of."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was compared. No difference: the invoice is proved."""

    invoice: Invoice
    events: int
    endpoint_minutes: int
    corrections: int
    ledger_transactions: int  # of the chain, up to the invoice
    lines: int
    differences: tuple[str, ...]


def check_invoice(conn: Connection, name: str, book: PriceBook) -> CheckReport:
    """Recompute an invoice; Conflict for a draft, which is not final. `conn` reads one snapshot."""
    invoice = find_invoice(conn, name)
    if invoice.number is None:
        raise Conflict(
            f"invoice {invoice.id} is a draft: only a final one can be verified", code="invoice_state"
        )
    lines = lines_of(conn, invoice.id)
    span = (invoice.start_ms, invoice.end_ms)
    rating = RawRating(conn, invoice.org_id, book)
    raw = _charges(conn, rating, invoice.org_id, span)
    differences = [
        *_ledger_differences(conn, invoice.org_id, span, raw, book),
        *_line_differences(conn, invoice, lines, raw, rating, book),
        *_sum_differences(conn, invoice, lines),
    ]
    chain = verify_chain(conn, invoice.org_id, until_seq=invoice.ledger_seq, until_hash=invoice.ledger_hash)
    differences += [f"ledger: {fault}" for fault in chain.faults]
    return CheckReport(
        invoice,
        raw.events,
        raw.endpoint_minutes,
        raw.corrections,
        chain.transactions,
        len(lines),
        tuple(differences[:MAX_DIFFERENCES]),
    )


def _charges(conn: Connection, rating: RawRating, org_id: str, span: Span) -> RawCharges:
    """The raw charges of a period; what waited for a price counts where it was billed once it had one."""
    found = rating.charges(span)
    for origin, sku, billed_ms in _adjustments(conn, org_id, span[0]):
        key = rating.key(sku, origin.model_id, origin.endpoint_id, origin.service_minute_ms)
        if key is not None:
            leaves = span[0] <= origin.billing_minute_ms < span[1]
            enters = span[0] <= billed_ms < span[1]
            found.add(key, raw_quantity(conn, origin, sku) * (enters - leaves))
    held = held_quantities
    for row in conn.execute(
        select(held).where(held.c.org_id == org_id, held.c.minute_ms >= span[0], held.c.minute_ms < span[1])
    ):
        key = rating.key(row.sku, row.model_id, row.endpoint_id, row.service_minute_ms)
        if key is not None:  # it has a price by now, and will be billed in a later minute
            found.add(key, -row.quantity)
    found.quantities = {key: quantity for key, quantity in found.quantities.items() if quantity}
    return found


def _adjustments(conn: Connection, org_id: str, since_ms: int) -> Iterator[tuple[Row[Any], str, int]]:
    """Of what waited for a price: the minute it is of, the SKU, and the minute it was billed in."""
    table = ledger_transactions
    rows = conn.execute(
        select(table.c.id, table.c.minute_ms).where(
            table.c.org_id == org_id, table.c.kind == "adjustment", table.c.minute_ms >= since_ms
        )
    ).all()
    for row in rows:
        origin = origin_of(conn, row.id)
        if origin is not None:  # else nothing raw is behind it, and the ledger has more than the events
            for sku in row.id.rpartition("/")[2].split("+"):
                yield origin, sku, row.minute_ms


def _ledger_differences(
    conn: Connection, org_id: str, span: Span, raw: RawCharges, book: PriceBook
) -> Iterator[str]:
    posted: dict[ChargeKey, int] = {}
    versions: dict[str, frozenset[str]] = {}
    for row in _postings(conn, org_id, span):
        if row.amount_pico != -row.quantity * row.unit_price_pico:
            yield f"ledger: {row.transaction_id} has {format_pico(-row.amount_pico)} for {row.quantity} {row.sku}"
        if row.price_version not in versions:
            version = book.version(conn, row.price_version)
            versions[row.price_version] = frozenset(version.terms if version else ())
        endpoint = row.endpoint_id if row.sku == ENDPOINT_MINUTE_SKU else ""
        terms = row.price_version if row.sku in versions[row.price_version] else ""
        key = (row.sku, row.model_id, endpoint, terms, row.unit_price_pico)
        posted[key] = posted.get(key, 0) + row.quantity
    for key in sorted(posted.keys() | raw.quantities.keys()):
        on_ledger, in_events = posted.get(key, 0), raw.quantities.get(key, 0)
        if on_ledger != in_events:
            yield f"{_of(key)}: the ledger has {on_ledger}, the raw events {in_events}"
    rolled: dict[tuple[str, str, int], int] = {}
    for total in store.posted_totals(conn, org_id, *span):
        short = (total.sku, total.model_id, total.unit_price_pico)
        rolled[short] = rolled.get(short, 0) + total.quantity
    for sku, model_id, endpoint, terms, unit in posted:
        rolled[sku, model_id, unit] = (
            rolled.get((sku, model_id, unit), 0) - posted[sku, model_id, endpoint, terms, unit]
        )
    for (sku, model_id, _), rest in sorted(rolled.items()):
        if rest:
            yield f"{sku} of {model_id}: the ledger's days have {rest} more than its postings"


def _postings(conn: Connection, org_id: str, span: Span) -> Iterator[Row[Any]]:
    entries, postings = ledger_transactions, ledger_postings
    after = ""
    while True:
        ids = list(
            conn.execute(
                select(entries.c.id)
                .where(
                    entries.c.org_id == org_id,
                    entries.c.minute_ms >= span[0],
                    entries.c.minute_ms < span[1],
                    entries.c.kind.in_(CHARGE_KINDS),
                    entries.c.id > after,
                )
                .order_by(entries.c.id)
                .limit(_BATCH)
            ).scalars()
        )
        if not ids:
            return
        for start in range(0, len(ids), 500):
            yield from conn.execute(
                select(postings, entries.c.model_id, entries.c.endpoint_id)
                .join(entries, entries.c.id == postings.c.transaction_id)
                .where(postings.c.transaction_id.in_(ids[start : start + 500]), postings.c.sku != "")
            ).all()
        after = ids[-1]


def _line_differences(
    conn: Connection,
    invoice: Invoice,
    lines: Sequence[InvoiceLine],
    raw: RawCharges,
    rating: RawRating,
    book: PriceBook,
) -> Iterator[str]:
    month_start, month_end = month_bounds(invoice.start_ms)
    month = raw.quantities if (invoice.start_ms, invoice.end_ms) == (month_start, month_end) else None
    if invoice.end_ms == month_end and month is None:
        month = _charges(conn, rating, invoice.org_id, (month_start, month_end)).quantities
    contract = store.contract_at(conn, invoice.org_id, invoice.start_ms)
    expected = expected_lines(raw.quantities, month, contract, conn, book)
    shown = {_key(line): line.amount_pico for line in lines if line.kind != "credit"}
    for key in sorted(expected.keys() | shown.keys()):
        want, have = expected.get(key), shown.get(key)
        if (want or 0) != (have or 0):
            said = ["no such line" if amount is None else format_pico(amount) for amount in (have, want)]
            of = " ".join(str(part) for part in key if part)
            yield f"line {of}: the invoice has {said[0]}, the events come to {said[1]}"


def expected_lines(
    charges: Mapping[ChargeKey, int],
    month: Mapping[ChargeKey, int] | None,
    contract: Contract | None,
    conn: Connection,
    book: PriceBook,
) -> dict[LineKey, int]:
    """Exact amounts of the lines that these charges come to. `month`: charges of the whole month, where it ends."""
    lines: dict[LineKey, int] = {}
    for (sku, model, endpoint, terms, unit), quantity in charges.items():
        lines["charge", sku, model, endpoint, terms, unit, quantity] = quantity * unit
    month_total = 0
    for (sku, model, endpoint, terms, unit), quantity in (month or {}).items():
        month_total += quantity * unit
        if terms:
            version = book.version(conn, terms)
            assert version is not None
            difference = effective_pico(quantity, unit, version.terms[sku]) - quantity * unit
            month_total += difference
            if difference:
                lines["terms", sku, model, endpoint, terms, 0, 0] = difference
    if contract is not None:
        discount = _share(sum(lines.values()), contract.discount_bp)
        if discount:
            lines["discount", "", "", "", "", 0, 0] = -discount
        lacking = contract.minimum_pico - (month_total - _share(month_total, contract.discount_bp))
        if month is not None and lacking > 0:
            lines["minimum", "", "", "", "", 0, 0] = lacking
    return lines


def _share(amount_pico: int, basis_points: int) -> int:
    """So many basis points of a positive amount, half up."""
    return (max(amount_pico, 0) * basis_points * 2 + 10_000) // 20_000


def _sum_differences(conn: Connection, invoice: Invoice, lines: Sequence[InvoiceLine]) -> Iterator[str]:
    for line in lines:
        doubled = abs(line.amount_pico) * 2 + PICO_PER_CENT
        cents = doubled // (2 * PICO_PER_CENT) * (1 if line.amount_pico >= 0 else -1)
        if cents != line.amount_cents:
            exact = format_pico(line.amount_pico)
            yield f"line {line.line}: {exact} is rounded to {line.amount_cents} cents, not {cents}"
    total = sum(line.amount_cents for line in lines if line.kind != "credit")
    credit = -sum(line.amount_cents for line in lines if line.kind == "credit") if total >= 0 else total
    for name, have, want in (
        ("total", invoice.total_cents, total),
        ("credit", invoice.credit_cents, credit),
        ("due", invoice.due_cents, total - credit),
    ):
        if have != want:
            yield f"{name}: the invoice says {have} cents, its lines come to {want}"
    used = conn.execute(
        select(credit_uses.c.amount_pico).where(credit_uses.c.invoice_id == invoice.id)
    ).scalars()
    if sum(used) != max(credit, 0) * PICO_PER_CENT:
        yield "credit: what its grants gave is not what the lines say"
    if lines_hash(invoice, lines) != invoice.lines_hash:
        yield "hash: the invoice or a line of it was changed after it was finalized"
    yield from _entry_differences(conn, invoice, lines, total * PICO_PER_CENT, max(credit, 0) * PICO_PER_CENT)


def _entry_differences(
    conn: Connection, invoice: Invoice, lines: Sequence[InvoiceLine], total_pico: int, credit_pico: int
) -> Iterator[str]:
    kinds = ("charge", "terms", "discount", "minimum")
    exact = {kind: sum(line.amount_pico for line in lines if line.kind == kind) for kind in kinds}
    wanted = {
        f"receivable:{invoice.org_id}": -exact["charge"],
        "revenue:terms": -exact["terms"],
        "revenue:discount": -exact["discount"],
        "revenue:minimum": -exact["minimum"],
        "rounding": sum(exact.values()) - total_pico,
        f"billed:{invoice.org_id}": total_pico - credit_pico,
        f"credit:{invoice.org_id}": credit_pico,
    }
    entry = _entry(conn, f"invoice/{invoice.id}")
    for account in sorted(entry.keys() | wanted.keys()):
        have, want = entry.get(account, 0), wanted.get(account, 0)
        if have != want:
            moved = f"{format_pico(have)}, not {format_pico(want)}"
            yield f"ledger: invoice/{invoice.id} moves {account} by {moved}"


def _entry(conn: Connection, transaction_id: str) -> dict[str, int]:
    table = ledger_postings
    rows = conn.execute(
        select(table.c.account, table.c.amount_pico).where(table.c.transaction_id == transaction_id)
    )
    return {row.account: row.amount_pico for row in rows}


def _key(line: InvoiceLine) -> LineKey:
    of = (line.kind, line.sku, line.model_id, line.endpoint_id)
    return (*of, line.price_version, line.unit_price_pico, line.quantity)


def _of(key: ChargeKey) -> str:
    sku, model_id, endpoint, _, unit = key
    return f"{sku} of {endpoint or model_id} at {format_pico(unit)}"
