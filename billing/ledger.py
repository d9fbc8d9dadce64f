"""Posting minutes: balanced transactions whose id is their minute's, so that posting twice is harmless."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from billing import store
from billing.entries import LedgerTransaction, charge
from billing.model import PriceBook
from billing.rate import Prices, rate
from metering.records import Alarm, ClosedMinute
from metering.store import lock_first_open_minute, record_alarms

MAX_HELD = 1000  # held quantities looked at in one go


def post_minutes(
    conn: Connection, minutes: Sequence[ClosedMinute], book: PriceBook, now_ms: int
) -> list[Alarm]:
    """Rate and post minutes in the transaction that closes them; what has no price is held, with an alarm."""
    ids = [minute.id for minute in minutes]
    done = store.posted_ids(conn, ids) | store.held_ids(conn, ids)
    prices = Prices(conn, book)
    transactions: list[LedgerTransaction] = []
    alarms: dict[tuple[str, ...], Alarm] = {}
    for minute in minutes:
        if minute.id in done:
            continue
        items, unpriced = rate(
            minute.quantities, prices.at(minute.org_id, minute.model_id, minute.service_minute_ms)
        )
        if items:
            transactions.append(charge(minute, items, minute.id, minute.kind))
        if unpriced:
            reason = no_price(minute.model_id)
            store.hold(conn, minute, unpriced, reason, now_ms)
            detail = f"{', '.join(unpriced)} of organization {minute.org_id} is held: {reason}"
            alarms[(minute.model_id, *unpriced)] = Alarm("unpriced", minute.model_id, detail)
    store.insert_transactions(conn, transactions, now_ms)
    record_alarms(conn, list(alarms.values()), now_ms)
    return list(alarms.values())


def post_held(conn: Connection, book: PriceBook, now_ms: int) -> int:
    """Post what was held and has a price by now; returns how many quantities.

    Its minute is closed, so it is billed in the first open one, at the price of the minute it happened in.
    """
    first_open = lock_first_open_minute(conn, exclusive=True)
    prices = Prices(conn, book)
    posted = 0
    for minute in store.held_minutes(conn, MAX_HELD):
        items, _ = rate(
            minute.quantities, prices.at(minute.org_id, minute.model_id, minute.service_minute_ms)
        )
        if items:
            # The rest of the minute may be posted already, under the minute's own id.
            transaction_id = f"{minute.id}/{'+'.join(item.sku for item in items)}"
            billed = replace(minute, billing_minute_ms=max(minute.billing_minute_ms, first_open))
            adjustment = charge(billed, items, transaction_id, "adjustment")
            store.insert_transactions(conn, [adjustment], now_ms)
            store.release(conn, minute.id, items)
            posted += len(items)
    return posted


def no_price(model_id: str) -> str:
    """Why a quantity is held."""
    return f"model {model_id} has no price for it at that time"
