"""Ledger transactions and the accounts they move. Pure: building and checking, no SQL.

| account | what its balance is |
|---|---|
| `receivable:{org}` | charges that no invoice covers yet |
| `billed:{org}` | due on finalized invoices |
| `credit:{org}` | credit that the organization has with us (negative: we owe it) |
| `revenue:{sku}` | charges at list price, by SKU |
| `revenue:terms`, `revenue:discount`, `revenue:minimum` | what tiers, contracts and minimums make of them |
| `revenue:correction` | given back with credit notes |
| `rounding` | what rounding lines to cents left over |
| `cash` | paid |
| `promotion` | credit given away; `revenue:breakage` is prepaid credit that expired |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from billing.model import Item
from metering.records import ClosedMinute

Kind = Literal[
    "usage",
    "endpoint_minute",
    "correction",  # of a usage event: quantities of any sign
    "adjustment",  # posted in an open minute, for one that is closed
    "invoice",
    "void",
    "payment",
    "credit_grant",
    "credit_expiry",
    "credit_note",
]
CHARGE_KINDS: tuple[Kind, ...] = ("usage", "endpoint_minute", "correction", "adjustment")


@dataclass(frozen=True, slots=True)
class Posting:
    """One side of a transaction: positive is a debit, negative a credit."""

    account: str
    sku: str
    quantity: int
    unit_price_pico: int
    price_version: str
    amount_pico: int


@dataclass(frozen=True, slots=True)
class LedgerTransaction:
    """A balanced entry. What a transaction is not about is ""."""

    id: str
    kind: Kind
    org_id: str
    minute_ms: int
    postings: tuple[Posting, ...]
    project_id: str = ""
    key_id: str = ""
    endpoint_id: str = ""
    model_id: str = ""
    service_minute_ms: int = 0

    def __post_init__(self) -> None:
        assert sum(posting.amount_pico for posting in self.postings) == 0, f"{self.id} does not balance"


def charge(minute: ClosedMinute, items: Sequence[Item], transaction_id: str, kind: Kind) -> LedgerTransaction:
    """The customer owes what the SKUs earn: one debit, one credit per SKU."""
    total = sum(item.amount_pico for item in items)
    revenue = [
        Posting(
            f"revenue:{item.sku}",
            item.sku,
            item.quantity,
            item.unit_price_pico,
            item.price_version,
            -item.amount_pico,
        )
        for item in items
    ]
    return LedgerTransaction(
        transaction_id,
        kind,
        minute.org_id,
        minute.billing_minute_ms,
        (money(f"receivable:{minute.org_id}", total), *revenue),
        minute.project_id,
        minute.key_id,
        minute.endpoint_id,
        minute.model_id,
        minute.service_minute_ms,
    )


def money(account: str, amount_pico: int) -> Posting:
    """A posting that is only money."""
    return Posting(account, "", 0, 0, "", amount_pico)


def transfer(
    transaction_id: str, kind: Kind, org_id: str, at_ms: int, amounts: Mapping[str, int]
) -> LedgerTransaction:
    """A transaction of money between accounts; amounts of zero are left out. They must sum to zero."""
    postings = tuple(money(account, amount) for account, amount in amounts.items() if amount)
    return LedgerTransaction(transaction_id, kind, org_id, at_ms, postings, service_minute_ms=at_ms)
