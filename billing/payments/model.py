"""Values of payments, and the port that a payment provider fills. Amounts are whole cents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

TaskKind = Literal["invoice", "void", "paid", "credit_note", "meter_event", "event"]
TaskState = Literal["waiting", "done", "failed"]
ITEMS, METERS = "stripe_items", "stripe_meters"
PROVIDERS = ("", ITEMS, METERS)


class ProviderError(Exception):
    """The provider did not do it. `message` is for the operator, without secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class TryLater(ProviderError):
    """It may work later. `spent`: this idempotency key never will, whatever is asked with it. `forbidden`: our key
    may not do that."""

    def __init__(
        self, message: str, *, retry_after_ms: int = 0, spent: bool = False, forbidden: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after_ms, self.spent, self.forbidden = retry_after_ms, spent, forbidden


class Refused(ProviderError):
    """It will not work, however often it is tried. `code` is the provider's word for why."""

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Task:
    """A row of the outbox."""

    id: str
    org_id: str
    lane: str
    kind: TaskKind
    subject: str
    state: TaskState
    attempts: int
    generation: int
    created_ms: int
    first_ms: int
    next_ms: int
    done_ms: int
    last_error: str
    provider_id: str
    meter: str = ""
    quantity: int = 0
    unit_price_pico: int = 0
    at_ms: int = 0

    @property
    def again(self) -> bool:
        """Whether something of it may be at the provider already."""
        return self.attempts > 1 or self.generation > 0

    def key(self, step: str) -> str:
        """The idempotency key of a step of it: the same at each try, another in another generation."""
        return f"farebox-{self.id}-{step}-{self.generation}"


@dataclass(frozen=True, slots=True)
class Customer:
    """An organization at the provider. `charges`: it has a payment method to be charged without being asked."""

    id: str
    charges: bool


@dataclass(frozen=True, slots=True)
class ProviderInvoice:
    """An invoice at the provider. `ours` is our id of it, "" for one that we did not make."""

    id: str
    ours: str
    customer: str
    status: str  # draft | open | paid | void | uncollectible
    total_cents: int  # without tax
    tax_cents: int
    attempts: int  # to charge it
    failure: str  # why finalizing it failed, "" when it did not


@dataclass(frozen=True, slots=True)
class Heard:
    """An event as it was delivered, with a signature that was right."""

    id: str
    type: str
    object_id: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class Permission:
    """What the configured key may do with one kind of object. `detail`: why not."""

    resource: str
    access: Literal["read", "write"]
    allowed: bool
    needed_for: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ProviderAmount:
    """What the payment provider has for an invoice."""

    provider_id: str
    due_cents: int


Params = Mapping[str, Any]


class Provider(Protocol):
    """A payment provider; every method may raise TryLater or Refused. `key` is an idempotency key."""

    @property
    def live(self) -> bool: ...

    def find_customer(self, org_id: str) -> Customer | None: ...

    def customer(self, customer_id: str) -> Customer: ...

    def create_customer(self, params: Params, key: str) -> Customer: ...

    def find_invoice(self, customer_id: str, invoice_id: str) -> ProviderInvoice | None: ...

    def invoice(self, provider_id: str) -> ProviderInvoice: ...

    def create_invoice(self, params: Params, key: str) -> ProviderInvoice: ...

    def items_of(self, provider_id: str) -> Mapping[str, int]:
        """By our name of each item of an invoice: its cents."""
        ...

    def recent_items(self, customer_id: str, since_s: int) -> Mapping[str, int]:
        """By our name of each item of a customer that was made since then: its cents."""
        ...

    def create_item(self, params: Params, key: str) -> str: ...

    def finalize(self, provider_id: str, key: str) -> ProviderInvoice: ...

    def void(self, provider_id: str, key: str) -> ProviderInvoice: ...

    def delete_draft(self, provider_id: str) -> None: ...

    def pay_elsewhere(self, provider_id: str, key: str) -> ProviderInvoice: ...

    def credit_notes(self, provider_id: str) -> Sequence[str]:
        """Our ids of an invoice's credit notes."""
        ...

    def create_credit_note(self, params: Params, key: str) -> str: ...

    def find_meter(self, event_name: str) -> str | None: ...

    def create_meter(self, params: Params, key: str) -> str: ...

    def find_price(self, lookup_key: str) -> str | None: ...

    def create_price(self, params: Params, key: str) -> str: ...

    def subscription_items(self, customer_id: str) -> Mapping[str, Mapping[str, str]]:
        """Of a customer's living subscriptions that we made: by their id, their items' ids by price."""
        ...

    def create_subscription(self, params: Params, key: str) -> str: ...

    def create_subscription_item(self, params: Params, key: str) -> str: ...

    def send_meter_event(self, params: Params, key: str) -> None:
        """Delivered, now or before: a repeated identifier is no error."""
        ...

    def metered(self, meter_id: str, customer_id: str, start_s: int, end_s: int) -> int:
        """The sum of a meter's events of a customer in [start, end), whole minutes."""
        ...

    def dispute(self, dispute_id: str) -> str:
        """A sentence on where a dispute stands."""
        ...

    def meter_errors(self, event_id: str) -> str:
        """A sentence on why events of meters were not counted."""
        ...

    def hear(self, body: bytes, signature: str) -> Heard:
        """Refused for a body that it did not sign, or signed too long ago."""
        ...

    def permissions(self) -> Sequence[Permission]: ...
