"""The worst case of a call: never below the truth where money depends on it, and not absurd."""

from typing import Any

import msgspec
import pytest

from functions.gateway.estimate import worst_case
from functions.gateway.figures import cost_of
from metering.model import Usage
from serving.route import Route, Tariff
from tests.gateway_fixture import make_route
from wire.openai import COMPLETION_LIMITS, Operation, parse_request

PRICES = {"input": 10, "output": 100}
NOW = 1_760_000_000_000


def route(**changes: Any) -> Route:
    return make_route(
        "http://engine", **({"tariffs": (Tariff(0, PRICES),), "context_length": 8192} | changes)
    )


def worst(
    operation: Operation = "chat.completions", of: Route | None = None, **body: Any
) -> tuple[int, int | None]:
    raw = msgspec.json.encode({"model": "m"} | body)
    found = worst_case(operation, parse_request(raw), of or route(), raw, NOW)
    return found.tokens, found.cost_pico


def message(text: Any) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_output_is_max_tokens_times_n() -> None:
    one, two = (
        worst(messages=message("Hi"), max_tokens=100),
        worst(messages=message("Hi"), max_tokens=100, n=3),
    )
    assert 200 < two[0] - one[0] < 205
    assert one[1] is not None and two[1] is not None and two[1] - one[1] >= 200 * 100


def test_answers_that_are_made_but_not_shown_are_reserved() -> None:
    shown = worst("completions", prompt="Hi", max_tokens=100, n=2)
    made = worst("completions", prompt="Hi", max_tokens=100, n=2, best_of=5)
    assert made[0] - shown[0] > 295
    assert worst("completions", prompt="Hi", max_tokens=100, n=5, best_of=2)[0] > made[0] - 10


def test_of_two_bounds_of_the_output_the_larger_counts() -> None:
    """Engines differ in which one they heed."""
    bounds = (
        {"max_tokens": 900, "max_completion_tokens": 1},
        {"max_tokens": 1, "max_completion_tokens": 900},
    )
    for both in bounds:
        assert 900 < worst(messages=message("Hi"), **both)[0] < 1000
        request = parse_request(msgspec.json.encode({"prompt": "Hi"} | both), COMPLETION_LIMITS)
        assert request.max_tokens == both["max_tokens"]  # no engine reads the other one there


def test_without_max_tokens_it_is_the_context() -> None:
    tokens, cost = worst(messages=message("Hi"))
    assert tokens == 8192
    assert cost is not None and cost >= 8192 * 100
    assert worst(messages=message("Hi"), max_tokens=10**9)[0] == 8192


def test_money_is_bounded_by_the_bytes_even_of_dense_text() -> None:
    digits = "7" * 3000  # a token each, in some tokenizers
    tokens, cost = worst(messages=message(digits), max_tokens=1)
    assert 1000 < tokens < 1200
    assert cost is not None and cost >= cost_of(Usage(input=3010, output=1), route(), NOW).pico


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ],
)
def test_pictures_and_sound_reserve_the_whole_context(part: Any) -> None:
    tokens, cost = worst(messages=message([part]), max_tokens=10)
    assert tokens == 8192
    assert cost == 8192 * 10 + 10 * 100
    assert worst(messages=message('the word "image" quoted'), max_tokens=10)[0] < 200


@pytest.mark.parametrize("hidden", [rb'"im\u0061ge_url"', rb'"image\u005furl"'])
def test_a_mark_in_disguise_is_a_mark(hidden: bytes) -> None:
    content = rb'[{"type":%b,%b:{"url":"https://example.com/cat.png"}}]' % (hidden, hidden)
    raw = rb'{"model":"m","max_tokens":10,"messages":[{"role":"user","content":%b}]}' % content
    assert worst_case("chat.completions", parse_request(raw), route(), raw, NOW).cost_pico == 8192 * 10 + 1000
    ordinary = rb'{"model":"m","max_tokens":10,"messages":[{"role":"user","content":["\u00e9\u003c\u0026"]}]}'
    assert worst_case("chat.completions", parse_request(ordinary), route(), ordinary, NOW).tokens < 200


def test_a_chat_template_of_the_callers_can_make_anything_of_little() -> None:
    looped = "{% for i in range(9999) %}word {% endfor %}"
    assert worst(messages=message("Hi"), max_tokens=10, chat_template=looped)[1] == 8192 * 10 + 10 * 100


@pytest.mark.parametrize(
    ("operation", "one", "many"),
    [("rerank", "query", "documents"), ("score", "text_1", "text_2"), ("score", "items", "queries")],
)
def test_the_one_side_of_pairs_is_read_with_each_of_the_other(
    operation: Operation, one: str, many: str
) -> None:
    query, texts = "7" * 500, ["7" * 20] * 100
    tokens, cost = worst(operation, **{one: query, many: texts})
    assert cost is not None and cost >= 100 * (500 + 20) * 10
    assert tokens > 100 * 520 // 3
    assert cost < 100 * (500 + 20 + 512 + 100) * 10  # and not absurd
    both_lists = worst(operation, **{one: ["7" * 500] * 100, many: texts})
    assert cost * 0.9 < both_lists[1] < cost * 1.1  # type: ignore[operator]  # a pair each
    context = worst(operation, of=route(context_length=600), **{one: query, many: texts})
    assert context[1] == 100 * 600 * 10


def test_a_list_of_prompts_is_several_calls() -> None:
    one = worst("completions", prompt="Hi", max_tokens=100)
    three = worst("completions", prompt=["Hi", "Hi", "Hi"], max_tokens=100)
    ids = worst("completions", prompt=[1, 2, 3], max_tokens=100)
    assert three[0] > one[0] + 200 and abs(ids[0] - one[0]) < 10
    assert worst("embeddings", input=["a"] * 5)[0] < 500  # no output


def test_a_decided_price_rise_is_reserved_and_a_lower_price_is_not() -> None:
    rise = route(tariffs=(Tariff(0, PRICES), Tariff(NOW + 60_000, {"input": 20, "output": 300})))
    fall = route(tariffs=(Tariff(0, PRICES), Tariff(NOW + 60_000, {"input": 1, "output": 1})))
    past = route(tariffs=(Tariff(0, {"input": 99, "output": 999}), Tariff(NOW - 1, PRICES)))
    usual = worst(messages=message("Hi"), max_tokens=100)[1]
    assert usual is not None
    assert worst(of=rise, messages=message("Hi"), max_tokens=100)[1] > usual + 20_000 - 1  # type: ignore[operator]
    assert worst(of=fall, messages=message("Hi"), max_tokens=100)[1] == usual
    assert worst(of=past, messages=message("Hi"), max_tokens=100)[1] == usual


def test_an_unknown_price_is_said_so_and_cached_input_falls_back() -> None:
    assert (
        worst(of=route(tariffs=(Tariff(0, {"input": 10}),)), messages=message("Hi"), max_tokens=5)[1] is None
    )
    assert worst(of=route(tariffs=()), messages=message("Hi"), max_tokens=5)[1] is None
    assert cost_of(Usage(input=10, cached_input=4, output=1), route(), NOW).pico == 10 * 10 + 100
