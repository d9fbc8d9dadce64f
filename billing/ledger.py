"""The ledger: balanced transactions whose id is their minute's, so that posting twice is harmless."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from billing import store
from billing.model import Item, PriceAt
from billing.rate import Prices, rate
from billing.store import LedgerTransaction, Posting
from metering.records import Alarm, ClosedMinute
from metering.store import lock_first_open_minute, record_alarms

MAX_HELD = 1000  # held quantities looked at in one go


def entry(minute: ClosedMinute, items: Sequence[Item], transaction_id: str, kind: str) -> LedgerTransaction:
    """The customer owes what the SKUs earn: one debit, one credit per SKU, summing to zero."""
    total = sum(item.amount_pico for item in items)
    receivable = Posting(f"receivable:{minute.org_id}", "", 0, 0, "", total)
    revenue = [
        Posting(
            f"revenue:{item.sku}",
            item.sku,
            item.quantity,
            item.unit_price_pico,
            item.price_version,
            -item.amount_pico,
        )
        for item in items
    ]
    postings = (receivable, *revenue)
    assert sum(posting.amount_pico for posting in postings) == 0, transaction_id
    return LedgerTransaction(transaction_id, kind, minute, postings)


def post_minutes(
    conn: Connection, minutes: Sequence[ClosedMinute], price_at: PriceAt, now_ms: int
) -> list[Alarm]:
    """Rate and post minutes in the transaction that closes them; what has no price is held, with an alarm."""
    ids = [minute.id for minute in minutes]
    done = store.posted_ids(conn, ids) | store.held_ids(conn, ids)
    prices = Prices(conn, price_at)
    transactions: list[LedgerTransaction] = []
    alarms: dict[tuple[str, ...], Alarm] = {}
    for minute in minutes:
        if minute.id in done:
            continue
        items, unpriced = rate(minute.quantities, prices.at(minute.model_id, minute.service_minute_ms))
        if items:
            transactions.append(entry(minute, items, minute.id, minute.kind))
        if unpriced:
            reason = no_price(minute.model_id)
            store.hold(conn, minute, unpriced, reason, now_ms)
            detail = f"{', '.join(unpriced)} of organization {minute.org_id} is held: {reason}"
            alarms[(minute.model_id, *unpriced)] = Alarm("unpriced", minute.model_id, detail)
    store.insert_transactions(conn, transactions, now_ms)
    record_alarms(conn, list(alarms.values()), now_ms)
    return list(alarms.values())


def post_held(conn: Connection, price_at: PriceAt, now_ms: int) -> int:
    """Post what was held and has a price by now; returns how many quantities.

    Its minute is closed, so it is billed in the first open one, at the price of the minute it happened in.
    """
    first_open = lock_first_open_minute(conn, exclusive=True)
    prices = Prices(conn, price_at)
    posted = 0
    for minute in store.held_minutes(conn, MAX_HELD):
        items, _ = rate(minute.quantities, prices.at(minute.model_id, minute.service_minute_ms))
        if items:
            # The rest of the minute may be posted already, under the minute's own id.
            transaction_id = f"{minute.id}/{'+'.join(item.sku for item in items)}"
            billed = replace(minute, billing_minute_ms=max(minute.billing_minute_ms, first_open))
            adjustment = entry(billed, items, transaction_id, store.ADJUSTMENT)
            store.insert_transactions(conn, [adjustment], now_ms)
            store.release(conn, minute.id, items)
            posted += len(items)
    return posted


def no_price(model_id: str) -> str:
    """Why a quantity is held."""
    return f"model {model_id} has no price for it at that time"
