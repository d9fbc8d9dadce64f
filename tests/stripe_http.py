"""Stripe's manners of speaking: nested parameters, pages, errors, and which routes the double has."""

import re
from typing import Any

from tests.stripe_objects import Json


class StripeRefusal(Exception):
    """An error as Stripe answers it."""

    def __init__(self, status: int, message: str, *, code: str = "", kind: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.kind = kind or ("invalid_request_error" if status < 500 else "api_error")
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def unflatten(pairs: list[tuple[str, str]]) -> Json:
    """`a[b][c]=d` as nested dicts; arrays become dicts by their index."""
    found: Json = {}
    for name, value in pairs:
        path = re.findall(r"[^\[\]]+", name)
        inner = found
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
    return found


def listed(rows: Any, params: Json, url: str) -> Json:
    """A list as Stripe pages it."""
    rows = list(rows)
    after = params.get("starting_after")
    if after:
        at = next(number for number, row in enumerate(rows) if row["id"] == after)
        rows = rows[at + 1 :]
    limit = int(params.get("limit", 10))
    return {"object": "list", "data": rows[:limit], "has_more": len(rows) > limit, "url": url}


def error_body(refusal: StripeRefusal) -> Json:
    """Stripe's error object."""
    error: Json = {"type": refusal.kind, "message": refusal.message}
    return {"error": error | ({"code": refusal.code} if refusal.code else {})}


# Method, path, and the method of the double that does it.
_ID = r"([^/]+)"
ROUTES = (
    ("POST", "/v1/customers", "_create_customer"),
    ("GET", "/v1/customers", "_customers"),
    ("GET", "/v1/customers/search", "_search_customers"),
    ("GET", f"/v1/customers/{_ID}", "_customer"),
    ("POST", f"/v1/customers/{_ID}", "_update_customer"),
    ("POST", "/v1/invoices", "_create_invoice"),
    ("GET", "/v1/invoices", "_invoices"),
    ("GET", f"/v1/invoices/{_ID}", "_invoice"),
    ("DELETE", f"/v1/invoices/{_ID}", "_delete_invoice"),
    ("POST", f"/v1/invoices/{_ID}/finalize", "_finalize"),
    ("POST", f"/v1/invoices/{_ID}/void", "_void"),
    ("POST", f"/v1/invoices/{_ID}/pay", "_pay"),
    ("POST", "/v1/invoiceitems", "_create_item"),
    ("GET", "/v1/invoiceitems", "_items"),
    ("POST", "/v1/credit_notes", "_create_note"),
    ("GET", "/v1/credit_notes", "_notes"),
    ("POST", "/v1/billing/meters", "_create_meter"),
    ("GET", "/v1/billing/meters", "_meters"),
    ("GET", f"/v1/billing/meters/{_ID}/event_summaries", "_summaries"),
    ("POST", "/v1/billing/meter_events", "_meter_event"),
    ("POST", "/v1/prices", "_create_price"),
    ("GET", "/v1/prices", "_prices"),
    ("POST", "/v1/subscriptions", "_create_subscription"),
    ("GET", "/v1/subscriptions", "_subscriptions"),
    ("POST", "/v1/subscription_items", "_create_subscription_item"),
    ("GET", f"/v1/disputes/{_ID}", "_dispute"),
    ("GET", "/v1/disputes", "_disputes"),
    ("GET", f"/v2/core/events/{_ID}", "_thin"),
)
