"""The double itself: its objects against the library's own annotations, and its refusals as the library reports them."""

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import stripe
from stripe.params import (
    CreditNoteCreateParams,
    CustomerCreateParams,
    InvoiceCreateParams,
    InvoiceItemCreateParams,
    PriceCreateParams,
    SubscriptionCreateParams,
    SubscriptionItemCreateParams,
)
from stripe.params.billing import MeterCreateParams, MeterEventCreateParams

from billing.payments.model import Refused, TryLater
from billing.stripe_payments import StripePayments
from tests.stripe_double import DAY_S, SECRET, Call, StripeDouble, serving
from tests.stripe_http import StripeRefusal
from tests.stripe_objects import members

NOW = 1_770_000_000
_PARAMS: dict[str, Any] = {
    "/v1/customers": CustomerCreateParams,
    "/v1/invoices": InvoiceCreateParams,
    "/v1/invoiceitems": InvoiceItemCreateParams,
    "/v1/credit_notes": CreditNoteCreateParams,
    "/v1/billing/meters": MeterCreateParams,
    "/v1/billing/meter_events": MeterEventCreateParams,
    "/v1/prices": PriceCreateParams,
    "/v1/subscriptions": SubscriptionCreateParams,
    "/v1/subscription_items": SubscriptionItemCreateParams,
}
_METER = {
    "display_name": "input",
    "event_name": "input",
    "default_aggregation": {"formula": "sum"},
    "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
    "value_settings": {"event_payload_key": "value"},
}


class Rig:
    def __init__(self, address: str, double: StripeDouble) -> None:
        self.double, self.now_s, self.address = double, NOW, address
        double.now_s = lambda: self.now_s
        self.stripe = StripePayments("sk_test_1", api_base=address, webhook_secret=SECRET)
        self.client = stripe.StripeClient("sk_test_1", base_addresses={"api": address}, max_network_retries=0)

    def customer(self) -> str:
        return self.stripe.create_customer({"name": "acme", "metadata": {"farebox_org_id": "org_1"}}, "c").id

    def event(
        self, identifier: str, customer: str, *, value: str = "5", at_s: int = NOW, key: str = ""
    ) -> None:
        payload = {"stripe_customer_id": customer, "value": value}
        params = {"event_name": "input", "identifier": identifier, "timestamp": at_s, "payload": payload}
        self.stripe.send_meter_event(params, key or f"k-{identifier}-{len(self.double.calls)}")


@pytest.fixture
def rig() -> Iterator[Rig]:
    double = StripeDouble()
    with serving(double) as address:
        yield Rig(address, double)


def _everything(rig: Rig) -> dict[type, list[dict[str, Any]]]:
    """One of each object that the double answers with."""
    customer = rig.customer()
    invoice = rig.stripe.create_invoice(
        {"customer": customer, "days_until_due": 30, "collection_method": "send_invoice"}, "i"
    )
    item = {"customer": customer, "invoice": invoice.id, "amount": 100, "currency": "usd"}
    rig.stripe.create_item(item | {"description": "x", "metadata": {"farebox_line": "1"}}, "ii")
    rig.stripe.finalize(invoice.id, "f")
    rig.stripe.create_credit_note({"invoice": invoice.id, "amount": 10, "memo": "x"}, "n")
    meter = rig.stripe.create_meter(_METER, "m")
    rig.event("e", customer)
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter}
    price = rig.stripe.create_price(
        {
            "currency": "usd",
            "unit_amount_decimal": Decimal("0.00015"),
            "recurring": recurring,
            "lookup_key": "l",
        },
        "p",
    )
    rig.stripe.create_subscription(
        {"customer": customer, "items": [{"price": price}], "metadata": {"farebox_org_id": "org_1"}}, "s"
    )
    rig.double.dispute(100)
    d = rig.double
    summary = d._summaries(
        {"customer": customer, "start_time": NOW - NOW % 60, "end_time": NOW + 60 - NOW % 60}, meter
    )
    [subscription] = d.subscriptions.values()
    return {
        stripe.Customer: [*d.customers.values()],
        stripe.Invoice: [*d.invoices.values()],
        stripe.InvoiceItem: [*d.items.values()],
        stripe.CreditNote: [*d.notes.values()],
        stripe.billing.Meter: [*d.meters.values()],
        stripe.billing.MeterEvent: d.meter_events,
        stripe.billing.MeterEventSummary: summary["data"],
        stripe.Price: [*d.prices.values()],
        stripe.Subscription: [subscription],
        stripe.SubscriptionItem: subscription["items"]["data"],
        stripe.Dispute: [*d.disputes.values()],
        stripe.Event: d.pending,
    }


def test_every_object_has_the_members_of_the_librarys_class(rig: Rig) -> None:
    for kind, found in _everything(rig).items():
        assert found, kind
        for each in found:
            assert set(each) == set(members(kind)), kind
            for name, hint in members(kind).items():
                if each[name] is None:
                    assert hint.startswith("Optional") or (kind, name) == (stripe.SubscriptionItem, "plan")
                elif hint in ("<class 'int'>", "int"):
                    assert type(each[name]) is int, (kind, name)
                elif hint in ("<class 'str'>", "str"):
                    assert type(each[name]) is str, (kind, name)
                elif hint in ("<class 'bool'>", "bool"):
                    assert type(each[name]) is bool, (kind, name)


def test_what_is_sent_is_what_the_librarys_parameters_know(rig: Rig) -> None:
    _everything(rig)
    seen = set()
    for call in rig.double.calls:
        if call.method == "POST" and call.path in _PARAMS:
            seen.add(call.path)
            unknown = set(call.params) - set(_PARAMS[call.path].__annotations__)
            assert not unknown, (call.path, unknown)
    assert seen == set(_PARAMS) - {"/v1/subscription_items"}


def test_a_repeated_key_is_replayed_with_other_parameters_refused_and_forgotten_after_a_day(rig: Rig) -> None:
    first = rig.stripe.create_customer({"name": "a"}, "key")
    assert rig.stripe.create_customer({"name": "a"}, "key") == first
    with pytest.raises(TryLater) as raised:
        rig.stripe.create_customer({"name": "b"}, "key")
    assert raised.value.spent and "same parameters" in raised.value.message
    rig.now_s += DAY_S + 1
    assert rig.stripe.create_customer({"name": "b"}, "key") != first
    assert len(rig.double.customers) == 2


def test_a_500_is_replayed_and_says_so(rig: Rig) -> None:
    def fail(call: Call) -> None:
        raise StripeRefusal(500, "An unknown error occurred")

    rig.double.before = fail
    with pytest.raises(TryLater) as raised:
        rig.stripe.create_customer({"name": "a"}, "key")
    assert not raised.value.spent
    rig.double.before = lambda call: None
    with pytest.raises(TryLater) as raised:
        rig.stripe.create_customer({"name": "a"}, "key")
    assert raised.value.spent and raised.value.retry_after_ms >= 60_000


def test_an_answer_that_takes_too_long_may_have_had_its_effect(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("billing.stripe_payments._TIMEOUT_S", (1, 1))
    hasty = StripePayments("sk_test_1", api_base=rig.address)
    rig.double.delay_s = 2.0
    with pytest.raises(TryLater, match="cannot be reached") as raised:
        hasty.create_customer({"name": "a"}, "key")
    assert not raised.value.spent  # the same key is right: it makes no second one
    rig.double.delay_s = 0.0
    while not rig.double.customers:
        time.sleep(0.05)
    rig.stripe.create_customer({"name": "a"}, "key")
    assert len(rig.double.customers) == 1


def test_meter_events_are_counted_once_for_a_day(rig: Rig) -> None:
    customer, meter = rig.customer(), rig.stripe.create_meter(_METER, "m")
    rig.event("one", customer)
    rig.event("one", customer)  # a duplicate is delivered, no error
    window = (NOW - NOW % 60, NOW - NOW % 60 + 60)
    assert rig.stripe.metered(meter, customer, *window) == 5
    rig.now_s += DAY_S + 1
    rig.event("one", customer)  # forgotten: it counts again
    assert rig.stripe.metered(meter, customer, *window) == 10


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"at_s": NOW - 35 * DAY_S - 1}, "35 calendar days"),
        ({"at_s": NOW + 301}, "5 minutes"),
        ({"value": "1" * 16}, "too many digits"),
        ({"identifier": "i" * 101}, "at most 100"),
    ],
)
def test_meter_events_out_of_bounds_are_refused(rig: Rig, fields: dict[str, Any], said: str) -> None:
    customer = rig.customer()
    rig.stripe.create_meter(_METER, "m")
    with pytest.raises(Refused, match=said):
        rig.event(fields.pop("identifier", "one"), customer, **fields)
    assert rig.double.meter_events == []


def test_two_events_of_a_customer_and_meter_at_once_are_refused(rig: Rig) -> None:
    import threading

    customer = rig.customer()
    rig.stripe.create_meter(_METER, "m")
    rig.double.delay_s = 0.5
    results: list[TryLater | None] = []

    def send(name: str) -> None:
        try:
            rig.event(name, customer)
            results.append(None)
        except TryLater as later:
            results.append(later)

    threads = [threading.Thread(target=send, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result is None for result in results) == [False, True]
    assert next(r for r in results if r).message.startswith("429")


def test_what_no_meter_counts_is_told_later(rig: Rig) -> None:
    rig.event("one", rig.customer())  # taken
    [event] = rig.double.pending
    assert event["type"] == "v1.billing.meter.no_meter_found"
    assert "one" in rig.stripe.meter_errors(event["id"])
    told = rig.stripe.hear(*rig.double.signed(event))
    assert (told.id, told.type) == (event["id"], event["type"])


def test_what_was_not_signed_lately_by_stripe_is_not_heard(rig: Rig) -> None:
    rig.double.dispute(100)
    [event] = rig.double.pending
    body, signature = rig.double.signed(event)
    assert rig.stripe.hear(body, signature).type == "charge.dispute.created"
    forged = json.dumps({**event, "type": "invoice.paid"}).encode()
    for wrong in (
        (forged, signature),
        rig.double.signed(event, secret="whsec_other"),
        rig.double.signed(event, at_s=1_700_000_000),
        (body, ""),
        (b"\xff", signature),
        rig.double.signed({"object": "customer"}),
    ):
        with pytest.raises(Refused):
            rig.stripe.hear(*wrong)


def test_the_key_is_shown_nowhere(rig: Rig) -> None:
    assert "sk_test" not in repr(rig.stripe)
    with pytest.raises(TryLater) as raised:
        StripePayments("rk_wrong_secret", api_base=rig.address).customer("x")
    assert "secret" not in raised.value.message
