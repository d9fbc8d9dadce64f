"""Rating is multiplication, and nothing without a price is free."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from billing.entries import charge
from billing.rate import Prices, cost_pico, rate, unit_price_of
from core.errors import NotFound
from metering.model import CALL_SKUS, Usage
from metering.records import ClosedMinute

counts = st.integers(min_value=0, max_value=10**12)


@dataclass(frozen=True)
class Version:
    id: str = "price_1"
    unit_prices: dict[str, int] = field(default_factory=dict)


@given(counts, counts, counts, st.integers(min_value=0, max_value=10**15))
def test_amounts_are_exact(input_: int, cached: int, output: int, price: int) -> None:
    usage = Usage(input_ + cached, cached, output)
    version = Version(unit_prices={"input": price, "cached_input": price // 2, "output": price * 4})
    items, unpriced = rate(usage.billable(), version)
    assert not unpriced
    assert sum(i.amount_pico for i in items) == input_ * price + cached * (price // 2) + output * price * 4
    assert all(item.quantity for item in items)


@given(
    st.dictionaries(st.sampled_from(CALL_SKUS), st.integers(-(10**12), 10**12)),
    st.none() | st.dictionaries(st.sampled_from(CALL_SKUS), st.integers(0, 10**15)),
)
def test_a_cost_is_what_the_items_come_to(
    quantities: dict[str, int], unit_prices: dict[str, int] | None
) -> None:
    price = None if unit_prices is None else Version(unit_prices=unit_prices)
    items, _ = rate(quantities, price)
    assert cost_pico(quantities, price) == sum(item.amount_pico for item in items)


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12), st.booleans())
def test_what_is_billable_of_a_call_is_every_token_once(
    uncached: int, cached: int, output: int, batch: bool
) -> None:
    found = Usage(uncached + cached, cached, output, audio_ms=1001, batch=batch).billable()
    prefix = "batch_" if batch else ""
    sold = {f"{prefix}input": uncached, f"{prefix}cached_input": cached, f"{prefix}output": output}
    assert tuple(found) == CALL_SKUS
    assert found == dict.fromkeys(CALL_SKUS, 0) | sold | {"audio_second": 2}


@given(st.lists(st.tuples(counts, st.integers(min_value=0, max_value=10**21)), max_size=5))
def test_every_ledger_entry_sums_to_zero(sold: list[tuple[int, int]]) -> None:
    quantities = {f"sku_{i}": quantity for i, (quantity, _) in enumerate(sold)}
    version = Version(unit_prices={f"sku_{i}": price for i, (_, price) in enumerate(sold)})
    items, _ = rate(quantities, version)
    minute = ClosedMinute("m", "usage", 0, 0, "org_1", "", "", "", "", quantities)
    made = charge(minute, items, "m", "usage")
    assert sum(posting.amount_pico for posting in made.postings) == 0
    assert made.postings[0].amount_pico == sum(quantity * price for quantity, price in sold)


def test_what_has_no_price_is_held_not_free() -> None:
    items, unpriced = rate({"input": 3, "output": 2}, Version(unit_prices={"input": 5}))
    assert [(i.sku, i.amount_pico) for i in items] == [("input", 15)]
    assert unpriced == ["output"]
    assert rate({"input": 3}, None) == ([], ["input"])
    assert rate({"input": 0}, None) == ([], [])


def test_a_price_of_zero_is_a_price() -> None:
    items, unpriced = rate({"output": 2}, Version(unit_prices={"output": 0}))
    assert (items[0].amount_pico, unpriced) == (0, [])


def test_cached_input_costs_what_input_costs_unless_it_has_a_price() -> None:
    assert unit_price_of({"input": 7}, "cached_input") == 7
    assert unit_price_of({"input": 7, "cached_input": 0}, "cached_input") == 0
    assert unit_price_of({}, "cached_input") is None


def test_a_price_is_looked_up_once_per_organization_model_and_minute() -> None:
    asked: list[tuple[str, str, int]] = []

    class Book:
        def price_at(self, _: Any, model_id: str, at_ms: int, org_id: str) -> Version:
            asked.append((org_id, model_id, at_ms))
            if model_id == "gone":
                raise NotFound("no such model")
            return Version()

        def version(self, _: Any, __: str) -> Version:
            return Version()

    prices = Prices(None, Book())  # type: ignore[arg-type]  # no SQL in this one
    assert prices.at("o", "a", 60_001) == prices.at("o", "a", 119_999) == Version()
    assert prices.at("o", "gone", 0) is prices.at("o", "gone", 1) is None
    prices.at("p", "a", 60_000)
    assert asked == [("o", "a", 60_000), ("o", "gone", 0), ("p", "a", 60_000)]
