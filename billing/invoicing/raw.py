"""Charges again, from the raw events: plain Python, one event after the other, nothing that rating or closing wrote.

This is the slow, obvious way, kept apart from the code that bills so that a mistake there shows here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, and_, or_, select

from billing.invoicing.periods import Span
from billing.model import ENDPOINT_MINUTE_SKU, Price, PriceBook
from core.errors import NotFound
from metering.tables import endpoint_minutes, usage_corrections, usage_events, usage_minutes

_BATCH = 5000
_MAX_PRICES = 10_000
ChargeKey = tuple[str, str, str, str, int]
"""SKU, model, endpoint ("" for tokens), price version ("" unless it has terms for the SKU), unit price."""


@dataclass(slots=True)
class RawCharges:
    """What the events of an organization come to."""

    quantities: dict[ChargeKey, int] = field(default_factory=dict)
    unpriced: dict[tuple[str, str], int] = field(default_factory=dict)  # by model and SKU
    events: int = 0
    endpoint_minutes: int = 0
    corrections: int = 0

    def add(self, key: ChargeKey, quantity: int) -> None:
        self.quantities[key] = self.quantities.get(key, 0) + quantity


class RawRating:
    """Rates events one by one with the price book."""

    def __init__(self, conn: Connection, org_id: str, book: PriceBook) -> None:
        self._conn, self._org_id, self._book = conn, org_id, book
        self._prices: dict[tuple[str, int], Price | None] = {}

    def charges(self, span: Span) -> RawCharges:
        """Everything that is billed in a period."""
        found = RawCharges()
        for row in _rows(self._conn, usage_events, usage_events.c.row_id, self._org_id, span):
            found.events += 1
            self._rate(found, row, billed_quantities(row))
        for row in _rows(self._conn, endpoint_minutes, endpoint_minutes.c.id, self._org_id, span):
            found.endpoint_minutes += 1
            self._rate(found, row, {ENDPOINT_MINUTE_SKU: 1})
        for row in _rows(self._conn, usage_corrections, usage_corrections.c.row_id, self._org_id, span):
            found.corrections += 1
            self._rate(found, row, corrected_quantities(self._conn, row))
        return found

    def key(self, sku: str, model_id: str, endpoint_id: str, service_minute_ms: int) -> ChargeKey | None:
        """The line that a charge belongs to; None without a price."""
        price = self._price(model_id, service_minute_ms)
        if price is None:
            return None
        unit = price.unit_prices.get(sku)
        if (
            unit is None
        ):  # what is not priced as a batch call is one like any other, and cached input is input
            plain = sku.removeprefix("batch_")
            unit = price.unit_prices.get(plain)
            if unit is None and plain == "cached_input":
                unit = price.unit_prices.get("input")
        if unit is None:
            return None
        version = price.id if sku in price.terms else ""
        return (sku, model_id, endpoint_id if sku == ENDPOINT_MINUTE_SKU else "", version, unit)

    def _rate(self, found: RawCharges, row: Row[Any], quantities: Mapping[str, int]) -> None:
        for sku, quantity in quantities.items():
            if quantity:
                key = self.key(sku, row.model_id, row.endpoint_id, row.service_minute_ms)
                if key is not None:
                    found.add(key, quantity)
                else:
                    held = (row.model_id, sku)
                    found.unpriced[held] = found.unpriced.get(held, 0) + quantity

    def _price(self, model_id: str, at_ms: int) -> Price | None:
        if (model_id, at_ms) not in self._prices:
            if len(self._prices) >= _MAX_PRICES:
                self._prices.clear()
            try:
                price = self._book.price_at(self._conn, model_id, at_ms, self._org_id)
            except NotFound:
                price = None
            self._prices[model_id, at_ms] = price
        return self._prices[model_id, at_ms]


def billed_quantities(row: Row[Any]) -> dict[str, int]:
    """What a usage event is billed for, by SKU."""
    if row.status == "error":
        return {}
    return _billed(row, "")


def corrected_quantities(conn: Connection, row: Row[Any]) -> dict[str, int]:
    """By how much a correction differs from what stood before it: an earlier one, or the event."""
    table, events = usage_corrections, usage_events
    before = conn.execute(
        select(table)
        .where(
            table.c.corrects_source == row.corrects_source,
            table.c.corrects_id == row.corrects_id,
            table.c.row_id < row.row_id,
        )
        .order_by(table.c.row_id.desc())
        .limit(1)
    ).first()
    event = conn.execute(
        select(events).where(events.c.source == row.corrects_source, events.c.event_id == row.corrects_id)
    ).one()
    old = _billed(before, "right_") if before is not None else _billed(event, "")
    return {sku: quantity - old[sku] for sku, quantity in _billed(row, "right_").items()}


def _billed(row: Row[Any], prefix: str) -> dict[str, int]:
    count = {name: getattr(row, prefix + name) for name in ("input", "cached_input", "output", "audio_ms")}
    tokens = {
        "input": count["input"] - count["cached_input"],
        "cached_input": count["cached_input"],
        "output": count["output"],
    }
    batch = getattr(row, prefix + "batch")
    found = {"audio_second": (count["audio_ms"] + 999) // 1000}
    for sku, quantity in tokens.items():
        found |= {sku: 0 if batch else quantity, f"batch_{sku}": quantity if batch else 0}
    return found


def origin_of(conn: Connection, minute_id: str) -> Row[Any] | None:
    """What closing kept of a minute; also of an adjustment's id, which has its SKUs behind the minute's."""
    for name in (minute_id, minute_id.rpartition("/")[0]):
        for key in (usage_minutes.c.id, endpoint_minutes.c.id, usage_corrections.c.minute_id):
            row = conn.execute(select(key.table).where(key == name)).first()
            if row is not None:
                return row
    return None


def is_correction(origin: Row[Any]) -> bool:
    """Whether the minute is a correction, which is one of its own."""
    return "corrects_id" in origin._mapping


def events_behind(origin: Row[Any]) -> Select[Any]:
    """The usage events that a closed minute was made of."""
    table = usage_events
    names = (
        "billing_minute_ms",
        "service_minute_ms",
        "org_id",
        "project_id",
        "key_id",
        "endpoint_id",
        "model_id",
    )
    return select(table).where(*(table.c[name] == getattr(origin, name) for name in names))


def raw_quantity(conn: Connection, origin: Row[Any], sku: str) -> int:
    """What the events behind a minute come to."""
    if sku == ENDPOINT_MINUTE_SKU:
        return 1
    if is_correction(origin):
        return corrected_quantities(conn, origin)[sku]
    return sum(billed_quantities(row).get(sku, 0) for row in conn.execute(events_behind(origin)))


def _rows(conn: Connection, table: Table, key: Any, org_id: str, span: Span) -> Iterator[Row[Any]]:
    """An organization's rows that are billed in a period, in batches."""
    minute = table.c.billing_minute_ms
    query = (
        select(table)
        .where(table.c.org_id == org_id, minute >= span[0], minute < span[1])
        .order_by(minute, key)
        .limit(_BATCH)
    )
    rows = conn.execute(query).all()
    while rows:
        yield from rows
        last = rows[-1]
        behind = or_(
            minute > last.billing_minute_ms, and_(minute == last.billing_minute_ms, key > last._mapping[key])
        )
        rows = conn.execute(query.where(behind)).all() if len(rows) == _BATCH else []
