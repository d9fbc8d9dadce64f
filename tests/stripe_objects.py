"""Stripe's objects as the double answers them: every member that the library's classes know, most of them empty.

`test_stripe_double.py` holds them against the annotations of those classes.
"""

import functools
import re
from datetime import UTC, datetime
from typing import Any, get_args

import stripe

Json = dict[str, Any]


@functools.cache
def members(kind: type) -> dict[str, str]:
    """Names and annotations of the members that the library's class has, but for `deleted`."""
    found = {name: _text(hint) for name, hint in kind.__annotations__.items() if name != "OBJECT_NAME"}
    found.pop("deleted", None)
    return {name: hint for name, hint in found.items() if not name.startswith("_")}


def _text(hint: Any) -> str:
    """An annotation as text; what may be None begins with Optional, however it is spelled."""
    return f"Optional[{hint}]" if type(None) in get_args(hint) else str(hint)


def empty(kind: type) -> Json:
    """None where that is allowed, else the smallest value of the member's type."""
    return {name: _smallest(hint) for name, hint in members(kind).items()}


def _smallest(hint: str) -> Any:
    if hint.startswith(("Optional[", "typing.Optional")):
        return None
    if hint.startswith(("List", "typing.List")):
        return []
    if re.match(r"(UntypedStripeObject|stripe._stripe_object.Untyped)", hint):
        return {}
    if "ListObject" in hint:
        return {"object": "list", "data": [], "has_more": False, "url": ""}
    plain: Json = {"int": 0, "bool": False, "str": "", "float": 0.0, "Decimal": "0"}
    name = hint.removeprefix("<class '").removesuffix("'>")
    return plain.get(name, plain.get(name.rpartition(".")[2], {}))


def _made(kind: type, name: str, now_s: int, /, **values: Any) -> Json:
    made = empty(kind) | values
    if "id" in made:
        made["id"] = name
    if "created" in made:
        made["created"] = now_s
    (made["object"],) = get_args(kind.__annotations__["object"])
    return made


def customer(name: str, now_s: int, params: Json) -> Json:
    return _made(
        stripe.Customer,
        name,
        now_s,
        name=params.get("name"),
        email=params.get("email"),
        description=params.get("description"),
        metadata=params.get("metadata", {}),
        balance=0,
        invoice_settings=empty(stripe.Customer.InvoiceSettings),
    )


def invoice(name: str, now_s: int, params: Json, customer: Json) -> Json:
    return _made(
        stripe.Invoice,
        name,
        now_s,
        customer=customer["id"],
        currency=params.get("currency", "usd"),
        collection_method=params.get("collection_method", "send_invoice"),
        auto_advance=params.get("auto_advance") == "true",
        description=params.get("description"),
        footer=params.get("footer"),
        metadata=params.get("metadata", {}),
        status="draft",
        total_taxes=[],
        total_excluding_tax=0,
        period_start=now_s,
        period_end=now_s,
    )


def invoice_item(name: str, now_s: int, params: Json) -> Json:
    return _made(
        stripe.InvoiceItem,
        name,
        now_s,
        amount=int(params["amount"]),
        customer=params["customer"],
        currency=params["currency"],
        invoice=params.get("invoice"),
        description=params.get("description"),
        metadata=params.get("metadata", {}),
        date=now_s,
        period={"start": now_s, "end": now_s},
        quantity=1,
        quantity_decimal="1",
    )


def credit_note(name: str, now_s: int, params: Json, invoice: Json) -> Json:
    amount = int(params["amount"])
    return _made(
        stripe.CreditNote,
        name,
        now_s,
        amount=amount,
        total=amount,
        subtotal=amount,
        currency=invoice["currency"],
        customer=invoice["customer"],
        invoice=invoice["id"],
        memo=params.get("memo"),
        metadata=params.get("metadata", {}),
        number=f"{invoice['number']}-CN",
        status="issued",
        type="pre_payment" if invoice["status"] == "open" else "post_payment",
    )


def meter(name: str, now_s: int, params: Json) -> Json:
    return _made(
        stripe.billing.Meter,
        name,
        now_s,
        event_name=params["event_name"],
        display_name=params["display_name"],
        default_aggregation=params["default_aggregation"],
        customer_mapping=params["customer_mapping"],
        value_settings=params["value_settings"],
        status="active",
        updated=now_s,
        status_transitions={"deactivated_at": None},
    )


def meter_event(now_s: int, params: Json) -> Json:
    return _made(
        stripe.billing.MeterEvent,
        "",
        now_s,
        event_name=params["event_name"],
        identifier=params["identifier"],
        payload=params["payload"],
        timestamp=params["timestamp"],
    )


def meter_summary(name: str, meter: str, start_s: int, end_s: int, value: int) -> Json:
    return _made(
        stripe.billing.MeterEventSummary,
        name,
        0,
        meter=meter,
        start_time=start_s,
        end_time=end_s,
        aggregated_value=value,
    )


def meter_error(name: str, now_s: int, code: str, identifier: str, meter: Json | None) -> Json:
    """A thin event with its data, as it is fetched."""
    kind = "error_report_triggered" if meter else "no_meter_found"
    sample = {"error_message": code, "request": {"identifier": identifier}}
    reason = {
        "error_count": 1,
        "error_types": [{"code": code, "error_count": 1, "sample_errors": [sample]}],
    }
    at = datetime.fromtimestamp(now_s, UTC).isoformat().replace("+00:00", "Z")
    event: Json = {
        "id": name,
        "object": "v2.core.event",
        "type": f"v1.billing.meter.{kind}",
        "created": at,
        "livemode": False,
        "context": None,
        "reason": None,
        "data": {
            "developer_message_summary": f"There is 1 invalid event: {code}",
            "reason": reason,
            "validation_start": at,
            "validation_end": at,
        },
    }
    if meter:
        url = f"/v1/billing/meters/{meter['id']}"
        event["related_object"] = {"id": meter["id"], "type": "billing.meter", "url": url}
    return event


def price(name: str, now_s: int, params: Json) -> Json:
    return _made(
        stripe.Price,
        name,
        now_s,
        active=True,
        billing_scheme="per_unit",
        currency=params["currency"],
        lookup_key=params.get("lookup_key"),
        metadata=params.get("metadata", {}),
        product=f"prod_{name}",
        recurring=empty(stripe.Price.Recurring) | params["recurring"] | {"interval_count": 1},
        type="recurring",
        unit_amount_decimal=params["unit_amount_decimal"],
    )


def subscription(name: str, now_s: int, params: Json) -> Json:
    return _made(
        stripe.Subscription,
        name,
        now_s,
        customer=params["customer"],
        collection_method=params.get("collection_method", "charge_automatically"),
        days_until_due=int(params.get("days_until_due", 0)),
        currency="usd",
        metadata=params.get("metadata", {}),
        status="active",
        start_date=int(params.get("backdate_start_date", now_s)),
        billing_cycle_anchor=now_s,
        items={"object": "list", "data": [], "has_more": False, "url": "/v1/subscription_items"},
    )


def subscription_item(name: str, now_s: int, price: Json, subscription: str) -> Json:
    return _made(stripe.SubscriptionItem, name, now_s, price=price, subscription=subscription, plan=None)


def dispute(name: str, now_s: int, amount: int) -> Json:
    return _made(
        stripe.Dispute,
        name,
        now_s,
        amount=amount,
        currency="usd",
        reason="fraudulent",
        status="needs_response",
    )


def event(name: str, now_s: int, kind: str, about: Json) -> Json:
    return _made(
        stripe.Event,
        name,
        now_s,
        type=kind,
        data={"object": dict(about)},
        api_version=None,
        pending_webhooks=1,
    )
