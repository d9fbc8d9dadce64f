"""A double of Stripe's REST API: what the platform uses of it, with its refusals. Spoken to by Stripe's own library only.

It runs on a thread of its own, on a manual clock, and can be down, slow, failing or forbidding as a test asks.
"""

import hashlib
import hmac
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests import stripe_objects as objects
from tests.stripe_http import ROUTES, StripeRefusal, error_body, listed, unflatten
from tests.stripe_objects import Json

DAY_S = 86_400
SECRET = "whsec_of_the_double"


@dataclass
class Call:
    """One request as it came in."""

    method: str
    path: str
    params: Json
    key: str
    status: int = 0


@dataclass
class StripeDouble:
    """The account. `before` and `after` are called around each request's effect, and may raise StripeRefusal."""

    now_s: Callable[[], int] = lambda: int(time.time())
    invoices: dict[str, Json] = field(default_factory=dict)
    items: dict[str, Json] = field(default_factory=dict)
    customers: dict[str, Json] = field(default_factory=dict)
    notes: dict[str, Json] = field(default_factory=dict)
    meters: dict[str, Json] = field(default_factory=dict)
    prices: dict[str, Json] = field(default_factory=dict)
    subscriptions: dict[str, Json] = field(default_factory=dict)
    meter_events: list[Json] = field(default_factory=list)
    disputes: dict[str, Json] = field(default_factory=dict)
    thin: dict[str, Json] = field(default_factory=dict)
    pending: list[Json] = field(default_factory=list)  # events that were not delivered yet
    calls: list[Call] = field(default_factory=list)
    before: Callable[[Call], None] = lambda call: None
    after: Callable[[Call], None] = lambda call: None
    forbidden: tuple[str, ...] = ()  # "POST /v1/invoices": prefixes that the key may not call
    delay_s: float = 0.0
    _keys: dict[str, tuple[str, int, Json, dict[str, str], int]] = field(default_factory=dict)
    _identifiers: dict[tuple[str, str], int] = field(default_factory=dict)
    _busy: set[tuple[str, str]] = field(default_factory=set)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # -- HTTP --

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._serve, methods=["GET", "POST", "DELETE"])])

    async def _serve(self, request: Request) -> Response:
        import asyncio

        body = (await request.body()).decode()
        return await asyncio.to_thread(self._answer, request, body)

    def _answer(self, request: Request, body: str) -> Response:
        pairs = parse_qsl(str(request.url.query), keep_blank_values=True) + parse_qsl(
            body, keep_blank_values=True
        )
        call = Call(
            request.method, request.url.path, unflatten(pairs), request.headers.get("idempotency-key", "")
        )
        self.calls.append(call)
        try:
            if not request.headers.get("authorization", "").startswith("Bearer sk_test_"):
                raise StripeRefusal(401, "Invalid API Key provided")
            if any(f"{call.method} {call.path}".startswith(each) for each in self.forbidden):
                raise StripeRefusal(
                    403, "The provided key does not have the required permissions for this endpoint"
                )
            with self._alone(call):
                time.sleep(self.delay_s)
                status, answer, headers = self._once(call)
        except StripeRefusal as refusal:
            status, answer, headers = refusal.status, error_body(refusal), refusal.headers
        call.status = status
        if status == -1:
            return Response("", status_code=502, headers={"content-type": "text/html"})
        return JSONResponse(answer, status, headers={"request-id": f"req_{len(self.calls)}"} | headers)

    @contextmanager
    def _alone(self, call: Call) -> Iterator[None]:
        """One event of a customer and meter at a time."""
        if call.path != "/v1/billing/meter_events":
            yield
            return
        who = (
            str(call.params.get("event_name")),
            str(call.params.get("payload", {}).get("stripe_customer_id")),
        )
        with self._lock:
            if who in self._busy:
                text = "Request rate limit exceeded: one meter event at a time for a customer and meter."
                raise StripeRefusal(429, text, code="lock_timeout")
            self._busy.add(who)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(who)

    def _once(self, call: Call) -> tuple[int, Json, dict[str, str]]:
        """Idempotency: the first answer is replayed for a day, a 500 too; other parameters are refused."""
        if call.method != "POST" or not call.key:
            return 200, self._act(call), {}
        asked = json.dumps([call.path, call.params], sort_keys=True)
        with self._lock:
            known = self._keys.get(call.key)
            if known is not None and known[4] < self.now_s() - DAY_S:
                known = None
        if known is not None:
            if known[0] != asked:
                text = (
                    "Keys for idempotent requests can only be used with the same parameters they were first used with. "
                    f"Try using a key other than '{call.key}' if you meant to execute a different request."
                )
                raise StripeRefusal(400, text, kind="idempotency_error")
            return known[1], known[2], known[3] | {"idempotent-replayed": "true"}
        answered: tuple[int, Json, dict[str, str]]
        try:
            answered = 200, self._act(call), {}
        except StripeRefusal as refusal:
            if (refusal.status < 500 and refusal.status != 400) or refusal.status in (502, 503):
                raise  # nothing began
            answered = refusal.status, error_body(refusal), refusal.headers
        with self._lock:
            self._keys[call.key] = (asked, *answered, self.now_s())
        return answered

    def _act(self, call: Call) -> Json:
        self.before(call)
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, call.path)
            if found and method == call.method:
                with self._lock:
                    answer: Json = getattr(self, name)(call.params, *found.groups())
                self.after(call)
                return answer
        raise StripeRefusal(404, f"Unrecognized request URL ({call.method}: {call.path}).")

    # -- customers --

    def _create_customer(self, params: Json) -> Json:
        made = objects.customer(self._id("cus"), self.now_s(), params)
        self.customers[made["id"]] = made
        return made

    def _update_customer(self, params: Json, name: str) -> Json:
        found = self._get(self.customers, name, "customer")
        found.update({key: value for key, value in params.items() if key in found})
        return found

    def _customer(self, params: Json, name: str) -> Json:
        return self._get(self.customers, name, "customer")

    def _customers(self, params: Json) -> Json:
        return listed(self.customers.values(), params, "/v1/customers")

    def _search_customers(self, params: Json) -> Json:
        wanted = re.fullmatch(r"metadata\['(\w+)'\]:'([^']*)'", str(params["query"]))
        assert wanted, params
        found = [c for c in self.customers.values() if c["metadata"].get(wanted[1]) == wanted[2]]
        return {"object": "search_result", "data": found, "has_more": False, "url": "/v1/customers/search"}

    # -- invoices --

    def _create_invoice(self, params: Json) -> Json:
        customer = self._get(self.customers, params.get("customer", ""), "customer")
        charging = params.get("collection_method") == "charge_automatically"
        if not charging and "days_until_due" not in params:
            raise StripeRefusal(
                400, "You must pass `days_until_due` or `due_date` with collection_method send_invoice"
            )
        made = objects.invoice(self._id("in"), self.now_s(), params, customer)
        self.invoices[made["id"]] = made
        self._tell("invoice.created", made)
        return made

    def _invoice(self, params: Json, name: str) -> Json:
        return self._sum(self._get(self.invoices, name, "invoice"))

    def _invoices(self, params: Json) -> Json:
        wanted = [
            self._sum(each)
            for each in reversed(self.invoices.values())
            if params.get("customer") in (None, each["customer"])
        ]
        return listed(wanted, params, "/v1/invoices")

    def _create_item(self, params: Json) -> Json:
        self._get(self.customers, params.get("customer", ""), "customer")
        if not re.fullmatch(r"-?\d+", str(params.get("amount", ""))):
            raise StripeRefusal(400, f"Invalid integer: {params.get('amount')}")
        invoice = params.get("invoice")
        if invoice is not None and self._get(self.invoices, invoice, "invoice")["status"] != "draft":
            raise StripeRefusal(400, "The invoice is already finalized.", code="invoice_not_editable")
        made = objects.invoice_item(self._id("ii"), self.now_s(), params)
        self.items[made["id"]] = made
        return made

    def _items(self, params: Json) -> Json:
        since = int(params.get("created", {}).get("gte", 0))
        wanted = [
            each
            for each in self.items.values()
            if params.get("invoice") in (None, each["invoice"])
            and params.get("customer") in (None, each["customer"])
            and each["date"] >= since
        ]
        return listed(wanted, params, "/v1/invoiceitems")

    def _sum(self, invoice: Json) -> Json:
        own = [each for each in self.items.values() if each["invoice"] == invoice["id"]]
        total = sum(each["amount"] for each in own)
        tax = sum(each["amount"] for each in invoice["total_taxes"])
        invoice["subtotal"] = invoice["total_excluding_tax"] = total
        invoice["total"] = total + tax
        if invoice["status"] in ("draft", "open"):
            invoice["amount_due"] = invoice["amount_remaining"] = max(0, total + tax)
        return invoice

    def _finalize(self, params: Json, name: str) -> Json:
        found = self._sum(self._get(self.invoices, name, "invoice"))
        if found["status"] != "draft":
            raise StripeRefusal(400, "This invoice is already finalized.", code="invoice_not_editable")
        found["status"], found["auto_advance"] = "open", params.get("auto_advance") == "true"
        found["number"] = f"DOUBLE-{next(self._numbers):04d}"
        self._tell("invoice.finalized", found)
        return found

    def _void(self, params: Json, name: str) -> Json:
        found = self._get(self.invoices, name, "invoice")
        if found["status"] not in ("open", "uncollectible"):
            raise StripeRefusal(
                400, f"You can only pass in open invoices. This invoice isn't open: {found['status']}."
            )
        found["status"] = "void"
        self._tell("invoice.voided", found)
        return found

    def _delete_invoice(self, params: Json, name: str) -> Json:
        found = self._get(self.invoices, name, "invoice")
        if found["status"] != "draft":
            raise StripeRefusal(400, "You can only delete draft invoices")
        del self.invoices[name]
        return {"id": name, "object": "invoice", "deleted": True}

    def _pay(self, params: Json, name: str) -> Json:
        found = self._get(self.invoices, name, "invoice")
        if found["status"] == "paid":
            raise StripeRefusal(400, "Invoice is already paid")
        if found["status"] not in ("open", "uncollectible"):
            raise StripeRefusal(400, f"This invoice can't be paid, it is {found['status']}")
        self.mark_paid(name)
        return found

    def mark_paid(self, name: str) -> None:
        """The customer pays."""
        found = self._sum(self.invoices[name])
        found["status"], found["amount_paid"], found["amount_remaining"] = "paid", found["total"], 0
        self._tell("invoice.paid", found)

    def _create_note(self, params: Json) -> Json:
        invoice = self._sum(self._get(self.invoices, params.get("invoice", ""), "invoice"))
        if invoice["status"] not in ("open", "paid"):
            raise StripeRefusal(400, "Credit notes can only be created for open or paid invoices")
        made = objects.credit_note(self._id("cn"), self.now_s(), params, invoice)
        self.notes[made["id"]] = made
        return made

    def _notes(self, params: Json) -> Json:
        wanted = [each for each in self.notes.values() if params.get("invoice") in (None, each["invoice"])]
        return listed(wanted, params, "/v1/credit_notes")

    # -- meters --

    def _create_meter(self, params: Json) -> Json:
        if "event_name" not in params:
            raise StripeRefusal(400, "Missing required param: event_name.", code="parameter_missing")
        if any(each["event_name"] == params["event_name"] for each in self.meters.values()):
            raise StripeRefusal(400, "A meter with this event name already exists.")
        made = objects.meter(self._id("mtr"), self.now_s(), params)
        self.meters[made["id"]] = made
        return made

    def _meters(self, params: Json) -> Json:
        return listed(self.meters.values(), params, "/v1/billing/meters")

    def _meter_event(self, params: Json) -> Json:
        now, at = self.now_s(), int(params.get("timestamp", self.now_s()))
        name, identifier = params["event_name"], str(params.get("identifier", ""))
        payload = params.get("payload", {})
        customer, value = str(payload.get("stripe_customer_id", "")), str(payload.get("value", ""))
        if len(identifier) > 100:
            raise StripeRefusal(400, "The identifier must be at most 100 characters.")
        if not now - 35 * DAY_S <= at <= now + 300:
            raise StripeRefusal(
                400, "The timestamp must be within the past 35 calendar days or up to 5 minutes ahead."
            )
        if len(value.strip("-")) > 15:
            raise StripeRefusal(
                400, "The value has too many digits.", code="meter_event_value_too_many_digits"
            )
        if now - self._identifiers.get((name, identifier), -10 * DAY_S) < DAY_S:
            text = f"An event already exists with identifier {identifier}."
            raise StripeRefusal(400, text, stripe_should_retry="false")
        self._identifiers[name, identifier] = now
        made = objects.meter_event(now, {**params, "timestamp": at})
        meter = next((each for each in self.meters.values() if each["event_name"] == name), None)
        problem = (
            "no_meter"
            if meter is None
            else ""
            if customer in self.customers
            else "meter_event_customer_not_found"
        )
        problem = problem or ("" if re.fullmatch(r"-?\d+", value) else "meter_event_invalid_value")
        if problem:
            self._report(problem, identifier, meter)
        else:
            self.meter_events.append(made)
        return made

    def _report(self, code: str, identifier: str, meter: Json | None) -> None:
        event = objects.meter_error(self._id("evt"), self.now_s(), code, identifier, meter)
        self.thin[event["id"]] = event
        self.pending.append({key: value for key, value in event.items() if key not in ("data",)})

    def _thin(self, params: Json, name: str) -> Json:
        return self._get(self.thin, name, "event")

    def _summaries(self, params: Json, meter: str) -> Json:
        name = self._get(self.meters, meter, "meter")["event_name"]
        start, end = int(params["start_time"]), int(params["end_time"])
        if start % 60 or end % 60:
            raise StripeRefusal(400, "Timestamps must be aligned with minute boundaries.")
        values = [
            int(each["payload"]["value"])
            for each in self.meter_events
            if each["event_name"] == name
            and each["payload"]["stripe_customer_id"] == params["customer"]
            and start <= each["timestamp"] < end
        ]
        found = [objects.meter_summary(self._id("mtrusg"), meter, start, end, sum(values))] if values else []
        return listed(found, params, f"/v1/billing/meters/{meter}/event_summaries")

    def _create_price(self, params: Json) -> Json:
        amount = Decimal(str(params.get("unit_amount_decimal", "x")).replace("x", "NaN"))
        if amount.is_nan() or -int(amount.normalize().as_tuple().exponent) > 12:
            raise StripeRefusal(
                400, "Invalid decimal: unit_amount_decimal must have at most 12 decimal places"
            )
        if any(each["lookup_key"] == params.get("lookup_key") for each in self.prices.values()):
            raise StripeRefusal(400, "A price already uses that lookup key.")
        made = objects.price(self._id("price"), self.now_s(), params)
        self.prices[made["id"]] = made
        return made

    def _prices(self, params: Json) -> Json:
        keys = params.get("lookup_keys")
        wanted = [
            each for each in self.prices.values() if keys is None or each["lookup_key"] in keys.values()
        ]
        return listed(wanted, params, "/v1/prices")

    def _create_subscription(self, params: Json) -> Json:
        self._get(self.customers, params.get("customer", ""), "customer")
        made = objects.subscription(self._id("sub"), self.now_s(), params)
        self.subscriptions[made["id"]] = made
        for wanted in params["items"].values():
            self._add_item(made, wanted["price"])
        return made

    def _add_item(self, subscription: Json, price: str) -> Json:
        there = subscription["items"]["data"]
        if len(there) >= 20:
            raise StripeRefusal(400, "A subscription can have at most 20 items.")
        if any(each["price"]["id"] == price for each in there):
            raise StripeRefusal(400, "The subscription already has this price.")
        made = objects.subscription_item(
            self._id("si"), self.now_s(), self._get(self.prices, price, "price"), subscription["id"]
        )
        there.append(made)
        return made

    def _create_subscription_item(self, params: Json) -> Json:
        return self._add_item(
            self._get(self.subscriptions, params["subscription"], "subscription"), params["price"]
        )

    def _subscriptions(self, params: Json) -> Json:
        wanted = [s for s in self.subscriptions.values() if params.get("customer") in (None, s["customer"])]
        return listed(wanted, params, "/v1/subscriptions")

    def _dispute(self, params: Json, name: str) -> Json:
        return self._get(self.disputes, name, "dispute")

    def _disputes(self, params: Json) -> Json:
        return listed(self.disputes.values(), params, "/v1/disputes")

    # -- events --

    def _tell(self, kind: str, about: Json) -> None:
        self.pending.append(objects.event(self._id("evt"), self.now_s(), kind, about))

    def dispute(self, amount: int) -> Json:
        """A customer objects."""
        made = objects.dispute(self._id("dp"), self.now_s(), amount)
        self.disputes[made["id"]] = made
        self._tell("charge.dispute.created", made)
        return made

    @staticmethod
    def signed(event: Json, *, at_s: int | None = None, secret: str = SECRET) -> tuple[bytes, str]:
        """Body and Stripe-Signature of a delivery."""
        body = json.dumps(event).encode()
        at_s = int(time.time()) if at_s is None else at_s
        digest = hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
        return body, f"t={at_s},v1={digest}"

    def _id(self, prefix: str) -> str:
        return f"{prefix}_double{next(self._numbers):06d}"

    @staticmethod
    def _get(known: dict[str, Json], name: str, kind: str) -> Json:
        if name not in known:
            raise StripeRefusal(
                404 if kind != "customer" else 400, f"No such {kind}: '{name}'", code="resource_missing"
            )
        return known[name]


@contextmanager
def serving(double: StripeDouble) -> Iterator[str]:
    """The double on a port of its own; its address."""
    config = uvicorn.Config(double.app(), host="127.0.0.1", port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
