"""What Stripe tells (the double): stored, processed once, in any order, whatever came first."""

from billing.invoicing.settle import record_payment
from billing.payments import outbox, store
from billing.payments.push import push_invoice
from core.database import Database
from tests.store.invoice_values import AFTER, HOUR, check
from tests.store.payment_values import Paying, paying
from tests.stripe_double import Call
from tests.stripe_http import StripeRefusal


def outcomes(db: Database) -> dict[str, str]:
    with db.read() as conn:
        return {each.type: each.outcome for each in store.list_events(conn, 100)}


def paid_at_stripe(p: Paying) -> str:
    [there] = p.double.invoices
    p.double.mark_paid(there)
    return str(there)


def test_any_order_and_twice_is_one_payment(db: Database) -> None:
    with paying(db) as p:
        invoice = p.invoice()
        p.work()
        paid_at_stripe(p)
        told = list(p.double.pending)
        for event in [*reversed(told), *told]:
            p.deliver(event)
            p.work()
        assert check(db, invoice.id).state == "paid"
        with db.read() as conn:
            events = store.list_events(conn, 100)
        assert {each.deliveries for each in events} == {2}
        assert outcomes(db)["invoice.paid"] == "paid" or outcomes(db)["invoice.finalized"] == "paid"
        assert p.alarms == []


def test_the_payment_is_told_before_the_answer_to_finalizing_arrives(db: Database) -> None:
    with paying(db) as p:
        invoice = p.invoice()

        def at_once(call: Call) -> None:
            if call.path.endswith("/finalize"):
                p.double.invoices[call.path.split("/")[3]]["status"] = "paid"
                raise StripeRefusal(503, "the answer is lost")

        p.double.after = at_once
        p.worker.run_once()
        p.double.after = lambda call: None
        p.deliver_all()
        p.work()
        assert p.ours(invoice).state == "paid"
        p.work(hours=1)  # and the push finds it as it is
        assert len(p.double.invoices) == 1 and p.alarms == []


def test_failures_disputes_and_void_are_alarms(db: Database) -> None:
    with paying(db) as p:
        invoice = p.invoice()
        p.work()
        [there] = p.double.invoices.values()
        there["attempt_count"] = 1
        p.double._tell("invoice.payment_failed", there)
        p.double.dispute(300)
        p.deliver_all()
        p.work()
        there["status"] = "void"
        p.double._tell("invoice.voided", there)
        p.deliver_all()
        p.work()
        kinds = [alarm.kind for alarm in p.alarms]
        assert sorted(kinds) == ["payment_dispute", "payment_failed", "voided_at_provider"]
        assert "needs_response" in next(a.detail for a in p.alarms if a.kind == "payment_dispute")
        assert p.ours(invoice).state == "finalized"


def test_finalizing_that_failed_there_is_an_alarm(db: Database) -> None:
    with paying(db) as p:
        p.invoice()
        p.work()
        [there] = p.double.invoices.values()
        there["status"], there["last_finalization_error"] = "draft", {"code": "x", "message": "no address"}
        p.double._tell("invoice.finalization_failed", there)
        p.deliver_all()
        p.work()
        assert [(a.kind, "no address" in a.detail) for a in p.alarms] == [("finalization_failed", True)]


def test_paid_with_another_total_is_an_alarm_and_not_paid_here(db: Database) -> None:
    with paying(db) as p:
        invoice = p.invoice()
        p.work()
        next(iter(p.double.items.values()))["amount"] += 1
        paid_at_stripe(p)
        p.deliver_all()
        p.work()
        assert p.ours(invoice).state == "finalized"
        assert "provider_differs" in [alarm.kind for alarm in p.alarms]


def test_what_is_not_ours_is_ignored_with_a_reason(db: Database) -> None:
    with paying(db) as p:
        customer = p.payments.provider.create_customer({"name": "x"}, "x")
        foreign = {"customer": customer.id, "days_until_due": 1, "collection_method": "send_invoice"}
        p.payments.provider.create_invoice(foreign, "y")
        p.payments.provider.create_invoice(foreign | {"metadata": {"farebox_invoice_id": "inv_gone"}}, "z")
        for there in list(p.double.invoices.values()):
            p.double._tell("invoice.paid", there)
        p.double._tell("customer.created", p.double.customers[customer.id])
        p.deliver_all()
        p.work()
        with db.read() as conn:
            said = [each.outcome for each in store.list_events(conn, 100)]
        assert len(said) == 5 and all(text.startswith("ignored: ") for text in said)


def test_events_of_meters_that_were_not_counted_are_alarms(db: Database) -> None:
    with paying(db) as p:
        payload = {"stripe_customer_id": "cus_gone", "value": "1"}
        event = {
            "event_name": "nothing",
            "identifier": "lost-one",
            "timestamp": AFTER // 1000,
            "payload": payload,
        }
        p.payments.provider.send_meter_event(event, "k")
        p.deliver_all()
        p.work()
        assert [(a.kind, "lost-one" in a.detail) for a in p.alarms] == [("meter_events_refused", True)]


def test_processing_is_tried_again_when_stripe_is_down(db: Database) -> None:
    with paying(db) as p:
        invoice = p.invoice()
        p.work()
        paid_at_stripe(p)

        def down(call: Call) -> None:
            raise StripeRefusal(503, "down")

        p.double.before = down
        p.deliver_all()
        p.work()
        assert p.ours(invoice).state == "finalized"
        p.double.before = lambda call: None
        p.work(hours=1)
        assert p.ours(invoice).state == "paid"


def test_paid_by_hand_and_by_stripe_is_paid_once(db: Database) -> None:
    with paying(db) as p:
        invoice = p.invoice()
        p.work()
        paid_at_stripe(p)
        with db.begin() as conn:
            record_payment(conn, invoice.id, amount_cents=None, reference="bank", now_ms=AFTER + HOUR)
        p.deliver_all()
        p.work()
        assert check(db, invoice.id).payment_reference == "bank"
        with db.read() as conn:
            task = outbox.find(conn, f"invoice/{invoice.id}")
        assert task is not None
        assert push_invoice(p.payments, task) == p.ours(invoice).provider_id  # once more changes nothing
        assert len(p.double.invoices) == 1
