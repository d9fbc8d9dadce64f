"""Terms of prices: what tiers, packages and included amounts make of a month; and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.terms import SkuTerms, Tier, check_terms, effective_pico, read_terms, terms_document
from core.errors import Invalid

LIST = 100
GRADUATED = SkuTerms("graduated", (Tier(10, 100), Tier(30, 50), Tier(None, 10)))
VOLUME = SkuTerms("volume", GRADUATED.tiers)
PACKAGE = SkuTerms("package", package_size=1000, package_price_pico=90_000)


@pytest.mark.parametrize(
    ("quantity", "terms", "expected"),
    [
        (0, GRADUATED, 0),
        (10, GRADUATED, 10 * 100),
        (11, GRADUATED, 10 * 100 + 50),
        (35, GRADUATED, 10 * 100 + 20 * 50 + 5 * 10),
        (10, VOLUME, 10 * 100),
        (11, VOLUME, 11 * 50),
        (31, VOLUME, 31 * 10),
        (0, PACKAGE, 0),
        (1, PACKAGE, 90_000),
        (1000, PACKAGE, 90_000),
        (1001, PACKAGE, 180_000),
        (5, SkuTerms(included=10), 0),
        (15, SkuTerms(included=10), 5 * LIST),
        (25, SkuTerms("graduated", GRADUATED.tiers, included=5), 10 * 100 + 10 * 50),
        (-5, SkuTerms(), 0),
    ],
)
def test_what_a_month_costs(quantity: int, terms: SkuTerms, expected: int) -> None:
    assert effective_pico(quantity, LIST, terms) == expected


tiers = st.lists(st.tuples(st.integers(1, 1000), st.integers(0, LIST)), min_size=0, max_size=5).map(
    lambda pairs: (
        *(
            Tier(end, price)
            for end, price in zip(sorted({p[0] for p in pairs}), [p[1] for p in pairs], strict=False)
        ),
        Tier(None, 7),
    )
)


@given(tiers, st.integers(0, 2000), st.integers(0, 100), st.sampled_from(["graduated", "volume"]))
def test_terms_are_never_dearer_than_the_list_and_agree_with_counting_unit_by_unit(
    made: tuple[Tier, ...], quantity: int, included: int, scheme: str
) -> None:
    terms = SkuTerms("graduated" if scheme == "graduated" else "volume", made, included=included)
    check_terms("input", terms, LIST)
    cost = effective_pico(quantity, LIST, terms)
    assert 0 <= cost <= quantity * LIST
    billed = max(0, quantity - included)

    def price_of(unit: int) -> int:
        return next(t.unit_price_pico for t in made if t.up_to is None or unit <= t.up_to)

    if scheme == "graduated":
        assert cost == sum(price_of(unit) for unit in range(1, billed + 1))
    else:
        assert cost == billed * price_of(billed)


@given(tiers, st.integers(0, 10**6))
def test_what_is_stored_is_what_is_read(made: tuple[Tier, ...], included: int) -> None:
    terms = {"input": SkuTerms("volume", made, included=included), "output": PACKAGE}
    assert read_terms(terms_document(terms)) == terms


@pytest.mark.parametrize(
    ("terms", "param"),
    [
        (SkuTerms("graduated"), "terms.input.tiers"),
        (SkuTerms("graduated", (Tier(10, 1),)), "terms.input.tiers"),
        (SkuTerms("graduated", (Tier(10, 1), Tier(10, 1), Tier(None, 1))), "terms.input.tiers"),
        (SkuTerms("volume", (Tier(None, LIST + 1),)), "terms.input.tiers"),
        (SkuTerms("per_unit", (Tier(None, 1),)), "terms.input.tiers"),
        (SkuTerms("package", package_size=0, package_price_pico=1), "terms.input.package_size"),
        (SkuTerms("package", package_size=2, package_price_pico=201), "terms.input.package_price"),
        (SkuTerms(included=-1), "terms.input.included"),
    ],
)
def test_incomplete_or_dearer_terms_are_refused(terms: SkuTerms, param: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_terms("input", terms, LIST)
    assert caught.value.param == param
