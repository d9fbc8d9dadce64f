"""Our invoices at the provider: lines as items, exact totals, void and paid and credited with ours.

Each step asks what is there already when it is not the first try, so a crash between any two of them leaves one invoice
with each line once. An invoice is finalized there only when its total is ours to the cent.
"""

from billing.invoicing.model import Invoice
from billing.invoicing.notes_store import find_note
from billing.invoicing.settle import mark_pushed
from billing.invoicing.store import find_invoice, lines_of
from billing.payments import mapping, store
from billing.payments.context import Payments, ensure_customer
from billing.payments.model import ProviderInvoice, Refused, Task
from core.money import format_cents


def push_invoice(payments: Payments, task: Task) -> str:
    """The provider has the invoice, finalized; its name for it. Refused, with an alarm, when totals differ."""
    with payments.db.read() as conn:
        invoice = find_invoice(conn, task.subject)
    there = _at_provider(payments, task, invoice)
    if there is None:
        if invoice.state in ("void", "paid"):
            return ""  # settled before the provider ever had it
        customer = ensure_customer(payments, task)
        params = mapping.invoice_params(invoice, customer.id, charges=customer.charges)
        there = payments.provider.create_invoice(params, task.key("invoice"))
    with payments.db.begin() as conn:
        mark_pushed(conn, invoice.id, there.id)
    if there.status == "draft":
        _add_items(payments, task, invoice, there)
        _compare(payments, invoice, payments.provider.invoice(there.id))
        there = payments.provider.finalize(there.id, task.key("finalize"))
    record(payments, invoice, there)
    _compare(payments, invoice, there)
    return there.id


def _at_provider(payments: Payments, task: Task, invoice: Invoice) -> ProviderInvoice | None:
    if invoice.provider_id:
        return payments.provider.invoice(invoice.provider_id)
    if not task.again:
        return None
    customer = ensure_customer(payments, task)
    return payments.provider.find_invoice(customer.id, invoice.id)


def _add_items(payments: Payments, task: Task, invoice: Invoice, there: ProviderInvoice) -> None:
    with payments.db.read() as conn:
        lines = lines_of(conn, invoice.id)
    have = payments.provider.items_of(there.id) if task.again else {}
    for name, cents, text in mapping.items(invoice, lines):
        if name not in have:
            params = mapping.item_params(there.customer, there.id, name, cents, text)
            payments.provider.create_item(params, task.key(f"line-{name}"))


def _compare(payments: Payments, invoice: Invoice, there: ProviderInvoice) -> None:
    if there.total_cents != invoice.due_cents:
        text = (
            f"invoice {invoice.number}: the provider has {format_cents(there.total_cents)} USD before tax as {there.id}, "
            f"due are {format_cents(invoice.due_cents)}; it is {there.status} there"
        )
        payments.alarm("provider_differs", invoice.id, text)
        raise Refused(text, code="total_differs")


def record(payments: Payments, invoice: Invoice, there: ProviderInvoice) -> None:
    """Keep what was read back."""
    with payments.db.begin() as conn:
        store.put_amount(conn, invoice.org_id, there, payments.clock.now_ms())


def void_invoice(payments: Payments, task: Task) -> str:
    """Ours is void, so is the provider's: a draft is deleted, an open one made void."""
    with payments.db.read() as conn:
        invoice = find_invoice(conn, task.subject)
    there = _search(payments, task, invoice)
    if there is None:
        return ""
    if there.status == "draft":
        payments.provider.delete_draft(there.id)
        return there.id
    if there.status == "paid":
        text = (
            f"invoice {invoice.number} is void, but was paid at the provider ({there.id}): pay the money back"
        )
        payments.alarm("paid_void", invoice.id, text)
    elif there.status != "void":
        there = payments.provider.void(there.id, task.key("void"))
    record(payments, invoice, there)
    return there.id


def _search(payments: Payments, task: Task, invoice: Invoice) -> ProviderInvoice | None:
    """The provider's invoice, also one of a push that got no further than creating it."""
    if invoice.provider_id:
        return payments.provider.invoice(invoice.provider_id)
    with payments.db.read() as conn:
        customer = store.customer_of(conn, invoice.org_id)
    return payments.provider.find_invoice(customer, invoice.id) if customer else None


def pay_elsewhere(payments: Payments, task: Task) -> str:
    """Ours was paid: by the provider, which knows, or in another way, which it must be told."""
    with payments.db.read() as conn:
        invoice = find_invoice(conn, task.subject)
    there = _search(payments, task, invoice)
    if there is None:
        return ""
    if there.status in ("open", "uncollectible"):
        there = payments.provider.pay_elsewhere(there.id, task.key("paid"))
    record(payments, invoice, there)
    return there.id


def push_credit_note(payments: Payments, task: Task) -> str:
    """A credit note of an invoice that the provider has."""
    with payments.db.read() as conn:
        note = find_note(conn, task.subject)
        invoice = find_invoice(conn, note.invoice_id)
    there = _search(payments, task, invoice)
    if there is None or there.status in ("void", "draft"):
        raise Refused(f"credit note {note.number}: the provider has no final invoice {invoice.number}")
    if task.again and note.id in payments.provider.credit_notes(there.id):
        return there.id
    params = mapping.note_params(note, there.id, paid=there.status == "paid")
    return payments.provider.create_credit_note(params, task.key("note"))
