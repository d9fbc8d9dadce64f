"""What a caller is told a call cost is what its receipt will say."""

from hypothesis import given
from hypothesis import strategies as st

from billing.rate import rate
from core.money import format_pico
from functions.gateway.figures import cost_lines, cost_of, headers_of, metered
from metering.model import Usage
from serving.route import Tariff
from tests.gateway_fixture import make_route
from wire.openai import TokenCounts

SKUS = ("input", "cached_input", "output", "audio_second", "endpoint_minute")


class _Price:
    id = "price_1"

    def __init__(self, unit_prices: dict[str, int]) -> None:
        self.unit_prices = unit_prices


@given(
    st.dictionaries(st.sampled_from(SKUS), st.integers(0, 10**12)),
    *(st.integers(0, 10**9) for _ in range(4)),
)
def test_the_same_as_rating(
    prices: dict[str, int], fresh: int, cached: int, output: int, audio_ms: int
) -> None:
    usage = Usage(fresh + cached, cached, output, 0, audio_ms)
    route = make_route("http://x", tariffs=(Tariff(0, prices),))
    items, unpriced = rate(usage.billable(), _Price(prices))
    expected = "" if unpriced or not prices else format_pico(sum(item.amount_pico for item in items))
    cost = cost_of(usage, route, 5)
    assert cost.usd == expected
    told = dict(headers_of(cost_lines(usage, cost)))
    assert told.get(b"x-farebox-cost-usd", b"").decode() == expected


def test_prices_of_the_instant() -> None:
    route = make_route("http://x", tariffs=(Tariff(0, {"input": 1}), Tariff(60_000, {"input": 3})))
    assert [cost_of(Usage(1), route, at).usd for at in (0, 59_999, 60_000)] == [
        *("0.000000000001", "0.000000000001", "0.000000000003"),
    ]
    assert cost_of(Usage(1), make_route("http://x"), 0).usd == ""


def test_what_the_engine_left_out_is_estimated() -> None:
    def guess() -> TokenCounts:
        return TokenCounts(7, 0, 0, 0)

    assert metered(None, 3, guess) == (Usage(7, 0, 3), "estimated")
    assert metered(TokenCounts(5, 2, 3, 1), 9, guess) == (Usage(5, 2, 3, 1), "engine")
    assert metered(TokenCounts(5, 0, 0, 0), 0, guess) == (Usage(5), "engine")
    assert metered(TokenCounts(5, 0, 0, 0), 4, guess) == (Usage(5, 0, 4), "estimated")
    assert metered(TokenCounts(0, 0, 0, 0, 1500), 0, guess) == (Usage(audio_ms=1500), "engine")
    heard = TokenCounts(0, 0, 0, 0, 900)
    assert metered(None, 0, lambda: heard) == (Usage(audio_ms=900), "estimated")
