"""Batch calls: counted by other meters, priced as a tier of their own, from the event to the invoice and its proof."""

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from farebox.cli.prices import price
from hypothesis import given
from hypothesis import strategies as st

from billing.close import close_and_post
from billing.rate import rate, unit_price_of
from catalog import price_book
from catalog.batch_prices import discounted
from core.clock import MINUTE_MS, iso, month_bounds
from functions.reconcile import Reconciler
from metering.model import BATCH_SKUS, CALL_SKUS, Usage
from tests.api.console_platform import MOCK_CHAT, ConsolePlatform, open_platform
from tests.event_values import SOURCE, call_of, correction, usage_cloudevent
from wire.cloudevents_http import BATCHED

MODEL = "acme/mock-chat"
USAGE = Usage(1000, 400, 200, 50, batch=True)


class Shop:
    """A console with an endpoint on a model whose batch calls cost half."""

    def __init__(self, directory: Path) -> None:
        self.console: ConsolePlatform = open_platform(directory)
        self.console.project()
        assert '{input: "0.15", cached_input: "0.075", output: "0.60"' in MOCK_CHAT
        with_discount = MOCK_CHAT.replace('output: "0.60"', 'output: "0.60", batch_discount_percent: 50')
        assert self.console.add_model(with_discount).status_code == 201
        self.endpoint = self.console.post("/api/serverless-endpoints", name="my-chat", model=MODEL)

    def send(self, *events: Any) -> Any:
        headers = {"content-type": BATCHED}
        answer = self.console.client.post("/api/events", content=json.dumps(events).encode(), headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def call(self, request_id: str, usage: Usage = USAGE) -> dict[str, Any]:
        return usage_cloudevent(call_of(self.endpoint, request_id, self.console.clock.now_ms(), usage=usage))

    def close_month(self) -> str:
        month = month_bounds(self.console.clock.now_ms())
        self.console.clock.step(month[1] + 5 * MINUTE_MS - self.console.clock.now_ms())
        while close_and_post(self.console.db, price_book, self.console.clock.now_ms(), MINUTE_MS):
            pass
        return iso(month[0])[:7]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_a_batch_call_costs_half(shop: Shop) -> None:
    assert shop.send(shop.call("b1"), shop.call("n1", Usage(1000, 400, 200)))["new"] == 2
    batch, now = (shop.console.get(f"/api/receipts/{name}") for name in ("b1", "n1"))
    assert (batch["batch"], now["batch"]) == (True, False)
    assert [batch["billed"][sku] for sku in BATCH_SKUS] == [600, 400, 200]
    assert [batch["billed"][sku] for sku in ("input", "cached_input", "output")] == [0, 0, 0]
    assert (
        Decimal(now["cost_usd"])
        == (600 * Decimal("0.15") + 400 * Decimal("0.075") + 200 * Decimal("0.6")) / 10**6
    )
    assert Decimal(batch["cost_usd"]) * 2 == Decimal(now["cost_usd"])


def test_from_the_event_to_a_proved_invoice(shop: Shop) -> None:
    shop.send(shop.call("b1"), shop.call("b2"), shop.call("n1", Usage(1000, 400, 200)))
    preview = shop.console.get("/api/invoices/preview?organization=acme")
    open_lines = {
        line["sku"]: line["quantity"] for line in preview["lines"] if line.get("sku", "") in CALL_SKUS
    }
    period = shop.close_month()
    [invoice] = shop.console.post("/api/invoices", organization="acme", period=period)["data"]
    lines = {
        line["sku"]: line
        for line in shop.console.get(f"/api/invoices/{invoice['id']}/lines")["data"]
        if line["sku"]
    }
    assert {sku: line["quantity"] for sku, line in lines.items() if sku in CALL_SKUS} == open_lines
    assert lines["batch_output"]["quantity"] == 400
    assert lines["batch_output"]["price_per_million_usd"] == "0.3"
    assert lines["output"]["quantity"] == 200
    report = shop.console.get(f"/api/invoices/{invoice['id']}/verification")
    assert report["proved"] and report["differences"] == []
    page = shop.console.client.get(f"/api/invoices/{invoice['id']}/document?format=html")
    assert "output tokens (batch)" in page.text


def test_what_is_recounted_agrees(shop: Shop) -> None:
    now_ms = shop.console.clock.now_ms()
    shop.send(shop.call("b1"), shop.call("n1", Usage(10, 0, 5)))
    shop.send(
        correction(
            shop.endpoint["organization_id"],
            "b1",
            Usage(900, 400, 200, 50, batch=True),
            event_id="k1",
            at_ms=now_ms,
        )
    )
    shop.console.clock.advance(10 * MINUTE_MS)
    close_and_post(shop.console.db, price_book, shop.console.clock.now_ms(), MINUTE_MS)
    start = now_ms - now_ms % 3_600_000
    console = shop.console
    report = Reconciler(console.db, console.clock, lambda: None).report(start, start + 3_600_000)
    kinds = {finding.kind for row in report.rows for stage, finding in row.findings if stage != "engine"}
    assert not kinds, kinds


def test_a_correction_moves_a_call_out_of_the_batch_tier(shop: Shop) -> None:
    shop.send(shop.call("b1"))
    now_ms = shop.console.clock.now_ms()
    right = Usage(1000, 400, 200, 50)
    assert (
        shop.send(correction(shop.endpoint["organization_id"], "b1", right, event_id="k1", at_ms=now_ms))[
            "new"
        ]
        == 1
    )
    receipt = shop.console.get("/api/receipts/b1")
    assert [receipt["billed"][sku] for sku in BATCH_SKUS] == [0, 0, 0]
    assert [receipt["billed"][sku] for sku in ("input", "cached_input", "output")] == [600, 400, 200]
    [line] = [row for row in shop.console.get("/api/usage?group_by=sku")["data"] if row["sku"] == "output"]
    assert line["quantity"] == 200


def test_budgets_count_the_discounted_price(shop: Shop) -> None:
    shop.send(shop.call("b1", Usage(0, 0, 1_000_000, batch=True)))
    budget = shop.console.post("/api/budgets", organization="acme", amount_usd="10", window="month")
    assert Decimal(budget["spent_usd"]) == Decimal("0.3"), "recounted from the events"
    shop.send(shop.call("b2", Usage(0, 0, 1_000_000, batch=True)))
    assert Decimal(shop.console.get(f"/api/budgets/{budget['id']}")["spent_usd"]) == Decimal("0.6")


def usage_of(shop: Shop, query: str) -> list[dict[str, Any]]:
    start = shop.console.clock.now_ms() // 86_400_000 * 86_400
    page = shop.console.get(f"/v1/organization/usage/completions?organization=acme&start_time={start}{query}")
    return [result for bucket in page["data"] for result in bucket["results"]]


@pytest.mark.parametrize("closed", [False, True])
def test_openais_usage_tells_batch_calls_apart(shop: Shop, closed: bool) -> None:
    shop.send(shop.call("b1"), shop.call("b2"), shop.call("n1", Usage(10, 4, 2)))
    if closed:
        shop.console.clock.advance(10 * MINUTE_MS)
        close_and_post(shop.console.db, price_book, shop.console.clock.now_ms(), MINUTE_MS)
    [together] = usage_of(shop, "")
    assert (together["batch"], together["num_model_requests"], together["input_tokens"]) == (None, 3, 2010)
    others, batch = usage_of(shop, "&group_by=batch")
    assert (others["batch"], others["num_model_requests"], others["input_tokens"]) == (False, 1, 10)
    assert (batch["batch"], batch["num_model_requests"], batch["input_tokens"]) == (True, 2, 2000)
    assert (batch["input_cached_tokens"], batch["output_tokens"]) == (800, 400)
    [only] = usage_of(shop, "&batch=true")
    assert (only["batch"], only["num_model_requests"], only["output_tokens"]) == (None, 2, 400)
    [rest] = usage_of(shop, "&batch=false")
    assert (rest["num_model_requests"], rest["output_tokens"]) == (1, 2)


def test_a_discount_and_a_price_of_its_own_contradict(shop: Shop) -> None:
    both = MOCK_CHAT.replace(
        'output: "0.60"', 'output: "0.60", batch_discount_percent: 50, batch_output: "0.1"'
    ).replace(MODEL, "acme/other")
    answer = shop.console.add_model(both)
    assert answer.status_code == 422
    assert "prices.batch_discount_percent" in answer.json()["param"]
    assert "not both" in answer.json()["detail"]
    for percent in ("101", "-1", '"half"'):
        wrong = MOCK_CHAT.replace('output: "0.60"', f'output: "0.60", batch_discount_percent: {percent}')
        assert shop.console.add_model(wrong.replace(MODEL, "acme/other")).status_code == 422
    body = {"model": MODEL, "prices": {"batch_output": "0.2"}, "batch_discount_percent": 30}
    refused = shop.console.client.post("/api/price-proposals", json=body)
    assert (refused.status_code, refused.json()["param"]) == (422, "batch_discount_percent")


def test_a_discount_is_proposed_like_a_price(shop: Shop) -> None:
    made = shop.console.cli(
        price, "propose", "--model", MODEL, "--set", "output=0.50", "--batch-discount", "40"
    )
    assert made.exit_code == 0, made.output
    prices = json.loads(made.stdout)["prices"]
    assert (prices["batch_output"], prices["batch_input"], prices["batch_cached_input"]) == (
        "0.3",
        "0.09",
        "0.045",
    )
    tried = shop.console.cli(price, "dry-run", "--model", MODEL, "--batch-discount", "0")
    assert tried.exit_code == 0, tried.output


def test_cached_input_of_a_batch_is_never_dearer_than_either(shop: Shop) -> None:
    own = MOCK_CHAT.replace('output: "0.60"', 'output: "0.60", batch_input: "0.05"').replace(
        MODEL, "acme/other"
    )
    assert shop.console.add_model(own).status_code == 201
    [version] = shop.console.get("/api/model-prices/acme/other")["data"]
    assert version["prices"]["batch_cached_input"] == "0.05"
    assert "batch_output" not in version["prices"]


def test_without_batch_prices_a_batch_call_costs_the_same() -> None:
    prices = {"input": 7, "output": 11}
    assert [unit_price_of(prices, sku) for sku in BATCH_SKUS] == [7, 7, 11]
    assert unit_price_of({"input": 7, "cached_input": 3}, "batch_cached_input") == 3
    assert unit_price_of({"audio_second": 5}, "batch_input") is None


tokens = st.integers(0, 10**9)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 100), tokens, tokens, tokens)
def test_a_discount_is_exact_to_half_a_pico_dollar(
    input_price: int, output_price: int, percent: int, given_tokens: int, cached: int, output: int
) -> None:
    prices = {"input": input_price, "cached_input": input_price // 2, "output": output_price}
    batch = discounted(prices, percent)
    for sku, price_pico in prices.items():
        wanted = Fraction(price_pico * (100 - percent), 100)
        assert abs(batch[f"batch_{sku}"] - wanted) <= Fraction(1, 2)
    usage = Usage(given_tokens + cached, cached, output, batch=True)

    class Version:
        id = "v"
        unit_prices = prices | batch
        terms: dict[str, Any] = {}  # noqa: RUF012  of a class for one test

    items, unpriced = rate(usage.billable(), Version())
    assert not unpriced
    expected = (
        given_tokens * batch["batch_input"]
        + cached * batch["batch_cached_input"]
        + output * batch["batch_output"]
    )
    assert sum(item.amount_pico for item in items) == expected
    assert SOURCE  # the events above come from a meter, not from a gateway
