"""The invoice that a period would get now: the ledger, plus minutes that are still open, rated the same way.

Closing a minute moves it from the second part to the first and changes nothing else, so the total stays.
"""

from collections.abc import Iterable

from sqlalchemy import Connection

from billing import store
from billing.ledger import no_price
from billing.model import CALL_SKU_ORDER, ENDPOINT_MINUTE_SKU, Held, Line, Preview, PriceAt
from billing.rate import Prices, rate
from core.money import round_to_cents
from metering.close import open_minutes
from metering.endpoint_minutes import endpoint_names
from metering.store import first_open_minute

_LineKey = tuple[str, str, str, int]  # sku, model, endpoint ("" for tokens), unit price
_HeldKey = tuple[str, str, str, str]  # sku, model, endpoint, reason


def invoice_preview(
    conn: Connection, org_id: str, start_ms: int, end_ms: int, now_ms: int, price_at: PriceAt
) -> Preview:
    """Lines per SKU, model (for minutes: endpoint) and unit price, of what is billed in [start, end)."""
    # Read first. What closes while we read lies after it and is still read from its events, which stay.
    first_open = first_open_minute(conn)
    quantities: dict[_LineKey, int] = {}
    held: dict[_HeldKey, int] = {}
    # Held before posted: what is released in between shows in both, and so not too little is owed.
    for line in store.held_lines(conn, org_id, start_ms, min(end_ms, first_open)):
        held_key = (line.sku, line.model_id, line.endpoint_id, line.reason)
        held[held_key] = held.get(held_key, 0) + line.quantity
    for total in store.posted_totals(conn, org_id, start_ms, end_ms, first_open):
        key = (total.sku, total.model_id, total.endpoint_id, total.unit_price_pico)
        quantities[key] = quantities.get(key, 0) + total.quantity
    prices = Prices(conn, price_at)
    for minute in open_minutes(conn, org_id, start_ms, end_ms, first_open):
        items, unpriced = rate(minute.quantities, prices.at(minute.model_id, minute.service_minute_ms))
        for item in items:
            endpoint_id = minute.endpoint_id if item.sku == ENDPOINT_MINUTE_SKU else ""
            key = (item.sku, minute.model_id, endpoint_id, item.unit_price_pico)
            quantities[key] = quantities.get(key, 0) + item.quantity
        for sku in unpriced:
            held_key = (sku, minute.model_id, minute.endpoint_id, no_price(minute.model_id))
            held[held_key] = held.get(held_key, 0) + minute.quantities[sku]
    lines = _lines(quantities, endpoint_names(conn, org_id))
    return Preview(
        org_id=org_id,
        start_ms=start_ms,
        end_ms=end_ms,
        as_of_ms=now_ms,
        lines=tuple(lines),
        held=tuple(Held(*key[:3], quantity, key[3]) for key, quantity in sorted(held.items())),
        total_pico=sum(line.amount_pico for line in lines),
        total_cents=sum(round_to_cents(line.amount_pico) for line in lines),
    )


def _lines(quantities: dict[_LineKey, int], names: dict[str, str]) -> list[Line]:
    lines: Iterable[Line] = (
        Line(sku, model_id, endpoint_id, names.get(endpoint_id, endpoint_id), quantity, unit_price)
        for (sku, model_id, endpoint_id, unit_price), quantity in quantities.items()
    )
    return sorted(lines, key=_order)


def _order(line: Line) -> tuple[object, ...]:
    """Tokens by model, then the endpoints' minutes by name."""
    sku = CALL_SKU_ORDER.index(line.sku) if line.sku in CALL_SKU_ORDER else len(CALL_SKU_ORDER)
    return (
        bool(line.endpoint_id),
        line.endpoint_name,
        line.model_id,
        sku,
        line.sku,
        line.endpoint_id,
        line.unit_price_pico,
    )
