"""Money is integers, exact until it is rounded once."""

from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.money import (
    PICO_PER_CENT,
    as_decimal,
    format_cents,
    format_per_million,
    format_pico,
    parse_usd,
    pico_per_token,
    pico_per_unit,
    round_to_cents,
    split_largest_remainder,
)

amounts = st.integers(min_value=-(10**30), max_value=10**30)


@given(amounts)
def test_an_amount_survives_its_text(amount: int) -> None:
    text = format_pico(amount)
    assert "e" not in text.lower()
    assert Fraction(text) == Fraction(amount, 10**12)
    assert not text.endswith(".")
    assert "." not in text or not text.endswith("0")


@given(st.integers(min_value=0, max_value=999_999_999), st.integers(min_value=0, max_value=12), st.data())
def test_parse_reads_what_format_writes(whole: int, decimals: int, data: st.DataObject) -> None:
    units = data.draw(st.integers(min_value=0, max_value=10**decimals - 1))
    text = f"{whole}.{units:0{decimals}d}" if decimals else str(whole)
    assert parse_usd(text, decimals=decimals) == whole * 10**decimals + units


@given(amounts)
def test_rounding_is_half_away_from_zero(amount: int) -> None:
    with localcontext() as context:
        context.prec = 60
        expected = (as_decimal(amount) * 100).quantize(Decimal(1), rounding=ROUND_HALF_UP)
    assert round_to_cents(amount) == int(expected)
    assert round_to_cents(-amount) == -round_to_cents(amount)


@pytest.mark.parametrize(
    ("amount", "cents"),
    [
        (PICO_PER_CENT // 2, 1),
        (PICO_PER_CENT // 2 - 1, 0),
        (-PICO_PER_CENT // 2, -1),
        (0, 0),
        (PICO_PER_CENT, 1),
    ],
)
def test_rounding_at_the_half(amount: int, cents: int) -> None:
    assert round_to_cents(amount) == cents


@given(st.integers(min_value=-(10**20), max_value=10**20))
def test_cents_have_two_places(cents: int) -> None:
    assert Fraction(format_cents(cents)) == Fraction(cents, 100)
    assert len(format_cents(cents).partition(".")[2]) == 2


@given(st.integers(min_value=0, max_value=10**12))
def test_a_price_per_million_is_pico_per_token(price: int) -> None:
    assert pico_per_token(format_per_million(price)) == price


@given(
    st.integers(min_value=-(10**18), max_value=10**18),
    st.lists(st.integers(min_value=0, max_value=10**9), min_size=1, max_size=20).filter(any),
)
def test_a_split_loses_nothing_and_stays_within_one(total: int, weights: list[int]) -> None:
    parts = split_largest_remainder(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(Fraction(part) - Fraction(total) * weight / sum(weights)) < 1
        assert weight or part == 0


def test_ties_of_a_split_go_to_the_earlier() -> None:
    assert split_largest_remainder(2, [1, 1, 1]) == [1, 1, 0]
    assert split_largest_remainder(-2, [1, 1, 1]) == [-1, -1, 0]


@pytest.mark.parametrize(
    "text",
    [
        0.1,
        1,
        None,
        "",
        " 1",
        "1 ",
        "+1",
        "-1",
        "1e3",
        "$1",
        "1.",
        ".5",
        "01",
        "1,5",
        "١",
        "1000000000",
        "nan",
    ],
)
def test_what_is_not_a_plain_decimal_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_usd(text, decimals=6)


def test_too_many_decimals_are_refused_but_trailing_zeros_are_none() -> None:
    assert pico_per_token("0.0375000") == 37_500
    assert pico_per_unit("0.0005") == 500_000_000
    with pytest.raises(ValueError, match="at most 6 decimal places, got 7"):
        pico_per_token("0.1234567")
