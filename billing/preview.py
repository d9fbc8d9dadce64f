"""The invoice that a period would get now: the ledger, plus minutes that are still open, rated the same way.

Closing a minute moves it from the second part to the first and changes nothing else, so the total stays.
"""

from collections.abc import Mapping

from sqlalchemy import Connection

from billing import store
from billing.ledger import no_price
from billing.model import ENDPOINT_MINUTE_SKU, Held, Line, Preview, PriceBook
from billing.period import ChargeKey, charge_lines, discount_lines, minimum_lines, terms_lines
from billing.rate import Prices, rate
from catalog.terms import SkuTerms
from core.clock import month_bounds
from core.money import round_to_cents
from metering.close import open_minutes
from metering.endpoint_minutes import endpoint_names
from metering.store import first_open_minute

_HeldKey = tuple[str, str, str, str]  # sku, model, endpoint, reason


def invoice_preview(
    conn: Connection, org_id: str, start_ms: int, end_ms: int, now_ms: int, book: PriceBook
) -> Preview:
    """Lines per SKU, model (for minutes: endpoint) and price, of what is billed in [start, end).

    `conn` reads one snapshot (`Database.read`): what closes meanwhile is seen here as open, or as closed, not as both.
    """
    first_open = first_open_minute(conn)
    charges = _posted(conn, org_id, start_ms, end_ms, book)
    held: dict[_HeldKey, int] = {}
    for line in store.held_lines(conn, org_id, start_ms, end_ms):
        held_key = (line.sku, line.model_id, line.endpoint_id, line.reason)
        held[held_key] = held.get(held_key, 0) + line.quantity
    prices = Prices(conn, book)
    for minute in open_minutes(conn, org_id, start_ms, end_ms, first_open):
        price = prices.at(org_id, minute.model_id, minute.service_minute_ms)
        items, unpriced = rate(minute.quantities, price)
        for item in items:
            charges.add(
                item.sku,
                minute.model_id,
                minute.endpoint_id,
                item.price_version,
                item.unit_price_pico,
                item.quantity,
            )
        for sku in unpriced:
            held_key = (sku, minute.model_id, minute.endpoint_id, no_price(minute.model_id))
            held[held_key] = held.get(held_key, 0) + minute.quantities[sku]
    lines = _lines(conn, charges, org_id, start_ms, end_ms)
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


def closed_lines(conn: Connection, org_id: str, start_ms: int, end_ms: int, book: PriceBook) -> list[Line]:
    """The lines of a period within one UTC month of which every minute is closed: what its invoice gets.

    Tiers, included amounts and minimums count the month. So an invoice that ends within the month has none of their
    lines, and the one that ends with it has them for all of it.
    """
    charges = _posted(conn, org_id, start_ms, end_ms, book)
    month_start, month_end = month_bounds(start_ms)
    if start_ms == month_start or end_ms != month_end:
        return _lines(conn, charges, org_id, start_ms, end_ms)
    month = _lines(conn, _posted(conn, org_id, month_start, month_end, book), org_id, month_start, month_end)
    contract = store.contract_at(conn, org_id, start_ms)
    listed = charge_lines(charges.quantities, endpoint_names(conn, org_id))
    lines = [*listed, *(line for line in month if line.kind == "terms")]
    minimum = [line for line in month if line.kind == "minimum"]
    return [*lines, *discount_lines(lines, contract), *minimum]


def _posted(conn: Connection, org_id: str, start_ms: int, end_ms: int, book: PriceBook) -> "_Charges":
    charges = _Charges(conn, book)
    for total in store.posted_totals(conn, org_id, start_ms, end_ms):
        charges.add(
            total.sku,
            total.model_id,
            total.endpoint_id,
            total.price_version,
            total.unit_price_pico,
            total.quantity,
        )
    return charges


class _Charges:
    """Quantities by line, and the terms of the price versions among them."""

    def __init__(self, conn: Connection, book: PriceBook) -> None:
        self._conn, self._book = conn, book
        self.quantities: dict[ChargeKey, int] = {}
        self.terms: dict[str, Mapping[str, SkuTerms]] = {}

    def add(
        self, sku: str, model_id: str, endpoint_id: str, version: str, unit_price_pico: int, quantity: int
    ) -> None:
        """Tokens are one line per model over all endpoints; an endpoint's minutes are a line of their own."""
        endpoint = endpoint_id if sku == ENDPOINT_MINUTE_SKU else ""
        key = (sku, model_id, endpoint, version if sku in self._terms(version) else "", unit_price_pico)
        self.quantities[key] = self.quantities.get(key, 0) + quantity

    def _terms(self, version: str) -> Mapping[str, SkuTerms]:
        if version not in self.terms:
            found = self._book.version(self._conn, version)
            self.terms[version] = found.terms if found is not None else {}
        return self.terms[version]


def _lines(conn: Connection, charges: _Charges, org_id: str, start_ms: int, end_ms: int) -> list[Line]:
    lines = charge_lines(charges.quantities, endpoint_names(conn, org_id))
    contract = store.contract_at(conn, org_id, start_ms)
    whole_month = (start_ms, end_ms) == month_bounds(start_ms)
    if whole_month:
        lines += terms_lines(lines, charges.terms)
    lines += discount_lines(lines, contract)
    if whole_month:
        lines += minimum_lines(sum(line.amount_pico for line in lines), contract)
    return lines
