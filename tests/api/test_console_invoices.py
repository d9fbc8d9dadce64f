"""Invoices, credit, credit notes, contracts and profiles over the management API."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing.close import close_and_post
from billing.invoicing.run import run_invoicer
from catalog import price_book
from core.clock import MINUTE_MS, iso, month_bounds
from tests.api.console_platform import ConsolePlatform, open_platform

MILLION = 1_000_000


@pytest.fixture
def console(tmp_path: Path) -> ConsolePlatform:
    console = open_platform(tmp_path)
    console.add_model()
    console.project()
    return console


def a_month(console: ConsolePlatform, dollars: int = 6) -> str:
    """Calls for so many dollars in the current month, which then closes; its name."""
    endpoint = console.post(
        "/api/serverless-endpoints", name="my-chat", model="acme/mock-chat", project="acme/web"
    )
    for _ in range(dollars):
        console.call(endpoint, "key_x", input=0, output=MILLION * 10 // 6)
        console.clock.advance(MINUTE_MS)
    month = month_bounds(console.clock.now_ms())
    console.clock.step(month[1] + 5 * MINUTE_MS - console.clock.now_ms())
    close_and_post(console.db, price_book, console.clock.now_ms(), MINUTE_MS)
    return iso(month[0])[:7]


def refused(console: ConsolePlatform, method: str, path: str, status: int, says: str, **body: Any) -> None:
    answer = console.client.request(method, path, json=body or None)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"], answer.text


def test_the_life_of_an_invoice(console: ConsolePlatform) -> None:
    refused(console, "POST", "/api/invoices", 409, "is not over yet", organization="acme", period="2030-01")
    period = a_month(console)
    [draft] = console.post("/api/invoices", organization="acme", period=period, draft=True)["data"]
    assert (draft["state"], draft["number"], draft["digest"]) == ("draft", None, None)
    refused(console, "GET", f"/api/invoices/{draft['id']}/verification", 409, "only a final one")
    invoice = console.post(f"/api/invoices/{draft['id']}/finalize")
    assert invoice["state"] == "finalized" and invoice["number"].startswith("FB-")
    assert (invoice["total_usd"], invoice["open_usd"]) == ("6.00", "6.00")
    assert invoice["customer"]["name"] == "acme" and len(invoice["digest"]) == 64
    refused(console, "POST", "/api/invoices", 409, "nothing to invoice", organization="acme", period=period)
    refused(console, "POST", f"/api/invoices/{invoice['id']}/finalize", 409, "never changes")
    path = f"/api/invoices/{invoice['number']}"
    refused(console, "POST", path + "/pay", 422, "6.00 is due", reference="r", amount_usd="5.00")
    assert console.post(path + "/void")["state"] == "void"
    console.clock.advance(1000)
    [again] = console.post("/api/invoices", organization="acme", period=period)["data"]
    assert again["total_usd"] == "6.00"
    paid = console.post(f"/api/invoices/{again['id']}/pay", reference="bank 7", amount_usd="6.00")
    assert (paid["state"], paid["payment_reference"], paid["open_usd"]) == ("paid", "bank 7", "0.00")
    refused(console, "POST", f"/api/invoices/{again['id']}/pay", 409, "paid already", reference="r")
    listed = console.get(f"/api/invoices?organization=acme&period={period}")["data"]
    assert [each["state"] for each in listed] == ["paid", "void"]
    assert (
        console.get("/api/invoices?state=paid")["data"]
        == [paid]
        == [console.get(f"/api/invoices/{paid['id']}")]
    )
    report = console.get(f"/api/invoices/{paid['id']}/verification")
    assert report["proved"] and report["differences"] == [] and report["events"] == 6
    refused(console, "GET", "/api/invoices/FB-1", 404, "farebox invoice list")


def test_from_a_line_to_receipts(console: ConsolePlatform) -> None:
    period = a_month(console)
    [invoice] = console.post("/api/invoices", organization="acme", period=period)["data"]
    path = f"/api/invoices/{invoice['id']}"
    lines = console.get(path + "/lines")["data"]
    total = Decimal(0)
    for line in lines:
        minutes, after = [], ""
        while True:
            page = console.get(f"{path}/lines/{line['line']}/minutes?limit=4&after={after}")
            minutes += page["data"]
            if page["next"] is None:
                break
            after = page["next"]
        assert page["line_quantity"] == line["quantity"] == sum(each["quantity"] for each in minutes)
        assert Decimal(line["amount_usd"]) == sum(Decimal(each["amount_usd"]) for each in minutes)
        total += Decimal(line["amount_usd"])
    assert total == Decimal(invoice["charges_exact_usd"])
    output = next(line for line in lines if line["sku"] == "output")
    minute = console.get(f"{path}/lines/{output['line']}/minutes")["data"][0]
    [event] = console.get(f"{path}/events?minute={minute['id']}&sku=output")["data"]
    receipt = console.get(f"/api/receipts/{event['request_id']}")
    assert receipt["cost_usd"] == minute["amount_usd"]
    refused(console, "GET", f"{path}/lines/99/minutes", 404, "no line 99")
    refused(console, "GET", f"{path}/events?minute=usage/1/2&sku=output", 404, "no minute")


def test_credit_its_balance_and_the_budget_that_it_raises(console: ConsolePlatform) -> None:
    refused(
        console,
        "POST",
        "/api/credits",
        422,
        "expired",
        organization="acme",
        amount_usd="5",
        expires_at="2020-01-01",
    )
    refused(
        console, "POST", "/api/credits", 422, "at most 2 decimal", organization="acme", amount_usd="5.001"
    )
    gift = console.post("/api/credits", organization="acme", amount_usd="2.50", skus=["output"])
    console.clock.advance(1000)
    bought = console.post(
        "/api/credits", organization="acme", amount_usd="9", kind="prepaid", raise_budget=True
    )
    console.clock.advance(1000)
    more = console.post(
        "/api/credits", organization="acme", amount_usd="1", kind="prepaid", raise_budget=True
    )
    assert bought["budget_id"] == more["budget_id"]
    budget = console.get(f"/api/budgets/{bought['budget_id']}")
    assert (budget["amount_usd"], budget["window"], budget["hard"]) == ("10", "total", True)
    period = a_month(console)
    balance = console.get("/api/credits/balance?organization=acme")
    sums = ("granted_usd", "spent_usd", "reserved_usd", "available_usd", "gone_usd")
    assert [balance[name] for name in sums] == ["12.5", "0", "6", "6.5", "0"]
    assert [each["id"] for each in balance["credits"]] == [gift["id"], bought["id"], more["id"]]
    run_invoicer(console.db, console.app.state.dependencies.issuer, console.clock.now_ms())
    balance = console.get("/api/credits/balance?organization=acme")
    assert [balance[name] for name in sums] == ["12.5", "6", "0", "6.5", "0"]
    [invoice] = console.get(f"/api/invoices?period={period}")["data"]
    assert (invoice["credit_usd"], invoice["due_usd"], invoice["state"]) == ("6.00", "0.00", "paid")
    assert console.client.delete(f"/api/credits/{more['id']}").json()["state"] == "void"
    refused(console, "DELETE", f"/api/credits/{gift['id']}", 409, "invoices took all of it")
    assert console.get("/api/credits/balance")["gone_usd"] == "1"
    assert [each["state"] for each in console.get("/api/credits")["data"]] == ["used", "active", "void"]


def test_credit_notes(console: ConsolePlatform) -> None:
    period = a_month(console)
    [invoice] = console.post("/api/invoices", organization="acme", period=period)["data"]
    note = console.post("/api/credit-notes", invoice=invoice["number"], reason="slow", lines={"1": "0.50"})
    assert (note["amount_usd"], note["lines"]) == ("0.50", [{"line": 1, "amount_usd": "0.50"}])
    assert console.get(f"/api/invoices/{invoice['id']}")["open_usd"] == "5.50"
    refused(
        console,
        "POST",
        "/api/credit-notes",
        422,
        "5.50 can be",
        invoice=invoice["id"],
        reason="x",
        amount_usd="6",
    )
    refused(
        console,
        "POST",
        "/api/credit-notes",
        422,
        "numbers of lines",
        invoice="FB-1",
        reason="x",
        lines={"a": None},
    )
    assert (
        console.get("/api/credit-notes")["data"]
        == [note]
        == [console.get(f"/api/credit-notes/{note['number']}")]
    )


def test_contracts_and_profiles(console: ConsolePlatform) -> None:
    refused(
        console,
        "POST",
        "/api/contracts",
        422,
        "a discount or a minimum",
        organization="acme",
        starts="2030-01",
    )
    month = iso(console.clock.now_ms())[:7]
    made = console.post(
        "/api/contracts", organization="acme", starts=month, discount_percent="12.5", minimum_usd="9"
    )
    assert (made["starts"], made["ends"], made["discount_percent"], made["minimum_usd"]) == (
        month,
        None,
        "12.5",
        "9",
    )
    refused(
        console,
        "POST",
        "/api/contracts",
        409,
        "end it first",
        organization="acme",
        starts="2031-01",
        minimum_usd="1",
    )
    profile = console.client.patch(
        "/api/billing-profiles/acme",
        json={"legal_name": "Acme ÖÜ Ltd", "address": "1 Long Road\nTownsville", "due_days": 14},
    ).json()
    assert (profile["legal_name"], profile["due_days"], profile["threshold_usd"]) == ("Acme ÖÜ Ltd", 14, "0")
    assert console.get("/api/billing-profiles/acme") == profile
    period = a_month(console)
    [invoice] = console.post("/api/invoices", organization="acme", period=period)["data"]
    assert (invoice["total_usd"], invoice["customer"]["name"]) == ("9.00", "Acme ÖÜ Ltd")
    refused(console, "POST", f"/api/contracts/{made['id']}/end", 409, "is closed", ends=period)
    assert console.post(f"/api/contracts/{made['id']}/end", ends="2031-01")["ends"] == "2031-01"
    assert [each["ends"] for each in console.get("/api/contracts?organization=acme")["data"]] == ["2031-01"]
