"""The payment provider, for operators."""

from itertools import islice
from typing import Any, Literal, TypedDict, cast

from farebox.resource import Resource


class StripePermission(TypedDict):
    """What the key may do with one kind of object."""

    resource: str
    access: Literal["read", "write"]
    allowed: bool
    needed_for: str
    detail: str | None


class StripeCheck(TypedDict):
    """What the configured key may do. `mode` none: there is no key."""

    mode: Literal["none", "test", "live"]
    webhook_secret: bool
    reachable: bool
    problem: str | None
    permissions: list[StripePermission]


class StripeStatus(TypedDict):
    """What waits for Stripe, what had errors, and the invoices that Stripe has, by state."""

    mode: Literal["none", "test", "live"]
    tasks: list[dict[str, Any]]
    oldest_waiting_at: str | None
    troubled: list[dict[str, Any]]
    invoices: dict[str, int]


class StripeSync(TypedDict):
    """What will be done within seconds."""

    retried: int
    invoices_to_read: int


class StripeEvent(TypedDict):
    """An event that Stripe delivered, and what became of it."""

    id: str
    type: str
    object_id: str
    organization_id: str | None
    created_at: str
    received_at: str
    deliveries: int
    processed_at: str | None
    outcome: str | None


class StripeOf(Resource):
    """Collecting through Stripe."""

    def check(self) -> StripeCheck:
        """What the key may do; changes nothing at Stripe."""
        return cast(StripeCheck, self._transport.json("GET", "/api/stripe/check"))

    def status(self) -> StripeStatus:
        """What waits, and what had errors."""
        return cast(StripeStatus, self._transport.json("GET", "/api/stripe/status"))

    def sync(self, *, retry_failed: bool = False) -> StripeSync:
        """Try now what waits, read back what is not settled; `retry_failed`: also what was refused for good."""
        body = {"retry_failed": retry_failed}
        return cast(StripeSync, self._transport.json("POST", "/api/stripe/sync", json=body))

    def events(self, *, limit: int = 200) -> list[StripeEvent]:
        """The newest that Stripe delivered."""
        return list(islice(self._pages("/api/stripe/events"), limit))
