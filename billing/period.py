"""From a period's charges to the lines of its invoice: terms of prices, contract, totals. Pure.

The list charges come first; what tiers, packages and included amounts make of them, the contract's discount and its
minimum are lines of their own, so that each charge stays what its receipts say.
"""

from collections.abc import Iterable, Mapping

from billing.model import CALL_SKU_ORDER, Contract, Line
from catalog.terms import SkuTerms, effective_pico

ChargeKey = tuple[str, str, str, str, int]
"""SKU, model, endpoint ("" for tokens), price version ("" unless it has terms for the SKU), unit price."""

FULL_BP = 10_000


def charge_lines(quantities: Mapping[ChargeKey, int], endpoint_names: Mapping[str, str]) -> list[Line]:
    """One line per SKU, model (for minutes: endpoint) and price."""
    lines = (
        Line(
            sku, model_id, endpoint_id, endpoint_names.get(endpoint_id, endpoint_id), quantity, price, version
        )
        for (sku, model_id, endpoint_id, version, price), quantity in quantities.items()
    )
    return sorted(lines, key=_order)


def terms_lines(month: Iterable[Line], terms_of: Mapping[str, Mapping[str, SkuTerms]]) -> list[Line]:
    """What terms make of a whole month's charges. `terms_of`: by price version."""
    lines: list[Line] = []
    for line in month:
        terms = terms_of.get(line.price_version, {}).get(line.sku)
        if terms is None:
            continue
        difference = effective_pico(line.quantity, line.unit_price_pico, terms) - line.amount_pico
        if difference:
            of = (line.sku, line.model_id, line.endpoint_id, line.endpoint_name)
            lines.append(Line(*of, 0, 0, line.price_version, "terms", difference, describe(terms)))
    return lines


def discount_lines(lines: Iterable[Line], contract: Contract | None) -> list[Line]:
    """The contract's discount on the sum of these lines."""
    total = sum(line.amount_pico for line in lines)
    if contract is None or not contract.discount_bp or total <= 0:
        return []
    discount = round_ratio(total * contract.discount_bp, FULL_BP)
    text = f"{percent(contract.discount_bp)} discount, contract {contract.id}"
    return [Line("", "", "", "", 0, 0, "", "discount", -discount, text)]


def minimum_lines(month_pico: int, contract: Contract | None) -> list[Line]:
    """What a whole month's total lacks of the contract's minimum."""
    if contract is None or month_pico >= contract.minimum_pico:
        return []
    text = f"up to the monthly minimum, contract {contract.id}"
    return [Line("", "", "", "", 0, 0, "", "minimum", contract.minimum_pico - month_pico, text)]


def round_ratio(amount: int, divisor: int) -> int:
    """amount / divisor, half away from zero."""
    quotient, rest = divmod(abs(amount), divisor)
    quotient += rest * 2 >= divisor
    return -quotient if amount < 0 else quotient


def percent(basis_points: int) -> str:
    """Basis points for people: `12.5 %`."""
    whole, rest = divmod(basis_points, 100)
    return f"{whole}.{rest:02d}".rstrip("0").rstrip(".") + " %"


def describe(terms: SkuTerms) -> str:
    """What the terms are, on the invoice."""
    parts = []
    if terms.included:
        parts.append(f"{terms.included} units included")
    if terms.scheme == "package":
        parts.append(f"in packages of {terms.package_size} units")
    elif terms.scheme != "per_unit":
        parts.append(f"{terms.scheme} prices in {len(terms.tiers)} tiers")
    return ", ".join(parts)


def _order(line: Line) -> tuple[object, ...]:
    """Tokens by model, then the endpoints' minutes by name."""
    sku = CALL_SKU_ORDER.index(line.sku) if line.sku in CALL_SKU_ORDER else len(CALL_SKU_ORDER)
    return (
        bool(line.endpoint_id),
        line.endpoint_name,
        line.model_id,
        sku,
        line.sku,
        line.endpoint_id,
        line.unit_price_pico,
        line.price_version,
    )
