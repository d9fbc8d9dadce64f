"""Terms of a price beyond "so much a unit": tiers, packages, included amounts. Pure.

A call always costs its list price (`unit_prices`), so that its receipt can be told at once and never changes. What the
terms make of a whole month is one line of the invoice beside the list charges: `effective_pico(Q) - Q × list price`.
No tier is dearer than the list price, so a budget that counts list prices is never overdrawn by a tier.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from core.errors import Invalid

Scheme = Literal["per_unit", "graduated", "volume", "package"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
MAX_TIERS = 20
MAX_QUANTITY = 10**15


@dataclass(frozen=True, slots=True)
class Tier:
    """Units up to and including the `up_to`-th (None: all further ones) cost `unit_price_pico` each."""

    up_to: int | None
    unit_price_pico: int


@dataclass(frozen=True, slots=True)
class SkuTerms:
    """How a month's quantity of one SKU is priced.

    graduated: each unit at the price of the tier it falls in. volume: all units at the price of the tier that the
    total falls in. package: begun packages of `package_size` at `package_price_pico`. `included` units are free
    before any of this, in every month.
    """

    scheme: Scheme = "per_unit"
    tiers: tuple[Tier, ...] = ()
    package_size: int = 0
    package_price_pico: int = 0
    included: int = 0


Terms = Mapping[str, SkuTerms]
"""By SKU; a SKU that is not in it is priced per unit."""


def effective_pico(quantity: int, list_price_pico: int, terms: SkuTerms) -> int:
    """What a month's `quantity` costs under the terms, exactly. A negative total (corrections) costs nothing."""
    billed = max(0, quantity - terms.included)
    if terms.scheme == "graduated":
        return _graduated(billed, terms.tiers)
    if terms.scheme == "volume":
        return billed * _tier_of(billed, terms.tiers).unit_price_pico
    if terms.scheme == "package":
        return -(-billed // terms.package_size) * terms.package_price_pico
    return billed * list_price_pico


def _graduated(quantity: int, tiers: tuple[Tier, ...]) -> int:
    total, below = 0, 0
    for tier in tiers:
        top = quantity if tier.up_to is None else min(quantity, tier.up_to)
        if top > below:
            total += (top - below) * tier.unit_price_pico
            below = top
    return total


def _tier_of(quantity: int, tiers: tuple[Tier, ...]) -> Tier:
    return next(tier for tier in tiers if tier.up_to is None or quantity <= tier.up_to)


def check_terms(sku: str, terms: SkuTerms, list_price_pico: int) -> None:
    """Invalid, naming the field, unless the terms are complete and no dearer than the list price."""
    where = f"terms.{sku}"
    if terms.scheme in ("graduated", "volume"):
        _check_tiers(where, terms.tiers, list_price_pico)
    elif terms.tiers:
        raise Invalid(f"{where}.tiers: only for graduated and volume", param=f"{where}.tiers")
    if terms.scheme == "package":
        if not 1 <= terms.package_size <= MAX_QUANTITY:
            raise Invalid(
                f"{where}.package_size: expected 1 to {MAX_QUANTITY} units", param=f"{where}.package_size"
            )
        if terms.package_price_pico < 0:
            raise Invalid(f"{where}.package_price: expected zero or more", param=f"{where}.package_price")
        if terms.package_price_pico > terms.package_size * list_price_pico:
            raise Invalid(
                f"{where}.package_price: a package of {terms.package_size} must not cost more than as many "
                "units at the list price, which is what budgets count",
                param=f"{where}.package_price",
            )
    if not 0 <= terms.included <= MAX_QUANTITY:
        raise Invalid(f"{where}.included: expected 0 to {MAX_QUANTITY} units", param=f"{where}.included")


def _check_tiers(where: str, tiers: tuple[Tier, ...], list_price_pico: int) -> None:
    param = f"{where}.tiers"
    if not 1 <= len(tiers) <= MAX_TIERS:
        raise Invalid(f"{param}: expected 1 to {MAX_TIERS} tiers, got {len(tiers)}", param=param)
    below = 0
    for number, tier in enumerate(tiers):
        last = number == len(tiers) - 1
        if last != (tier.up_to is None):
            raise Invalid(
                f"{param}[{number}].up_to: only the last tier, and that one, has no end", param=param
            )
        if tier.up_to is not None and tier.up_to <= below:
            raise Invalid(
                f"{param}[{number}].up_to: expected more than {below}, got {tier.up_to}", param=param
            )
        if not 0 <= tier.unit_price_pico <= list_price_pico:
            raise Invalid(
                f"{param}[{number}].unit_price: expected at most the list price, which is what calls and budgets "
                "count",
                param=param,
            )
        below = tier.up_to or below


# -- JSON, as it is stored --


def terms_document(terms: Terms) -> dict[str, Any]:
    """Plain values; whole pico-dollars."""
    return {
        sku: {
            "scheme": each.scheme,
            "tiers": [[tier.up_to, tier.unit_price_pico] for tier in each.tiers],
            "package": [each.package_size, each.package_price_pico],
            "included": each.included,
        }
        for sku, each in sorted(terms.items())
    }


def read_terms(document: Mapping[str, Any]) -> dict[str, SkuTerms]:
    """The reverse of `terms_document`, of what was stored."""
    return {
        sku: SkuTerms(
            each["scheme"],
            tuple(Tier(up_to, price) for up_to, price in each["tiers"]),
            each["package"][0],
            each["package"][1],
            each["included"],
        )
        for sku, each in document.items()
    }
