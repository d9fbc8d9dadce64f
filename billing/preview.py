"""The invoice that a period would get now: the ledger, plus minutes that are still open, rated the same way.

Closing a minute moves it from the second part to the first and changes nothing else, so the total stays.
"""

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection

from billing import store
from billing.ledger import no_price
from billing.model import ENDPOINT_MINUTE_SKU, Held, Line, Preview, PriceBook
from billing.period import ChargeKey, charge_lines, discount_lines, minimum_lines, terms_lines
from billing.rate import Prices, rate
from billing.store import Total
from catalog.terms import SkuTerms
from core.clock import month_bounds
from core.money import round_to_cents
from metering.close import open_minutes
from metering.endpoint_minutes import endpoint_names
from metering.store import first_open_minute

HeldKey = tuple[str, str, str, str]  # sku, model, endpoint, reason


def invoice_preview(
    conn: Connection, org_id: str, start_ms: int, end_ms: int, now_ms: int, book: PriceBook
) -> Preview:
    """Lines per SKU, model (for minutes: endpoint) and price, of what is billed in [start, end).

    `conn` reads one snapshot (`Database.read`): what closes meanwhile is seen here as open, or as closed, not as both.
    """
    totals, held = totals_so_far(conn, org_id, start_ms, end_ms, book)
    lines = lines_of(conn, totals, org_id, start_ms, end_ms, book)
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


def totals_so_far(
    conn: Connection, org_id: str, start_ms: int, end_ms: int, book: PriceBook
) -> tuple[list[Total], dict[HeldKey, int]]:
    """Charges billed in [start, end), on the ledger or in minutes that are still open; and what has no price."""
    first_open = first_open_minute(conn)
    totals = store.posted_totals(conn, org_id, start_ms, end_ms)
    held: dict[HeldKey, int] = {}
    for line in store.held_lines(conn, org_id, start_ms, end_ms):
        held_key = (line.sku, line.model_id, line.endpoint_id, line.reason)
        held[held_key] = held.get(held_key, 0) + line.quantity
    prices = Prices(conn, book)
    for minute in open_minutes(conn, org_id, start_ms, end_ms, first_open):
        price = prices.at(org_id, minute.model_id, minute.service_minute_ms)
        items, unpriced = rate(minute.quantities, price)
        totals += [
            Total(
                item.sku,
                minute.model_id,
                minute.endpoint_id,
                item.price_version,
                item.unit_price_pico,
                item.quantity,
            )
            for item in items
        ]
        for sku in unpriced:
            held_key = (sku, minute.model_id, minute.endpoint_id, no_price(minute.model_id))
            held[held_key] = held.get(held_key, 0) + minute.quantities[sku]
    return totals, held


def closed_lines(conn: Connection, org_id: str, start_ms: int, end_ms: int, book: PriceBook) -> list[Line]:
    """The lines of a period within one UTC month of which every minute is closed: what its invoice gets.

    Tiers, included amounts and minimums count the month. So an invoice that ends within the month has none of their
    lines, and the one that ends with it has them for all of it.
    """
    totals = store.posted_totals(conn, org_id, start_ms, end_ms)
    month_start, month_end = month_bounds(start_ms)
    if start_ms == month_start or end_ms != month_end:
        return lines_of(conn, totals, org_id, start_ms, end_ms, book)
    whole = store.posted_totals(conn, org_id, month_start, month_end)
    month = lines_of(conn, whole, org_id, month_start, month_end, book)
    listed = charge_lines(_Charges(conn, book, totals).quantities, endpoint_names(conn, org_id))
    lines = [*listed, *(line for line in month if line.kind == "terms")]
    minimum = [line for line in month if line.kind == "minimum"]
    return [*lines, *discount_lines(lines, store.contract_at(conn, org_id, start_ms)), *minimum]


class _Charges:
    """Quantities by line, and the terms of the price versions among them."""

    def __init__(self, conn: Connection, book: PriceBook, totals: Iterable[Total]) -> None:
        self._conn, self._book = conn, book
        self.quantities: dict[ChargeKey, int] = {}
        self.terms: dict[str, Mapping[str, SkuTerms]] = {}
        for total in totals:
            self._add(total)

    def _add(self, total: Total) -> None:
        """Tokens are one line per model over all endpoints; an endpoint's minutes are a line of their own."""
        endpoint = total.endpoint_id if total.sku == ENDPOINT_MINUTE_SKU else ""
        version = total.price_version if total.sku in self._terms(total.price_version) else ""
        key = (total.sku, total.model_id, endpoint, version, total.unit_price_pico)
        self.quantities[key] = self.quantities.get(key, 0) + total.quantity

    def _terms(self, version: str) -> Mapping[str, SkuTerms]:
        if version not in self.terms:
            found = self._book.version(self._conn, version)
            self.terms[version] = found.terms if found is not None else {}
        return self.terms[version]


def lines_of(
    conn: Connection, totals: Iterable[Total], org_id: str, start_ms: int, end_ms: int, book: PriceBook
) -> list[Line]:
    """What these charges come to as lines of [start, end); terms and minimums only of a whole UTC month."""
    charges = _Charges(conn, book, totals)
    lines = charge_lines(charges.quantities, endpoint_names(conn, org_id))
    contract = store.contract_at(conn, org_id, start_ms)
    whole_month = (start_ms, end_ms) == month_bounds(start_ms)
    if whole_month:
        lines += terms_lines(lines, charges.terms)
    lines += discount_lines(lines, contract)
    if whole_month:
        lines += minimum_lines(sum(line.amount_pico for line in lines), contract)
    return lines
