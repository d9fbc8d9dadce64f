"""Stripe for the operator (the double behind it): routes, client, command line, and the webhook as Stripe calls it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from farebox.cli.credit import billing_profile
from farebox.cli.stripe import stripe
from fastapi.testclient import TestClient

from billing.invoicing.model import Profile
from billing.invoicing.run import run_invoicer
from billing.invoicing.store import find_invoice, put_profile
from billing.payments.context import Payments
from billing.payments.model import ITEMS
from billing.stripe_payments import StripePayments
from functions.console.dependencies import ConsoleDependencies
from functions.console.handler import create_console
from functions.payments.handler import PaymentWorker
from tests.api.console_platform import ConsolePlatform, open_platform
from tests.store.invoice_values import AFTER, call, made
from tests.stripe_double import SECRET, Call, StripeDouble, serving
from tests.stripe_http import StripeRefusal

KEY = "sk_test_double_secret"


class Shop:
    """A console with Stripe, and an organization with a final invoice that is on its way there."""

    def __init__(self, directory: Path, double: StripeDouble, address: str) -> None:
        self.console: ConsolePlatform = open_platform(directory)
        self.double = double
        self.console.clock.step(AFTER - self.console.clock.now_ms())
        double.now_s = lambda: self.console.clock.now_ms() // 1000
        self.payments = Payments(
            self.console.db,
            self.console.clock,
            StripePayments(KEY, api_base=address, webhook_secret=SECRET),
            lambda alarm: None,
        )
        self.worker = PaymentWorker(self.payments)
        before: ConsoleDependencies = self.console.app.state.dependencies
        settings = replace(before.settings, stripe_api_key=KEY, stripe_webhook_secret=SECRET)
        self.console.app = create_console(replace(before, settings=settings, payments=self.payments))
        headers = dict(self.console.client.headers)
        self.console.client = TestClient(
            self.console.app, headers=headers, base_url="http://farebox.test:8080"
        )

    def invoice(self) -> str:
        """The number of a final invoice over three dollars."""
        world, issuer = made(self.console.db)
        with self.console.db.begin() as conn:
            put_profile(conn, Profile("org_1", provider=ITEMS))
        world.store(*[call(n) for n in range(3)])
        world.close(AFTER)
        [invoice] = run_invoicer(self.console.db, issuer, AFTER).invoices
        return str(invoice.number)

    def state(self, number: str) -> str:
        with self.console.db.read() as conn:
            return find_invoice(conn, number).state

    def work(self) -> None:
        while self.worker.run_once():
            pass

    def hook(self, body: bytes, signature: str, **headers: str) -> Any:
        sent = {"stripe-signature": signature, "authorization": "", "content-type": "application/json"}
        return self.console.client.post("/api/stripe/webhook", content=body, headers=sent | headers)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    double = StripeDouble()
    with serving(double) as address:
        yield Shop(tmp_path, double, address)


def test_an_invoice_is_paid_through_the_webhook(shop: Shop) -> None:
    number = shop.invoice()
    shop.work()
    [there] = shop.double.invoices
    shop.double.mark_paid(there)
    for event in [*shop.double.pending, *shop.double.pending]:
        answer = shop.hook(*shop.double.signed(event))
        assert answer.status_code == 200, answer.text
    assert shop.state(number) == "finalized"  # stored first
    shop.work()
    assert shop.state(number) == "paid"
    told = json.loads(shop.console.cli(stripe, "webhooks").output)["data"]
    assert {each["deliveries"] for each in told} == {2}
    assert "paid" in {each["outcome"] for each in told}
    assert len(shop.console.get("/api/stripe/events?limit=1")["data"]) == 1


def test_forged_replayed_and_foreign_bodies_are_refused(shop: Shop) -> None:
    shop.double.dispute(100)
    [event] = shop.double.pending
    body, signature = shop.double.signed(event)
    for wrong in (
        (body + b" ", signature),
        shop.double.signed(event, at_s=1_700_000_000),
        shop.double.signed(event, secret="whsec_forged"),
        (body, ""),
        shop.double.signed({"hello": "world"}),
    ):
        answer = shop.hook(*wrong)
        assert (answer.status_code, answer.json()["code"]) == (400, "webhook_refused")
        assert SECRET not in answer.text
    assert shop.hook(b"x" * 300_000, signature).status_code == 413
    assert shop.console.get("/api/stripe/events")["data"] == []


def test_check_tells_what_the_key_may_do(shop: Shop) -> None:
    result = shop.console.cli(stripe, "check")
    found = json.loads(result.output)
    assert result.exit_code == 0
    assert (found["mode"], found["webhook_secret"], found["problem"]) == ("test", True, None)
    assert KEY not in result.output
    shop.double.forbidden = ("POST /v1/invoices",)
    result = shop.console.cli(stripe, "check", output="table")
    assert result.exit_code == 1
    [line] = [text for text in result.output.splitlines() if text.startswith("invoices") and "write" in text]
    assert "permissions" in line
    shop.double.before = _down
    shop.double.forbidden = ()
    result = shop.console.cli(stripe, "check")
    assert result.exit_code == 1 and "down" in json.loads(result.output)["problem"]


def _down(call: Call) -> None:
    raise StripeRefusal(503, "Stripe is down")


def test_status_shows_what_waits_and_sync_does_it_now(shop: Shop) -> None:
    number = shop.invoice()
    shop.double.before = _down
    shop.work()
    found = json.loads(shop.console.cli(stripe, "status").output)
    assert found["tasks"] == [{"kind": "invoice", "state": "waiting", "count": 1}]
    assert "Stripe is down" in found["troubled"][0]["error"]
    assert "Stripe is down" in shop.console.cli(stripe, "status", output="table").output
    shop.double.before = lambda call: None
    assert json.loads(shop.console.cli(stripe, "sync").output)["retried"] == 1
    shop.work()
    assert shop.console.get("/api/stripe/status")["invoices"] == {"open": 1}
    # Paid, and the webhook is lost: sync reads the invoice back.
    [there] = shop.double.invoices
    shop.double.mark_paid(there)
    shop.double.pending.clear()
    answer = shop.console.post("/api/stripe/sync", retry_failed=True)
    assert answer == {"retried": 0, "invoices_to_read": 1}
    shop.work()
    assert shop.state(number) == "paid"
    assert shop.console.get("/api/audit?action=stripe.sync")["data"][0]["object"] == "stripe"


def test_without_a_key_everything_else_works(tmp_path: Path) -> None:
    console = open_platform(tmp_path)
    console.post("/api/organizations", name="acme")
    refused = console.client.patch("/api/billing-profiles/acme", json={"provider": "stripe_items"})
    assert (refused.status_code, refused.json()["param"]) == (422, "provider")
    assert "FAREBOX_STRIPE_API_KEY" in refused.json()["detail"]
    assert console.client.patch("/api/billing-profiles/acme", json={"due_days": 7}).status_code == 200
    assert console.get("/api/stripe/check")["mode"] == console.get("/api/stripe/status")["mode"] == "none"
    assert console.cli(stripe, "check").exit_code == 1
    assert console.client.post("/api/stripe/sync", json={}).json()["code"] == "no_stripe_key"
    assert console.client.post("/api/stripe/webhook", content=b"{}").status_code == 503
    assert PaymentWorker(None).run_once() == 0


def test_the_library_is_loaded_with_a_key_only() -> None:
    program = "import functions.embedded, sys; print([name for name in ('stripe', 'requests') if name in sys.modules])"
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_with_a_key_an_organization_is_switched_by_command(shop: Shop) -> None:
    shop.console.post("/api/organizations", name="zebra")
    result = shop.console.cli(billing_profile, "set", "zebra", "--provider", "stripe_items")
    assert json.loads(result.output)["provider"] == "stripe_items", result.output
