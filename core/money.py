"""Money without floats.

The unit of account is the pico-dollar (10^-12 US dollars): a price of one micro-dollar per million tokens is
exactly one pico-dollar per token, so every amount is an integer until an invoice line is rounded, once.
"""

import re
from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Final

PICO_PER_USD: Final = 10**12
PICO_PER_CENT: Final = 10**10
TOKENS_PER_PRICE: Final = 1_000_000

_DECIMAL: Final = re.compile(r"(0|[1-9][0-9]{0,8})(\.[0-9]+)?")


def parse_usd(text: object, *, decimals: int) -> int:
    """Units of 10^-`decimals` US dollars of a plain decimal text such as `"0.0375"`.

    ValueError (its message says what was expected) for anything that is not a text of digits with at most
    `decimals` places and nine digits before the point: no float, sign, exponent, currency sign or blank.
    """
    if not isinstance(text, str):
        raise ValueError(f'expected a decimal in quotes such as "0.15", got {type(text).__name__} {text!r}')
    if text.startswith("-"):
        raise ValueError(f"expected zero or more, got {text!r}")
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise ValueError(f'expected a plain decimal such as "0.15", got {text!r}')
    fraction = (match.group(2) or ".")[1:].rstrip("0")
    if len(fraction) > decimals:
        raise ValueError(f"expected at most {decimals} decimal places, got {len(fraction)} in {text!r}")
    return int(match.group(1) + fraction.ljust(decimals, "0"))


def pico_per_token(usd_per_million: object) -> int:
    """Pico-dollars per token of a price in US dollars per million tokens (at most 6 decimals)."""
    return parse_usd(usd_per_million, decimals=6)


def pico_per_unit(usd_per_unit: object) -> int:
    """Pico-dollars per unit of a price in US dollars per unit, e.g. per minute (at most 12 decimals)."""
    return parse_usd(usd_per_unit, decimals=12)


def format_pico(amount_pico: int) -> str:
    """The exact amount in US dollars as a plain decimal text: no exponent, no trailing zeros."""
    sign = "-" if amount_pico < 0 else ""
    amount = abs(amount_pico)
    whole, rest = amount // PICO_PER_USD, amount % PICO_PER_USD
    fraction = str(rest).zfill(12).rstrip("0")
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


def format_per_million(price_pico: int) -> str:
    """A price of `price_pico` pico-dollars per token as US dollars per million tokens."""
    return format_pico(price_pico * TOKENS_PER_PRICE)


def round_to_cents(amount_pico: int) -> int:
    """Whole cents, half away from zero: the one rounding of an invoice line."""
    cents, rest = divmod(abs(amount_pico), PICO_PER_CENT)
    cents += rest * 2 >= PICO_PER_CENT
    return -cents if amount_pico < 0 else cents


def format_cents(cents: int) -> str:
    """US dollars with two decimals of whole cents."""
    sign = "-" if cents < 0 else ""
    return f"{sign}{abs(cents) // 100}.{abs(cents) % 100:02d}"


def split_largest_remainder(total: int, weights: Sequence[int]) -> list[int]:
    """`total` split in proportion to `weights`, summing to it exactly; ties go to the earlier part."""
    assert weights and all(w >= 0 for w in weights) and sum(weights) > 0, (
        "weights: not negative, not all zero"
    )
    whole = sum(weights)
    sign = -1 if total < 0 else 1
    parts = [abs(total) * w // whole for w in weights]
    remainders = [abs(total) * w % whole for w in weights]
    missing = abs(total) - sum(parts)
    for i in sorted(range(len(parts)), key=lambda i: (-remainders[i], i))[:missing]:
        parts[i] += 1
    return [sign * part for part in parts]


def as_decimal(amount_pico: int) -> Decimal:
    """The exact amount in US dollars as a Decimal, for exports that want one."""
    with localcontext() as context:
        context.prec = 60
        return Decimal(amount_pico) / PICO_PER_USD
