"""Prices of batch calls said as one discount. Pure."""

from collections.abc import Mapping

BATCH = "batch_"
DISCOUNTED = ("input", "cached_input", "output")


def discounted(unit_prices: Mapping[str, int], percent: int) -> dict[str, int]:
    """What batch calls cost at `percent` less, in pico-dollars a token by SKU; half a pico-dollar is rounded up."""
    return {
        BATCH + sku: (unit_prices[sku] * (100 - percent) * 2 + 100) // 200
        for sku in DISCOUNTED
        if sku in unit_prices
    }
