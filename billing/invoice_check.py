"""Invoices against the ledger, and what the payment provider has against the invoices.

Quantities come from the ledger's postings themselves, not from the daily sums that invoices are made of.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, func, select

from billing.entries import CHARGE_KINDS
from billing.tables import invoice_lines, invoices, ledger_postings, ledger_transactions
from core.clock import iso
from metering.records import ENDPOINT_MINUTE_SKU
from metering.recount import Finding

MAX_INVOICES = 1000
_LineKey = tuple[str, str, str]  # SKU, model, endpoint (of endpoint minutes)


class ProviderAmount(Protocol):
    """What the payment provider has for an invoice."""

    @property
    def provider_id(self) -> str: ...

    @property
    def due_cents(self) -> int: ...


ProviderAmounts = Callable[[Connection, str], ProviderAmount | None]
"""Of an invoice by our id, as it was last read back from the provider. None: it has none (yet)."""


@dataclass(frozen=True, slots=True)
class InvoiceCheck:
    """One invoice that charges a part of the period, and how it differs from the ledger and the provider."""

    invoice_id: str
    number: str
    org_id: str
    state: str
    start_ms: int
    end_ms: int
    due_cents: int
    provider: ProviderAmount | None
    findings: tuple[Finding, ...]

    @property
    def equal(self) -> bool:
        return not self.findings


def check_invoices(
    conn: Connection, start_ms: int, end_ms: int, org_id: str | None, provider: ProviderAmounts | None
) -> list[InvoiceCheck]:
    """Final invoices over any part of [start, end)."""
    table = invoices
    query = select(table).where(
        table.c.start_ms < end_ms, table.c.end_ms > start_ms, table.c.state.in_(("finalized", "paid"))
    )
    if org_id is not None:
        query = query.where(table.c.org_id == org_id)
    found = []
    for row in conn.execute(query.order_by(table.c.start_ms, table.c.id).limit(MAX_INVOICES)).all():
        there = provider(conn, row.id) if provider is not None else None
        findings = [*_quantities_differ(conn, row.id, row.org_id, row.start_ms, row.end_ms)]
        if there is not None and there.due_cents != row.due_cents:
            text = (
                f"the provider has {there.due_cents} cents ({there.provider_id}), the invoice {row.due_cents}"
            )
            findings.append(Finding("provider_differs", False, text, "", row.due_cents - there.due_cents))
        found.append(
            InvoiceCheck(
                row.id, row.number or "", row.org_id, row.state, row.start_ms, row.end_ms, row.due_cents,
                there, tuple(findings),
            )
        )  # fmt: skip
    return found


def _quantities_differ(
    conn: Connection, invoice_id: str, org_id: str, start_ms: int, end_ms: int
) -> list[Finding]:
    on_ledger = _ledger_quantities(conn, org_id, start_ms, end_ms)
    lines = _line_quantities(conn, invoice_id)
    findings = []
    for key in sorted({*on_ledger, *lines}):
        difference = on_ledger.get(key, 0) - lines.get(key, 0)
        if difference:
            sku, model_id, endpoint_id = key
            of = endpoint_id or model_id
            text = (
                f"{sku} of {of}, {iso(start_ms)} to {iso(end_ms)}: the ledger and the invoice's lines differ"
            )
            findings.append(Finding("invoice_differs", False, text, sku, difference, 1, (invoice_id,)))
    return findings


def _ledger_quantities(conn: Connection, org_id: str, start_ms: int, end_ms: int) -> dict[_LineKey, int]:
    t, p = ledger_transactions, ledger_postings
    rows = conn.execute(
        select(p.c.sku, t.c.model_id, t.c.endpoint_id, func.sum(p.c.quantity))
        .join(t, t.c.id == p.c.transaction_id)
        .where(
            t.c.org_id == org_id,
            t.c.minute_ms >= start_ms,
            t.c.minute_ms < end_ms,
            t.c.kind.in_(CHARGE_KINDS),
            p.c.sku != "",
        )
        .group_by(p.c.sku, t.c.model_id, t.c.endpoint_id)
    )
    return _by_line(rows)


def _line_quantities(conn: Connection, invoice_id: str) -> dict[_LineKey, int]:
    table = invoice_lines
    rows = conn.execute(
        select(table.c.sku, table.c.model_id, table.c.endpoint_id, func.sum(table.c.quantity))
        .where(table.c.invoice_id == invoice_id, table.c.kind == "charge")
        .group_by(table.c.sku, table.c.model_id, table.c.endpoint_id)
    )
    return _by_line(rows)


def _by_line(rows: Iterable[Any]) -> dict[_LineKey, int]:
    found: dict[_LineKey, int] = {}
    for sku, model_id, endpoint_id, quantity in rows:
        key = (sku, model_id, endpoint_id if sku == ENDPOINT_MINUTE_SKU else "")
        found[key] = found.get(key, 0) + int(quantity)
    return found
