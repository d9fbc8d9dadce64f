"""What a key must be allowed, and how to ask without changing anything: lists of one, changes that cannot succeed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_NONE = "farebox_check"  # nothing at the provider is called so


@dataclass(frozen=True, slots=True)
class Probe:
    """One question. Whatever is answered, but for 401 and 403, means yes."""

    resource: str
    access: Literal["read", "write"]
    needed_for: str
    method: Literal["get", "post", "delete"]
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)


def _read(resource: str, path: str, needed_for: str) -> Probe:
    return Probe(resource, "read", needed_for, "get", path, {"limit": 1})


def _write(resource: str, path: str, needed_for: str, **params: Any) -> Probe:
    return Probe(resource, "write", needed_for, "post", path, params)


PROBES = (
    _read("customers", "/v1/customers", "both ways"),
    _write("customers", f"/v1/customers/{_NONE}", "both ways", description="x"),
    _read("invoices", "/v1/invoices", "stripe_items, webhooks"),
    _write("invoices", "/v1/invoices", "stripe_items", customer=_NONE),
    _read("invoice items", "/v1/invoiceitems", "both ways"),
    _write("invoice items", "/v1/invoiceitems", "both ways", customer=_NONE, amount=1, currency="usd"),
    _read("credit notes", "/v1/credit_notes", "credit notes"),
    _write("credit notes", "/v1/credit_notes", "credit notes", invoice=_NONE),
    _read("disputes", "/v1/disputes", "webhooks of disputes"),
    _read("meters", "/v1/billing/meters", "stripe_meters"),
    _write("meters", "/v1/billing/meters", "stripe_meters", display_name=_NONE),
    _write(
        "meter events", "/v1/billing/meter_events", "stripe_meters", event_name=_NONE, identifier=_NONE * 9
    ),
    _read("prices", "/v1/prices", "stripe_meters"),
    _write("prices", "/v1/prices", "stripe_meters", currency="none"),
    _read("subscriptions", "/v1/subscriptions", "stripe_meters"),
    _write("subscriptions", "/v1/subscriptions", "stripe_meters", customer=_NONE),
)
