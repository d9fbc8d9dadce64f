"""Rating: quantities × the price version of the minute in which they happened. Pure, but for the look-up."""

from collections.abc import Mapping

from sqlalchemy import Connection

from billing.model import Item, Price, PriceBook
from core.clock import minute_floor
from core.errors import NotFound


class Prices:
    """The price book as seen by one run: each organization, model and minute is looked up once."""

    def __init__(self, conn: Connection, book: PriceBook) -> None:
        self._conn, self._book = conn, book
        self._known: dict[tuple[str, str, int], Price | None] = {}

    def at(self, org_id: str, model_id: str, at_ms: int) -> Price | None:
        """The version in force in the minute of `at_ms` (they start at full minutes), None: there is none."""
        key = (org_id, model_id, minute_floor(at_ms))
        if key not in self._known:
            try:
                self._known[key] = self._book.price_at(self._conn, model_id, key[2], org_id)
            except NotFound:
                self._known[key] = None
        return self._known[key]


def rate(quantities: Mapping[str, int], price: Price | None) -> tuple[list[Item], list[str]]:
    """Items with their exact amounts, and the SKUs that cannot be rated for want of a price (never free).

    A correction's quantities may be negative; those of anything else are not (`ClosedMinute` sees to it).
    """
    items: list[Item] = []
    unpriced: list[str] = []
    for sku, quantity in quantities.items():
        if quantity == 0:
            continue
        unit_price = None if price is None else unit_price_of(price.unit_prices, sku)
        if price is None or unit_price is None:
            unpriced.append(sku)
        else:
            items.append(Item(sku, quantity, unit_price, price.id))
    return items, unpriced


def cost_pico(quantities: Mapping[str, int], price: Price | None) -> int:
    """What the items of `rate` come to: it is asked for every call as it is recorded."""
    if price is None:
        return 0
    total, unit_prices = 0, price.unit_prices
    for sku, quantity in quantities.items():
        if quantity:
            unit_price = unit_prices.get(sku)
            if unit_price is None:
                unit_price = unit_price_of(unit_prices, sku) or 0
            total += quantity * unit_price
    return total


def unit_price_of(unit_prices: Mapping[str, int], sku: str) -> int | None:
    """The price of a SKU, or of what it costs where it has none of its own; None: there is none."""
    for name in (sku, *_INSTEAD.get(sku, ())):
        if name in unit_prices:
            return unit_prices[name]
    return None


# Cached input without a price costs what input costs, and batch calls what others cost.
_INSTEAD: Mapping[str, tuple[str, ...]] = {
    "cached_input": ("input",),
    "batch_input": ("input",),
    "batch_cached_input": ("cached_input", "input"),
    "batch_output": ("output",),
}
