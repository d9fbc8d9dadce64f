"""An invoice worked out by hand: raw receipts and the clock on one side, exact decimals, nothing of the ledger.

It is printed beside the preview by `make run`, so that somebody who sees Farebox for the first time can check the bill.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

_MILLION = 1_000_000
_CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Sum:
    """One addend: `quantity` units of `sku` of `what`, at `unit_usd` each."""

    sku: str
    what: str
    quantity: int
    unit_usd: Decimal

    @property
    def amount_usd(self) -> Decimal:
        """Exact."""
        return self.quantity * self.unit_usd


def token_sums(receipts: Iterable[Mapping[str, Any]], prices: Mapping[str, Mapping[str, str]]) -> list[Sum]:
    """Tokens and seconds of billed calls by model, as the engine reported them; `prices` as the catalog shows them."""
    quantities: dict[tuple[str, str], int] = {}
    for receipt in receipts:
        if receipt["status"] == "error":
            continue
        usage, model = receipt["usage"], receipt["model"]
        cached = usage.get("cached_input", 0)
        parts = {"input": usage["input"] - cached, "cached_input": cached, "output": usage["output"]}
        parts["audio_second"] = -(-usage.get("audio_ms", 0) // 1000)
        for sku, quantity in parts.items():
            if quantity:
                quantities[model, sku] = quantities.get((model, sku), 0) + quantity
    return [
        Sum(sku, model, quantity, Decimal(prices[model][sku]) / (1 if sku == "audio_second" else _MILLION))
        for (model, sku), quantity in sorted(quantities.items())
    ]


def minute_sum(endpoint: Mapping[str, Any], period_start: str, as_of: str, per_minute_usd: str) -> Sum:
    """The endpoint's minutes in the period: every UTC calendar minute begun from its creation to `as_of`."""
    first = max(_minute(endpoint["created_at"]), _minute(period_start))
    return Sum("endpoint_minute", endpoint["name"], _minute(as_of) - first + 1, Decimal(per_minute_usd))


def total_exact(sums: Iterable[Sum]) -> Decimal:
    """The sum of the exact amounts."""
    return sum((addend.amount_usd for addend in sums), Decimal(0))


def total_rounded(sums: Iterable[Sum]) -> Decimal:
    """The sum of the amounts, each rounded to cents, half up."""
    return sum((s.amount_usd.quantize(_CENT, ROUND_HALF_UP) for s in sums), Decimal(0))


def _minute(instant: str) -> int:
    return int(datetime.fromisoformat(instant).timestamp()) // 60
