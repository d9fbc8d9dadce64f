"""Prices and terms as people write and read them: US dollars per million tokens, per second or per minute."""

from enum import Enum

from catalog.model import TOKEN_PRICES, UNIT_PRICES
from catalog.terms import Terms
from core.errors import Invalid
from core.money import format_per_million, format_pico, pico_per_token, pico_per_unit
from wire.suggestions import unknown_name

SKUS = (*TOKEN_PRICES, *UNIT_PRICES)


class Unit(Enum):
    """What a price is of."""

    OF_SKU = "a million tokens, or one second or minute"
    WHOLE = "the whole of it"


def parse_price(sku: str, text: str, param: str, *, unit: Unit = Unit.OF_SKU) -> int:
    """Pico-dollars per token, second or minute (or of the whole); Invalid names `param`."""
    if sku not in SKUS:
        raise Invalid(f"{param}: {unknown_name(sku, SKUS, 'SKU')}", param=param)
    by_million = sku in TOKEN_PRICES and unit is Unit.OF_SKU
    try:
        return pico_per_token(text) if by_million else pico_per_unit(text)
    except ValueError as error:
        raise Invalid(f"{param}: {error}", param=param) from None


def price_text(sku: str, price_pico: int) -> str:
    """The reverse of `parse_price`."""
    return format_per_million(price_pico) if sku in TOKEN_PRICES else format_pico(price_pico)


def terms_out(terms: Terms) -> dict[str, dict[str, object]]:
    """Terms by SKU, only what is set."""
    shown: dict[str, dict[str, object]] = {}
    for sku, each in terms.items():
        out: dict[str, object] = {"scheme": each.scheme}
        if each.tiers:
            out["tiers"] = [
                {"up_to": tier.up_to, "price": price_text(sku, tier.unit_price_pico)} for tier in each.tiers
            ]
        if each.scheme == "package":
            out |= {"package_size": each.package_size, "package_price": format_pico(each.package_price_pico)}
        if each.included:
            out["included"] = each.included
        shown[sku] = out
    return shown
