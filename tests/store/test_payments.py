"""Invoices at Stripe (the double, through the real library): once, exact, whatever breaks when."""

import itertools
import time

import pytest

from billing.invoicing import credit
from billing.invoicing.notes import make_note
from billing.invoicing.run import run_invoicer
from billing.invoicing.settle import record_payment, void_invoice
from billing.payments import outbox, store
from billing.payments.model import ITEMS
from core.database import Database
from metering.store import list_alarms
from tests.store.invoice_values import AFTER, HOUR, call, check
from tests.store.payment_values import Paying, paying
from tests.stripe_double import Call
from tests.stripe_http import StripeRefusal


def assert_one_exact_invoice(p: Paying, due_cents: int) -> None:
    [there] = p.double.invoices.values()
    assert there["status"] in ("open", "paid")
    assert there["total"] == due_cents
    names = [each["metadata"]["farebox_line"] for each in p.double.items.values()]
    assert len(names) == len(set(names)) > 0
    assert len(p.double.customers) == 1


def test_an_invoice_becomes_one_at_stripe_and_its_payment_is_ours(db: Database) -> None:
    with paying(db) as p:
        with db.begin() as conn:
            credit.grant_credit(conn, credit.NewGrant("org_1", "promotional", 50), AFTER - HOUR)
        invoice = p.invoice()
        assert invoice.due_cents == 250
        p.work()
        assert_one_exact_invoice(p, 250)
        [there] = p.double.invoices.values()
        assert p.ours(invoice).provider_id == there["id"]
        assert min(each["amount"] for each in p.double.items.values()) == -50  # the credit
        assert (there["collection_method"], there["metadata"]["farebox_number"]) == (
            "send_invoice",
            invoice.number,
        )
        assert invoice.lines_hash in there["footer"]
        with db.read() as conn:
            amount = store.provider_amount(conn, invoice.id)
        assert amount is not None and (amount.provider_id, amount.due_cents) == (there["id"], 250)
        p.double.mark_paid(there["id"])
        p.deliver_all()
        p.work()
        paid = check(db, invoice.id)
        assert (paid.state, paid.payment_reference) == ("paid", there["id"])
        assert p.alarms == []


def test_a_customer_with_a_payment_method_is_charged(db: Database) -> None:
    with paying(db) as p:
        first = p.invoice()
        p.work()
        [customer] = p.double.customers.values()
        customer["invoice_settings"]["default_payment_method"] = "pm_1"
        with db.begin() as conn:
            void_invoice(conn, first.id, AFTER)
        p.work()
        with db.begin() as conn:
            from billing.invoicing.issue import invoice_period

            invoice_period(conn, p.issuer, "org_1", (first.start_ms, first.end_ms), AFTER)
        p.work()
        old, new = p.double.invoices.values()
        assert (old["status"], new["status"], new["collection_method"]) == (
            "void",
            "open",
            "charge_automatically",
        )


def test_nothing_due_is_nothing_at_stripe(db: Database) -> None:
    with paying(db) as p:
        with db.begin() as conn:
            credit.grant_credit(conn, credit.NewGrant("org_1", "prepaid", 100_00), AFTER - HOUR)
        assert p.invoice().state == "paid"
        p.work()
        assert p.double.calls == []


def test_a_crash_at_any_call_leaves_one_exact_invoice(db: Database) -> None:
    """At each call in turn, before its effect and after it: the process dies, another goes on."""
    if db.engine.dialect.name != "sqlite":
        pytest.skip("the steps are the same on every database; one is enough")
    for number, when in itertools.product(range(20), ("before", "after")):
        with db.begin() as conn:
            _forget_everything(conn)
        with paying(db) as p:
            invoice = p.invoice(2)
            crash = _Crash(number)
            setattr(p.double, when, crash)
            died = _work_until_death(p, crash)
            setattr(p.double, when, lambda call: None)
            if died:
                p.restarted()
            p.work()
            assert_one_exact_invoice(p, invoice.due_cents)
            assert p.ours(invoice).provider_id
            assert p.alarms == []
            if not died:
                assert number >= 5
                return
    raise AssertionError("an invoice took more calls than that")


class _Crash:
    """The n-th call is the last thing that the process does."""

    def __init__(self, number: int) -> None:
        self.left, self.came = number, False

    def __call__(self, call: Call) -> None:
        self.left -= 1
        if self.left == -1:
            self.came = True
            raise StripeRefusal(503, "the line is cut")


def _work_until_death(p: Paying, crash: _Crash) -> bool:
    # A worker whose process died writes nothing: its task stays claimed, without an error.
    postpone, outbox.postpone = outbox.postpone, lambda *a, **k: None
    try:
        p.worker.run_once()
    finally:
        outbox.postpone = postpone
    return crash.came


def _forget_everything(conn: object) -> None:
    from core.database import metadata

    for table in reversed(metadata.sorted_tables):
        conn.execute(table.delete())  # type: ignore[attr-defined]


def test_an_hour_without_stripe_is_noticed_by_the_operator_only(db: Database) -> None:
    with paying(db) as p:
        invoice = p.invoice()

        def down(call: Call) -> None:
            raise StripeRefusal(503, "Stripe is down")

        p.double.before = down
        p.work(hours=1)
        assert [alarm.kind for alarm in p.alarms] == ["provider_unavailable"]
        with db.read() as conn:
            [waiting] = outbox.troubled(conn, 10)
            assert "Stripe is down" in waiting.last_error
            assert [alarm.kind for alarm in list_alarms(conn)] == ["provider_unavailable"]
        assert p.ours(invoice).state == "finalized"
        assert 5 <= len(p.double.calls) < 100  # it backs off
        p.double.before = lambda call: None
        p.work(hours=1)
        assert_one_exact_invoice(p, invoice.due_cents)


def test_more_than_a_day_without_stripe_doubles_nothing(db: Database) -> None:
    """The invoice was made, its answer lost; when Stripe is back, it has forgotten the idempotency keys."""
    with paying(db) as p:
        invoice = p.invoice()

        def after(call: Call) -> None:
            if call.path == "/v1/invoices":
                p.double.before = down
                raise StripeRefusal(503, "cut")

        def down(call: Call) -> None:
            raise StripeRefusal(503, "down")

        p.double.after = after
        p.work(hours=30, step_ms=HOUR)
        p.double.before = p.double.after = lambda call: None
        p.work(hours=1)
        assert_one_exact_invoice(p, invoice.due_cents)


def test_a_replayed_500_gets_another_key(db: Database) -> None:
    """Stripe answers a key that once got 500 with 500 for a day: with the effect there, or without."""
    for effect in (False, True):
        with db.begin() as conn:
            _forget_everything(conn)
        with paying(db) as p:
            invoice = p.invoice()
            failed: list[str] = []

            def fail(call: Call, failed: list[str] = failed) -> None:
                if call.method == "POST" and not any(call.path == path for path in failed):
                    failed.append(call.path)
                    raise StripeRefusal(500, "An unknown error occurred")

            setattr(p.double, "after" if effect else "before", fail)
            p.work(hours=2)
            assert {"/v1/customers", "/v1/invoices", "/v1/invoiceitems"} <= set(failed)
            assert_one_exact_invoice(p, invoice.due_cents)


def test_429_waits_as_long_as_it_is_told(db: Database) -> None:
    with paying(db) as p:
        p.invoice()
        began_ms = p.clock.now_ms()

        def busy(call: Call) -> None:
            if p.clock.now_ms() < began_ms + 240_000:
                raise StripeRefusal(429, "Too many requests", retry_after="240")

        p.double.before = busy
        p.work(hours=1, step_ms=10_000)
        refused = [call for call in p.double.calls if call.status == 429]
        assert len(refused) == 1
        assert_one_exact_invoice(p, 300)


def test_a_total_that_differs_is_an_alarm_and_stays_a_draft(db: Database) -> None:
    with paying(db) as p:
        p.invoice()

        def meddle(call: Call) -> None:
            if call.path == "/v1/invoiceitems":
                next(iter(p.double.items.values()))["amount"] = 12_345

        p.double.after = meddle
        p.work()
        [there] = p.double.invoices.values()
        assert there["status"] == "draft"
        assert "provider_differs" in [alarm.kind for alarm in p.alarms]
        with db.read() as conn:
            assert outbox.counts(conn) == {("invoice", "failed"): 1}


def test_void_paid_and_credited_are_passed_on(db: Database) -> None:
    with paying(db) as p:
        invoice = p.invoice()
        p.work()
        with db.begin() as conn:
            make_note(conn, p.issuer, invoice.id, reason="too slow", now_ms=AFTER, amount_cents=120)
            record_payment(conn, invoice.id, amount_cents=180, reference="bank", now_ms=AFTER)
        p.work()
        [note] = p.double.notes.values()
        [there] = p.double.invoices.values()
        assert (note["amount"], note["invoice"], there["status"]) == (120, there["id"], "paid")
        assert p.alarms == []


def test_void_before_stripe_had_it_is_never_sent(db: Database) -> None:
    with paying(db) as p:
        invoice = p.invoice()
        with db.begin() as conn:
            void_invoice(conn, invoice.id, AFTER)
        p.work()
        assert p.double.invoices == {}
        with db.read() as conn:
            assert outbox.counts(conn) == {("invoice", "done"): 1, ("void", "done"): 1}


def test_a_slow_stripe_delays_nobody_else(db: Database) -> None:
    with paying(db) as p:
        p.invoice()
        p.double.delay_s = 2.0
        import threading

        worker = threading.Thread(target=p.worker.run_once)
        worker.start()
        time.sleep(0.3)  # it is asking by now
        began = time.monotonic()
        p.world.store(call(99, at_ms=AFTER, org_id="org_1"))
        p.world.close(AFTER + HOUR)
        run_invoicer(db, p.issuer, AFTER + HOUR)
        assert time.monotonic() - began < 2.0
        p.double.delay_s = 0.0
        worker.join()


def test_a_forbidden_key_waits_for_the_operator(db: Database) -> None:
    with paying(db) as p:
        p.invoice()
        p.double.forbidden = ("POST /v1/customers",)
        p.work()
        assert [alarm.kind for alarm in p.alarms] == ["provider_unavailable"]
        assert "permissions" in p.alarms[0].detail
        p.double.forbidden = ()
        p.work(hours=1)
        assert_one_exact_invoice(p, 300)


def test_what_a_key_may_do(db: Database) -> None:
    with paying(db) as p:
        assert all(each.allowed for each in p.payments.provider.permissions())
        p.double.forbidden = ("POST /v1/invoices", "GET /v1/prices")
        refused = [(e.resource, e.access) for e in p.payments.provider.permissions() if not e.allowed]
        assert refused == [("invoices", "write"), ("prices", "read")]
        assert p.double.invoices == p.double.customers == p.double.meters == {}
        assert p.double.meter_events == []


def test_several_workers_make_one_invoice(db: Database) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from functions.payments.handler import PaymentWorker

    with paying(db, ITEMS) as p:
        invoice = p.invoice()
        workers = [PaymentWorker(p.payments) for _ in range(3)]
        with ThreadPoolExecutor(3) as threads:
            assert sum(threads.map(lambda worker: worker.run_once(), workers)) == 1
        assert_one_exact_invoice(p, invoice.due_cents)
