"""Stripe through its own library: the only file that imports it. Parameters in, our values and our two errors out.

Retries are the outbox's: the library's would hold a worker, and it does not retry 429 at all.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, cast

import stripe

from billing.payments.mapping import OURS_INVOICE, OURS_LINE, OURS_NOTE, OURS_ORG
from billing.payments.model import Customer, Heard, Params, Permission, ProviderInvoice, Refused, TryLater
from billing.payments.permissions import PROBES, Probe
from core.money import format_cents

SIGNATURE_TOLERANCE_S = 300
_TIMEOUT_S = (5, 30)  # to connect, and between bytes
_SPENT_WAIT_MS = 120_000  # until Stripe's search knows what a failed call may have left
_PAGE = 100
_MAX_LISTED = 2_000


class StripePayments:
    """`billing.payments.model.Provider` for one Stripe account. Threads may share it."""

    def __init__(self, api_key: str, *, api_base: str = "", webhook_secret: str = "") -> None:
        self._client = stripe.StripeClient(
            api_key,
            base_addresses={"api": api_base, "meter_events": api_base} if api_base else None,
            http_client=stripe.RequestsClient(timeout=_TIMEOUT_S),
            max_network_retries=0,
        )
        self._secret = webhook_secret
        self.live = "_live_" in api_key[:12]

    def __repr__(self) -> str:
        return f"StripePayments(live={self.live})"

    # -- customers --

    def find_customer(self, org_id: str) -> Customer | None:
        """By our id in its metadata. The search lags by up to a minute."""
        with _errors():
            found = self._client.v1.customers.search({"query": f"metadata['{OURS_ORG}']:'{org_id}'"})
            return next((_customer(each) for each in found.data), None)

    def customer(self, customer_id: str) -> Customer:
        with _errors():
            found = self._client.v1.customers.retrieve(customer_id)
        if getattr(found, "deleted", None):
            raise Refused(f"customer {customer_id} was deleted at Stripe", code="customer_deleted")
        return _customer(found)

    def create_customer(self, params: Params, key: str) -> Customer:
        with _errors():
            return _customer(self._client.v1.customers.create(cast(Any, params), {"idempotency_key": key}))

    # -- invoices --

    def find_invoice(self, customer_id: str, invoice_id: str) -> ProviderInvoice | None:
        with _errors():
            listed = self._client.v1.invoices.list({"customer": customer_id, "limit": _PAGE})
            for each in _bounded(listed.auto_paging_iter()):
                if _ours(each, OURS_INVOICE) == invoice_id:
                    return _invoice(each)
        return None

    def invoice(self, provider_id: str) -> ProviderInvoice:
        with _errors():
            return _invoice(self._client.v1.invoices.retrieve(provider_id))

    def create_invoice(self, params: Params, key: str) -> ProviderInvoice:
        with _errors():
            return _invoice(self._client.v1.invoices.create(cast(Any, params), {"idempotency_key": key}))

    def items_of(self, provider_id: str) -> Mapping[str, int]:
        return self._items({"invoice": provider_id, "limit": _PAGE})

    def recent_items(self, customer_id: str, since_s: int) -> Mapping[str, int]:
        return self._items({"customer": customer_id, "created": {"gte": since_s}, "limit": _PAGE})

    def _items(self, params: Params) -> Mapping[str, int]:
        with _errors():
            listed = self._client.v1.invoice_items.list(cast(Any, params))
            return {_ours(each, OURS_LINE): each.amount for each in _bounded(listed.auto_paging_iter())}

    def create_item(self, params: Params, key: str) -> str:
        with _errors():
            return self._client.v1.invoice_items.create(cast(Any, params), {"idempotency_key": key}).id

    def finalize(self, provider_id: str, key: str) -> ProviderInvoice:
        options: Any = {"idempotency_key": key}
        with _errors():
            return _invoice(
                self._client.v1.invoices.finalize_invoice(provider_id, {"auto_advance": True}, options)
            )

    def void(self, provider_id: str, key: str) -> ProviderInvoice:
        with _errors():
            return _invoice(self._client.v1.invoices.void_invoice(provider_id, {}, {"idempotency_key": key}))

    def delete_draft(self, provider_id: str) -> None:
        with _errors():
            self._client.v1.invoices.delete(provider_id)

    def pay_elsewhere(self, provider_id: str, key: str) -> ProviderInvoice:
        options: Any = {"idempotency_key": key}
        with _errors():
            return _invoice(self._client.v1.invoices.pay(provider_id, {"paid_out_of_band": True}, options))

    def credit_notes(self, provider_id: str) -> Sequence[str]:
        with _errors():
            listed = self._client.v1.credit_notes.list({"invoice": provider_id, "limit": _PAGE})
            return [_ours(each, OURS_NOTE) for each in _bounded(listed.auto_paging_iter())]

    def create_credit_note(self, params: Params, key: str) -> str:
        with _errors():
            return self._client.v1.credit_notes.create(cast(Any, params), {"idempotency_key": key}).id

    # -- meters --

    def find_meter(self, event_name: str) -> str | None:
        with _errors():
            listed = self._client.v1.billing.meters.list({"status": "active", "limit": _PAGE})
            named = (each.id for each in _bounded(listed.auto_paging_iter()) if each.event_name == event_name)
            return next(named, None)

    def create_meter(self, params: Params, key: str) -> str:
        with _errors():
            return self._client.v1.billing.meters.create(cast(Any, params), {"idempotency_key": key}).id

    def find_price(self, lookup_key: str) -> str | None:
        with _errors():
            found = self._client.v1.prices.list({"lookup_keys": [lookup_key], "limit": 1})
            return next((each.id for each in found.data), None)

    def create_price(self, params: Params, key: str) -> str:
        with _errors():
            return self._client.v1.prices.create(cast(Any, params), {"idempotency_key": key}).id

    def subscription_items(self, customer_id: str) -> Mapping[str, Mapping[str, str]]:
        with _errors():
            listed = self._client.v1.subscriptions.list({"customer": customer_id, "limit": _PAGE})
            return {
                each.id: {str(item.price.id): str(item.id) for item in each["items"].data}
                for each in _bounded(listed.auto_paging_iter())
                if _ours(each, OURS_ORG)
            }

    def create_subscription(self, params: Params, key: str) -> str:
        with _errors():
            return self._client.v1.subscriptions.create(cast(Any, params), {"idempotency_key": key}).id

    def create_subscription_item(self, params: Params, key: str) -> str:
        with _errors():
            return self._client.v1.subscription_items.create(cast(Any, params), {"idempotency_key": key}).id

    def send_meter_event(self, params: Params, key: str) -> None:
        try:
            with _errors():
                self._client.v1.billing.meter_events.create(cast(Any, params), {"idempotency_key": key})
        except Refused as refused:
            if "already exists with identifier" not in refused.message:
                raise

    def metered(self, meter_id: str, customer_id: str, start_s: int, end_s: int) -> int:
        window = {"customer": customer_id, "start_time": start_s, "end_time": end_s, "limit": _PAGE}
        with _errors():
            listed = self._client.v1.billing.meters.event_summaries.list(meter_id, cast(Any, window))
            return sum(round(each.aggregated_value) for each in _bounded(listed.auto_paging_iter()))

    # -- what it tells --

    def hear(self, body: bytes, signature: str) -> Heard:
        """Refused, saying why, for what this account did not sign within the last 300 seconds."""
        try:
            text = body.decode()
            stripe.WebhookSignature.verify_header(text, signature, self._secret, SIGNATURE_TOLERANCE_S)
            return _heard(json.loads(text))
        except stripe.SignatureVerificationError as error:
            raise Refused(str(error.user_message or error), code="signature") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Refused("the body is no event of Stripe", code="no_event") from None

    def dispute(self, dispute_id: str) -> str:
        with _errors():
            found = self._client.v1.disputes.retrieve(dispute_id)
            paid = f"{format_cents(found.amount)} {found.currency.upper()}"
            return f"dispute {found.id} of {paid}: {found.status}, reason {found.reason}"

    def meter_errors(self, event_id: str) -> str:
        with _errors():
            event = cast(Any, self._client.v2.core.events.retrieve(event_id))
            reason = event.data.reason
            parts = [str(event.data.developer_message_summary), f"{reason.error_count} events"]
            for kind in reason.error_types[:10]:
                samples = [str(each.request.identifier) for each in kind.sample_errors[:3]]
                parts.append(f"{kind.code} ({kind.error_count}): {', '.join(samples)}")
            return "; ".join(parts)

    # -- what the key may do --

    def permissions(self) -> Sequence[Permission]:
        """Asked with lists of one object, and with changes that cannot succeed."""
        return [self._probe(each) for each in PROBES]

    def _probe(self, probe: Probe) -> Permission:
        said = ""
        try:
            with _errors():
                self._client.raw_request(probe.method, probe.path, **probe.params)
        except Refused:
            pass  # it looked at what was asked, so it may
        except TryLater as later:
            if not later.forbidden:
                raise
            said = later.message
        return Permission(probe.resource, probe.access, not said, probe.needed_for, said)


@contextmanager
def _errors() -> Iterator[None]:
    """The library's errors as ours. Messages of Stripe name parameters and ids, never keys in full."""
    try:
        yield
    except stripe.StripeError as error:
        raise _translated(error) from None


def _translated(error: stripe.StripeError) -> TryLater | Refused:
    headers = {str(name).lower(): str(value) for name, value in dict(error.headers or {}).items()}
    status, message = error.http_status or 0, str(error.user_message or error)
    said = f"{status} {message}" if status else "Stripe cannot be reached"
    wait = headers.get("retry-after", "")
    wait_ms = int(wait[:6]) * 1000 if wait.isdigit() else 0
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return TryLater(said, forbidden=True)  # an operator may give the key more rights
    if isinstance(error, stripe.IdempotencyError):
        return TryLater(said, retry_after_ms=_SPENT_WAIT_MS, spent=True)
    if status >= 500:
        # What a key was once answered with 500, it always is. What it left behind is looked for before another is used.
        spent = headers.get("idempotent-replayed") == "true"
        return TryLater(said, retry_after_ms=max(wait_ms, _SPENT_WAIT_MS if spent else 0), spent=spent)
    asks = headers.get("stripe-should-retry") == "true"
    if isinstance(error, stripe.APIConnectionError) or status in (0, 409, 429) or asks:
        return TryLater(said, retry_after_ms=wait_ms)
    return Refused(said, code=str(error.code or ""))


def _bounded(found: Iterator[Any]) -> Iterator[Any]:
    for number, each in enumerate(found):
        if number == _MAX_LISTED:
            raise Refused(
                f"Stripe lists more than {_MAX_LISTED} objects where few were expected", code="too_many"
            )
        yield each


def _ours(found: Any, name: str) -> str:
    metadata = found.metadata
    return str(metadata[name]) if metadata and name in metadata else ""


def _customer(found: Any) -> Customer:
    settings = found.invoice_settings
    method = settings.default_payment_method if settings else None
    return Customer(found.id, bool(method or found.default_source))


def _invoice(found: Any) -> ProviderInvoice:
    tax = sum(each.amount for each in found.total_taxes or ())
    without = found.total_excluding_tax
    wrong = found.last_finalization_error
    customer = found.customer
    return ProviderInvoice(
        id=found.id,
        ours=_ours(found, OURS_INVOICE),
        customer=customer if isinstance(customer, str) else customer.id,
        status=found.status,
        total_cents=found.total - tax if without is None else without,
        tax_cents=tax,
        attempts=found.attempt_count,
        failure=str(wrong.message or wrong.code or "unknown") if wrong else "",
    )


def _heard(event: Mapping[str, Any]) -> Heard:
    """A snapshot event, or a thin one."""
    if event["object"] == "v2.core.event":
        related = event.get("related_object") or {}
        made = datetime.fromisoformat(event["created"])
        return Heard(event["id"], event["type"], str(related.get("id", "")), int(made.timestamp()) * 1000)
    if event["object"] != "event":
        raise ValueError("neither kind of event")
    return Heard(event["id"], event["type"], str(event["data"]["object"]["id"]), int(event["created"]) * 1000)
