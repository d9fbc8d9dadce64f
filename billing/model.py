"""What billing works with: rated minutes, lines, previews, receipts. Money in pico-dollars, as integers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from sqlalchemy import Connection

from catalog.terms import Terms

TOKEN_SKUS = ("input", "cached_input", "output", "batch_input", "batch_cached_input", "batch_output")
CALL_SKU_ORDER = (*TOKEN_SKUS, "audio_second")
ENDPOINT_MINUTE_SKU = "endpoint_minute"


class Price(Protocol):
    """A price version: immutable list prices in pico-dollars by SKU, and the terms of a whole month."""

    @property
    def id(self) -> str: ...

    @property
    def unit_prices(self) -> Mapping[str, int]: ...

    @property
    def terms(self) -> Terms: ...


class PriceBook(Protocol):
    """Where prices come from: `catalog.price_book`."""

    def price_at(self, connection: Connection, model_id: str, at_ms: int, org_id: str, /) -> Price | None:
        """A model's version for an organization at an instant. Unknown: None, or core.errors.NotFound."""
        ...

    def version(self, connection: Connection, version_id: str, /) -> Price | None:
        """The version with that id."""
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """One SKU of a rated minute. amount = quantity × unit price, exactly."""

    sku: str
    quantity: int
    unit_price_pico: int
    price_version: str

    @property
    def amount_pico(self) -> int:
        return self.quantity * self.unit_price_pico


@dataclass(frozen=True, slots=True)
class Held:
    """Usage that has no price: kept until there is one, never free."""

    sku: str
    model_id: str
    endpoint_id: str
    quantity: int
    reason: str


LineKind = Literal["charge", "terms", "discount", "minimum", "credit"]
"""charge: quantity × list price. terms: what tiers, packages and included amounts make of it. discount, minimum: of
a contract. credit: paid with credit."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a preview or invoice: rounded once, here. Token lines have "" for the endpoint.

    `price_version` is set where the version has terms for the SKU: then they are the line's, together with a line of
    kind `terms`. `fixed_pico` is the amount of a line that is no quantity × unit price.
    """

    sku: str
    model_id: str
    endpoint_id: str
    endpoint_name: str
    quantity: int
    unit_price_pico: int
    price_version: str = ""
    kind: LineKind = "charge"
    fixed_pico: int | None = None
    text: str = ""

    @property
    def amount_pico(self) -> int:
        return self.quantity * self.unit_price_pico if self.fixed_pico is None else self.fixed_pico


@dataclass(frozen=True, slots=True)
class Contract:
    """What was agreed with an organization, by the UTC month: a discount on all charges, and a least amount."""

    id: str
    org_id: str
    starts_ms: int  # the start of a month
    ends_ms: int  # the start of a month; 0: no end
    discount_bp: int  # basis points: 1,000 are 10 %
    minimum_pico: int  # a month; what is missing is a line of its own
    created_ms: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What an organization's invoice for [start, end) would show if it were made at `as_of_ms`."""

    org_id: str
    start_ms: int
    end_ms: int
    as_of_ms: int
    lines: tuple[Line, ...]
    held: tuple[Held, ...]  # not in the total; each an alarm to the operator
    total_pico: int
    total_cents: int  # the sum of the rounded lines


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a request, with what it cost. Not billed: items are empty."""

    event_id: str
    attempt: int
    status: str
    http_status: int
    deployment_id: str
    engine_request_id: str
    finish_reason: str
    usage: Mapping[str, int]  # input, cached_input, output, reasoning, audio_ms: as the engine reports them
    usage_source: str
    items: tuple[Item, ...]
    held: tuple[str, ...]  # SKUs that have no price yet
    received_ms: int
    sent_ms: int
    first_byte_ms: int
    ended_ms: int

    @property
    def amount_pico(self) -> int:
        return sum(item.amount_pico for item in self.items)


@dataclass(frozen=True, slots=True)
class CorrectedAttempt:
    """What an attempt should have said, and what that changes: items of any sign."""

    event_id: str  # of the correction
    corrects_id: str
    reason: str
    recorded_ms: int
    billing_minute_ms: int
    usage: Mapping[str, int]  # the right one
    items: tuple[Item, ...]
    held: tuple[str, ...]

    @property
    def amount_pico(self) -> int:
        return sum(item.amount_pico for item in self.items)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a request, and what it cost. The last attempt decides status, usage and time."""

    request_id: str
    org_id: str
    project_id: str
    key_id: str
    endpoint_id: str
    model_id: str
    operation: str
    stream: bool
    batch: bool
    price_version: str  # "" when the model has no price
    attempts: tuple[Attempt, ...]
    corrections: tuple[CorrectedAttempt, ...] = ()

    @property
    def last(self) -> Attempt:
        return self.attempts[-1]

    @property
    def status(self) -> str:
        return self.last.status

    @property
    def amount_pico(self) -> int:
        return sum(item.amount_pico for item in self._items)

    @property
    def billed(self) -> dict[str, int]:
        """Billed quantities by SKU, disjoint, over all attempts as they were corrected."""
        totals = dict.fromkeys(TOKEN_SKUS, 0)
        for item in self._items:
            totals[item.sku] = totals.get(item.sku, 0) + item.quantity
        return totals

    @property
    def _items(self) -> list[Item]:
        attempts = [item for attempt in self.attempts for item in attempt.items]
        return attempts + [item for correction in self.corrections for item in correction.items]
