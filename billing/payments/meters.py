"""The provider's own meters: an event for each line and minute of the ledger's charges, delivered once.

The ledger is the source: events are made of its chain behind a cursor, in the transaction that moves it. A meter counts
one line of an invoice (SKU, model, unit price): the provider rounds what we round, and a new price is a new meter.
"""

import threading
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from billing.entries import CHARGE_KINDS
from billing.invoicing.store import profile_of
from billing.model import ENDPOINT_MINUTE_SKU
from billing.payments import mapping, outbox, store
from billing.payments.context import Payments, ensure_customer
from billing.payments.mapping import MeteredLine
from billing.payments.model import METERS, Customer, Refused, Task, TryLater
from billing.payments.tables import provider_meter_cursors
from billing.store import lock_heads
from billing.tables import billing_profiles, invoices, ledger_postings, ledger_transactions
from core.clock import iso, minute_floor, month_bounds
from core.money import format_cents, round_to_cents

BACK_MS, AHEAD_MS = 35 * 86_400_000, 300_000
MAX_ITEMS = 20  # of one subscription
_MARGIN_MS = 3_600_000
_AT_ONCE = 500
_MAX_LATE = 5_000
_setting_up = threading.Lock()  # subscriptions are filled one after the other


def plan(payments: Payments) -> int:
    """Put events into the outbox for what came onto the ledger; returns how many."""
    with payments.db.read() as conn:
        profiles = billing_profiles
        query = select(profiles.c.org_id).where(profiles.c.provider == METERS).order_by(profiles.c.org_id)
        org_ids = list(conn.execute(query).scalars())
    return sum(_plan(payments, org_id) for org_id in org_ids)


def _plan(payments: Payments, org_id: str) -> int:
    with payments.db.read() as conn:
        if not _transactions(conn, org_id, _cursor(conn, org_id)[0], 1):
            return 0
    with payments.db.begin() as conn:
        lock_heads(conn, [org_id])  # one planner at a time
        seq, start_ms = _cursor(conn, org_id)
        found = _transactions(conn, org_id, seq, _AT_ONCE)
        if not found:
            return 0
        rows = _events(
            conn, {row.id: row for row in found if row.minute_ms >= start_ms}, payments.clock.now_ms()
        )
        outbox.add(conn, rows)
        _move(conn, org_id, found[-1].seq, start_ms)
        return len(rows)


def _cursor(conn: Connection, org_id: str) -> tuple[int, int]:
    """(ledger sequence that was read, start): of an organization that just changed, from its last invoice on."""
    table = provider_meter_cursors
    row = conn.execute(select(table).where(table.c.org_id == org_id)).first()
    if row is not None:
        return row.seq, row.start_ms
    final = (invoices.c.org_id == org_id, invoices.c.state.in_(("finalized", "paid")))
    return 0, conn.execute(select(func.max(invoices.c.end_ms)).where(*final)).scalar() or 0


def _move(conn: Connection, org_id: str, seq: int, start_ms: int) -> None:
    table = provider_meter_cursors
    if conn.execute(update(table).where(table.c.org_id == org_id).values(seq=seq)).rowcount == 0:
        conn.execute(insert(table).values(org_id=org_id, seq=seq, start_ms=start_ms))


def _transactions(conn: Connection, org_id: str, after: int, limit: int) -> list[Row[Any]]:
    table = ledger_transactions
    query = select(table).where(table.c.org_id == org_id, table.c.seq > after, table.c.kind.in_(CHARGE_KINDS))
    return list(conn.execute(query.order_by(table.c.seq).limit(limit)))


def _events(conn: Connection, found: dict[str, Row[Any]], now_ms: int) -> list[dict[str, Any]]:
    """One event for each meter and minute: the provider takes a customer's events of a meter one at a time, so an event
    for each key would fall behind. Named for the first posting in it; what is read together never changes."""
    table = ledger_postings
    query = select(table).where(
        table.c.transaction_id.in_(found), table.c.sku != "", table.c.unit_price_pico != 0
    )
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for posting in conn.execute(query.order_by(table.c.transaction_id, table.c.line)):
        each = found[posting.transaction_id]
        of = each.endpoint_id if posting.sku == ENDPOINT_MINUTE_SKU else each.model_id
        line = MeteredLine(posting.sku, of, posting.unit_price_pico)
        key = (line.name, each.minute_ms)
        if key not in rows:
            rows[key] = outbox.task(
                "meter_event",
                f"{posting.transaction_id}/{posting.sku}/{posting.line}",
                each.org_id,
                f"meter/{each.org_id}/{line.name}",
                now_ms,
                meter=f"{line.sku} {line.of}",
                quantity=0,
                unit_price_pico=line.unit_price_pico,
                at_ms=each.minute_ms,
            )
        rows[key]["quantity"] += posting.quantity
    return [row for row in rows.values() if row["quantity"]]


def deliver(payments: Payments, task: Task) -> str:
    """One event is at the provider, counted once; the meter that counts it."""
    now_ms = payments.clock.now_ms()
    line = _line(task)
    if abs(task.quantity) > mapping.MAX_VALUE:
        raise Refused(f"{line.title}: {task.quantity} has more than 15 digits")
    if task.at_ms < now_ms - BACK_MS + _MARGIN_MS:
        return _bill_late(payments, task, line)
    if task.at_ms > now_ms + AHEAD_MS:
        text = f"{iso(task.at_ms)} is more than five minutes ahead"
        raise TryLater(text, retry_after_ms=task.at_ms - now_ms - AHEAD_MS)
    customer = ensure_customer(payments, task)
    meter_id = _ensure_meter(payments, task, line)
    _ensure_item(payments, task, line, customer, meter_id)
    if task.generation > 0 and _counted(payments, task, customer, meter_id):
        return meter_id
    params = mapping.event_params(line.name, customer.id, task.subject, task.quantity, task.at_ms)
    payments.provider.send_meter_event(params, task.key("event"))
    return meter_id


def _line(task: Task) -> MeteredLine:
    sku, _, of = task.meter.partition(" ")
    return MeteredLine(sku, of, task.unit_price_pico)


def _counted(payments: Payments, task: Task, customer: Customer, meter_id: str) -> bool:
    """Whether the provider, which has forgotten the event's identifier, has counted it in its minute."""
    start_ms = minute_floor(task.at_ms)
    with payments.db.read() as conn:
        before = outbox.delivered(conn, task.lane, start_ms, start_ms + 60_000)
    there = payments.provider.metered(meter_id, customer.id, start_ms // 1000, start_ms // 1000 + 60)
    if there == before + task.quantity:
        return True
    if there != before:
        text = (
            f"{_line(task).title}, minute {iso(start_ms)}: the provider counts {there}, delivered were {before} "
            f"without {task.subject} ({task.quantity}); it is not sent again, for that might bill it twice"
        )
        payments.alarm("meter_differs", task.id, text)
        raise Refused(text, code="meter_differs")
    return False


def _ensure_meter(payments: Payments, task: Task, line: MeteredLine) -> str:
    with payments.db.read() as conn:
        known = store.object_of(conn, "", "meter", line.name)
    if known:
        return known
    found = payments.provider.find_meter(line.name)
    if found is None:
        key = f"farebox-meter-{line.name}-{task.generation}"
        found = payments.provider.create_meter(mapping.meter_params(line), key)
    _keep(payments, "", "meter", line.name, found)
    return found


def _ensure_item(
    payments: Payments, task: Task, line: MeteredLine, customer: Customer, meter_id: str
) -> None:
    """The customer subscribes to the meter's price, on a subscription that still has room."""
    with payments.db.read() as conn:
        known = store.object_of(conn, task.org_id, "subscription_item", line.name)
        price_id = store.object_of(conn, "", "price", line.name)
        due_days = profile_of(conn, task.org_id).due_days
    if known:
        return
    provider = payments.provider
    with _setting_up:
        price_id = price_id or provider.find_price(line.name) or ""
        if not price_id:
            key = f"farebox-price-{line.name}-{task.generation}"
            price_id = provider.create_price(mapping.price_params(line, meter_id), key)
        _keep(payments, "", "price", line.name, price_id)
        there = provider.subscription_items(customer.id)
        have = next((items[price_id] for items in there.values() if price_id in items), "")
        room = next((name for name, items in there.items() if len(items) < MAX_ITEMS), "")
        if have:
            pass
        elif room:
            params = {"subscription": room, "price": price_id, "proration_behavior": "none"}
            have = provider.create_subscription_item(params, task.key("item"))
        else:
            first_ms = max(month_bounds(payments.clock.now_ms())[0], month_bounds(task.at_ms)[0])
            params = mapping.subscription_params(task.org_id, customer.id, price_id, due_days, first_ms)
            # By their number: two workers that both make the next one cannot both succeed.
            key = f"farebox-subscription-{task.org_id}-{len(there)}-{task.generation}"
            have = provider.create_subscription(params, key)
        _keep(payments, task.org_id, "subscription_item", line.name, have)


def _keep(payments: Payments, org_id: str, kind: str, name: str, provider_id: str) -> None:
    with payments.db.begin() as conn:
        store.put_object(conn, org_id, kind, name, provider_id, payments.clock.now_ms())


def _bill_late(payments: Payments, task: Task, line: MeteredLine) -> str:
    """Too old for a meter: everything of the lane that is, as one line on the customer's next invoice."""
    before_ms = payments.clock.now_ms() - BACK_MS + _MARGIN_MS
    with payments.db.begin() as conn:
        batch = task.provider_id or outbox.join_batch(conn, task, f"late/{task.id}", before_ms, _MAX_LATE)
        quantity = outbox.batch_quantity(conn, task.lane, batch)
    cents = round_to_cents(quantity * line.unit_price_pico)
    customer = ensure_customer(payments, task)
    if cents and not (
        task.again and batch in payments.provider.recent_items(customer.id, task.created_ms // 1000)
    ):
        text = f"{line.title}: {quantity}, reported late"
        params = mapping.item_params(customer.id, "", batch, cents, text)
        payments.provider.create_item(params, task.key("late"))
    payments.alarm(
        "meter_event_too_old",
        task.lane,
        f"{line.title}: {quantity} of usage over 35 days ago is billed as a line of {format_cents(cents)} USD",
    )
    with payments.db.begin() as conn:
        outbox.batch_done(conn, task.lane, batch, payments.clock.now_ms())
    return batch
