"""What becomes of a finalized invoice: paid, void, handed to the payment provider."""

from dataclasses import replace

from sqlalchemy import Connection, select

from billing import store
from billing.entries import transfer
from billing.invoicing import credit
from billing.invoicing.issue import lock_invoice
from billing.invoicing.model import Invoice, check_state
from billing.invoicing.notes_store import notes_of, off_due_cents
from billing.invoicing.store import find_invoice, period_invoices, set_provider_id, set_state
from billing.payments import outbox
from billing.tables import billing_profiles, invoices, ledger_postings
from core.clock import minute_floor
from core.errors import Conflict, Invalid
from core.money import PICO_PER_CENT, format_cents

MAX_REFERENCE = 200


def outstanding_cents(conn: Connection, invoice: Invoice) -> int:
    """What is still to be paid of it: due, less credit notes that are taken off."""
    if invoice.state != "finalized":
        return 0
    return invoice.due_cents - off_due_cents(conn, invoice.id)


def record_payment(
    conn: Connection, invoice_id: str, *, amount_cents: int | None, reference: str, now_ms: int
) -> Invoice:
    """The invoice was paid, whole. `amount_cents` None: as much as it should be.

    Conflict when it is paid already or is not to be paid; Invalid for another amount or a reference that is too long.
    """
    found = lock_invoice(conn, invoice_id)
    if found.state == "paid":
        by = f" (reference {found.payment_reference!r})" if found.payment_reference else " with credit"
        raise Conflict(f"invoice {found.number} is paid already{by}", code="invoice_state")
    check_state(found, ["finalized"], "paid")
    if len(reference) > MAX_REFERENCE:
        raise Invalid(f"reference: expected at most {MAX_REFERENCE} characters", param="reference")
    owed = outstanding_cents(conn, found)
    if amount_cents is not None and amount_cents != owed:
        raise Invalid(
            f"amount_usd: {format_cents(owed)} is due on invoice {found.number}, got {format_cents(amount_cents)}; "
            "part payments are not taken",
            param="amount_usd",
        )
    amount = owed * PICO_PER_CENT
    amounts = {"cash": amount, f"billed:{found.org_id}": -amount}
    entry = transfer(f"payment/{found.id}", "payment", found.org_id, minute_floor(now_ms), amounts)
    if entry.postings:
        store.insert_transactions(conn, [entry], now_ms)
    set_state(conn, found, "paid", paid_ms=now_ms, payment_reference=reference)
    outbox.invoice_changed(conn, found, "paid", now_ms)
    return find_invoice(conn, found.id)


def void_invoice(conn: Connection, invoice_id: str, now_ms: int) -> Invoice:
    """Take an invoice back: its entry is reversed by another one, credit is given back, the period is open to be
    invoiced again. What was paid with money, or has a credit note, cannot be void."""
    found = lock_invoice(conn, invoice_id)
    if found.state != "paid" or found.due_cents:  # paid with credit alone can be void
        check_state(found, ["draft", "finalized"], "void")
    if notes_of(conn, found.id):
        raise Conflict(
            f"invoice {found.number} cannot be void: there is a credit note of it, which would have nothing to refer to",
            code="invoice_state",
        )
    if found.state != "draft":
        _reverse(conn, found, now_ms)
        credit.give_back(conn, found.id)
        credit.revoke_from_source(conn, found.id, now_ms)
    others = period_invoices(conn, found.org_id, found.start_ms, found.end_ms)
    voided_ms = max(now_ms, *(each.voided_ms + 1 for each in others))
    set_state(conn, found, "void", voided_ms=voided_ms)
    outbox.invoice_changed(conn, found, "void", now_ms)
    return replace(found, state="void", voided_ms=voided_ms)


def _reverse(conn: Connection, invoice: Invoice, now_ms: int) -> None:
    sources = [
        f"invoice/{invoice.id}",
        *(f"credit/{grant.id}" for grant in credit.grants_of(conn, invoice.id)),
    ]
    postings = ledger_postings
    amounts: dict[str, int] = {}
    for row in conn.execute(
        select(postings.c.account, postings.c.amount_pico).where(postings.c.transaction_id.in_(sources))
    ):
        amounts[row.account] = amounts.get(row.account, 0) - row.amount_pico
    entry = transfer(f"void/{invoice.id}", "void", invoice.org_id, minute_floor(now_ms), amounts)
    if entry.postings:
        store.insert_transactions(conn, [entry], now_ms)


# -- for the payment provider --


def invoices_to_push(conn: Connection, provider: str, limit: int = 100) -> list[Invoice]:
    """The oldest finalized invoices with something due that the organization's provider does not have yet."""
    query = (
        select(invoices.c.id)
        .join(billing_profiles, billing_profiles.c.org_id == invoices.c.org_id)
        .where(
            billing_profiles.c.provider == provider,
            invoices.c.state == "finalized",
            invoices.c.provider_id == "",
            invoices.c.due_cents > 0,
        )
        .order_by(invoices.c.finalized_ms, invoices.c.id)
        .limit(limit)
    )
    return [find_invoice(conn, invoice_id) for invoice_id in conn.execute(query).scalars().all()]


def mark_pushed(conn: Connection, invoice_id: str, provider_id: str) -> None:
    """The provider has it, under this name; saying so again with the same name is harmless."""
    found = lock_invoice(conn, invoice_id)
    if found.provider_id not in ("", provider_id):
        raise Conflict(
            f"invoice {found.number} is {found.provider_id} at the provider already, not {provider_id}",
            code="invoice_state",
        )
    set_provider_id(conn, found.id, provider_id)
