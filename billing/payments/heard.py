"""What the provider tells: stored first, processed once, in any order, by asking for the object as it is now."""

from sqlalchemy import Connection

from billing.invoicing.model import Invoice
from billing.invoicing.settle import record_payment
from billing.invoicing.store import find_invoice
from billing.payments import outbox, store
from billing.payments.context import Payments
from billing.payments.model import Heard, ProviderInvoice, Task
from billing.payments.push import record
from core.errors import Conflict, NotFound
from core.money import format_cents

SYNC = "farebox.sync"  # not of the provider: an operator wants an invoice read back
_INVOICE_EVENTS = (
    SYNC,
    "invoice.paid",
    "invoice.payment_failed",
    "invoice.voided",
    "invoice.marked_uncollectible",
    "invoice.finalized",
    "invoice.finalization_failed",
)
_METER_EVENTS = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")


def keep(conn: Connection, heard: Heard, now_ms: int) -> bool:
    """Store an event with the task of processing it; whether it was new."""
    if not store.put_event(conn, heard, now_ms):
        return False
    lane = f"event/{heard.object_id or heard.id}"
    outbox.add(conn, [outbox.task("event", heard.id, "", lane, now_ms)])
    return True


def process(payments: Payments, task: Task) -> str:
    """Act on a stored event; what became of it."""
    with payments.db.read() as conn:
        event = store.find_event(conn, task.subject)
    if event.processed_ms:
        return event.outcome
    org_id = ""
    if event.type in _INVOICE_EVENTS:
        org_id, outcome = settle(payments, event.object_id, event.type)
    elif event.type.startswith("charge.dispute."):
        outcome = payments.provider.dispute(event.object_id)
        payments.alarm("payment_dispute", event.object_id, outcome)
    elif event.type in _METER_EVENTS:
        outcome = payments.provider.meter_errors(event.id)
        payments.alarm("meter_events_refused", event.object_id or event.id, outcome)
    else:
        outcome = f"ignored: nothing follows from {event.type}"
    with payments.db.begin() as conn:
        store.processed(conn, event.id, org_id, outcome, payments.clock.now_ms())
    return outcome


def settle(payments: Payments, provider_id: str, event_type: str = "") -> tuple[str, str]:
    """Ours becomes what the provider's invoice is now; (organization, what became of it)."""
    there = payments.provider.invoice(provider_id)
    if not there.ours:
        return "", f"ignored: {provider_id} is no invoice of ours"
    try:
        with payments.db.read() as conn:
            ours = find_invoice(conn, there.ours)
    except NotFound:
        return "", f"ignored: {provider_id} names invoice {there.ours}, which is not here"
    record(payments, ours, there)
    return ours.org_id, _settle(payments, ours, there, event_type)


def _settle(payments: Payments, ours: Invoice, there: ProviderInvoice, event_type: str) -> str:
    named = f"invoice {ours.number} ({there.id})"
    if there.status == "paid":
        return _paid(payments, ours, there, named)
    if there.status == "void" and ours.state != "void":
        payments.alarm(
            "voided_at_provider", ours.id, f"{named} was made void at the provider; ours is {ours.state}"
        )
        return "void at the provider only: alarm"
    if there.status == "uncollectible":
        payments.alarm("uncollectible", ours.id, f"{named} was given up at the provider")
        return "given up at the provider: alarm"
    if there.status == "draft" and there.failure and event_type == "invoice.finalization_failed":
        payments.alarm("finalization_failed", ours.id, f"{named} cannot be finalized: {there.failure}")
        return f"finalizing failed: alarm: {there.failure}"
    if there.status == "open" and event_type == "invoice.payment_failed":
        payments.alarm("payment_failed", ours.id, f"{named}: a payment failed, attempt {there.attempts}")
        return "a payment failed: alarm"
    return f"noted: {there.status}"


def _paid(payments: Payments, ours: Invoice, there: ProviderInvoice, named: str) -> str:
    if there.total_cents != ours.due_cents:
        text = (
            f"{named} was paid over {format_cents(there.total_cents)} USD before tax, due are "
            f"{format_cents(ours.due_cents)}: ours stays {ours.state}"
        )
        payments.alarm("provider_differs", ours.id, text)
        return "paid another amount: alarm"
    if ours.state == "void":
        payments.alarm("paid_void", ours.id, f"{named} was paid, but is void: pay the money back")
        return "paid though void: alarm"
    try:
        with payments.db.begin() as conn:
            now_ms = payments.clock.now_ms()
            record_payment(conn, ours.id, amount_cents=None, reference=there.id, now_ms=now_ms)
    except Conflict:
        return "paid already"
    return "paid"
