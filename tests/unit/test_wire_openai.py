"""What is read of a request, what the engine gets, what errors become."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BadRequest, RateLimited, Unauthenticated
from wire.openai import (
    PRIVATE_MEMBERS,
    TokenCounts,
    counts_of,
    error_body,
    estimate_input_tokens,
    finish_reason_of,
    map_engine_error,
    parse_answer,
    parse_request,
    render_error,
    upstream_body,
)

_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def rewritten(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    options = {"served_model": "served", "continuous_usage": True, "cache_salt": "salt"} | changes
    result: dict[str, Any] = json.loads(upstream_body(parse_request(json.dumps(body).encode()), **options))
    return result


@given(st.dictionaries(st.text(), _json))
def test_what_is_not_ours_goes_through_unchanged(members: dict[str, Any]) -> None:
    ours = {"model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens"}
    private = set(PRIVATE_MEMBERS)
    kept = {name: value for name, value in members.items() if name not in ours | private}
    assert rewritten(kept | {"model": "m"}) == kept | {"model": "served", "cache_salt": "salt"}


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(BadRequest):  # anything else fails the test
        parse_request(body)


def test_a_name_given_twice_means_what_the_engine_gets() -> None:
    request = parse_request(b'{"model": "a", "model": "b", "stream": true, "stream": false, "priority": 1}')
    assert (request.model, request.stream) == ("b", False)
    body = upstream_body(request, served_model="s", continuous_usage=False, cache_salt=None)
    assert json.loads(body) == {"model": "s", "stream": False}
    assert body.count(b'"stream"') == 1


def test_stream_options() -> None:
    plain = rewritten({"model": "m", "stream_options": {"include_usage": True}})
    assert plain["stream_options"] == {"include_usage": True}  # not a stream: the engine's business
    asked = rewritten({"model": "m", "stream": True, "stream_options": {"include_usage": False, "x": [1]}})
    assert asked["stream_options"] == {"include_usage": True, "continuous_usage_stats": True, "x": [1]}
    other = {"model": "m", "stream": True, "stream_options": {"continuous_usage_stats": True}}
    assert rewritten(other, continuous_usage=False)["stream_options"] == {"include_usage": True}
    for options in ({"model": "m", "stream": True, "stream_options": None}, {"model": "m", "stream": True}):
        assert not parse_request(json.dumps(options).encode()).wants_usage


def test_the_members_that_are_read() -> None:
    body = {"model": "m", "stream": True, "n": 3, "max_tokens": 5, "max_completion_tokens": 7}
    request = parse_request(json.dumps(body | {"stream_options": {"include_usage": True}}).encode())
    assert (request.model, request.stream, request.choices) == ("m", True, 3)
    assert (request.max_tokens, request.wants_usage) == (7, True)
    nothing = parse_request(b'{"n": null, "stream": null, "max_tokens": null}')
    assert (nothing.model, nothing.stream, nothing.choices, nothing.max_tokens) == (None, False, 1, None)


@pytest.mark.parametrize(("body", "tokens"), [
    ({"messages": [{"role": "user", "content": "12345678"}]}, 2),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "é" * 4}, {"type": "image_url"}]}]}, 2),
    ({"prompt": ["1234", "5"]}, 2),
    ({"prompt": [1, 2, 3]}, 3),
    ({"input": [[1, 2], [3]]}, 3),
    ({"messages": None}, 0),
    ({}, 0),
])  # fmt: skip
def test_the_estimate_of_an_input(body: dict[str, Any], tokens: int) -> None:
    assert estimate_input_tokens(parse_request(json.dumps(body).encode())) == tokens


def test_answers() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
    body = {
        "id": "x",
        "choices": [{"finish_reason": "stop", "message": {"content": "12345678"}}],
        "usage": usage,
    }
    answer = parse_answer(json.dumps(body).encode())
    assert answer is not None
    assert answer.usage is not None
    assert counts_of(answer.usage) == TokenCounts(5, 3, 2, 0)
    assert (finish_reason_of(answer), answer.estimate_output_tokens()) == ("stop", 2)
    odd = parse_answer(json.dumps(body | {"choices": "strange"}).encode())
    assert odd is not None
    assert odd.usage is not None
    for bad in (b"", b"[]", b"<html>", b'"text"', b'{"a":', b"[" * 100_000):
        assert parse_answer(bad) is None


@pytest.mark.parametrize(("status", "body", "expected"), [
    (400, {"error": {"message": "m", "code": 400, "param": "top_p"}}, ("m", "bad_request", "top_p")),
    (400, {"error": {"message": "m", "code": "400"}}, ("m", "bad_request", None)),
    (400, {"object": "error", "message": "m", "code": 400}, ("m", "bad_request", None)),
    (404, {"error": {"message": "m", "code": 404}}, ("m", "not_found", None)),
    (429, {"error": {"message": "m", "code": "too_busy"}}, ("m", "too_busy", None)),
    (500, {"error": "m"}, ("m", "upstream_error", None)),
    (422, {"detail": "m"}, ("m", "bad_request", None)),
    (400, {"message": "[{'type': 'missing', 'loc': ('body', 'messages')}]"}, (None, "bad_request", "messages")),
    (400, {"message": "maximum context length is 10"}, (None, "context_length_exceeded", "messages")),
    (400, {"message": "The decoder prompt (length 9) is longer than the maximum model length of 8."},
     (None, "context_length_exceeded", "messages")),
])  # fmt: skip
def test_engine_errors(status: int, body: object, expected: tuple[str | None, str, str | None]) -> None:
    message, code, param = map_engine_error(status, json.dumps(body).encode())
    assert (code, param) == expected[1:]
    assert expected[0] in (None, message)


@pytest.mark.parametrize(
    "body", [b"", b"<html>traceback</html>", b"[1]", b"null", b"\xff", b'{"error": [1]}']
)
def test_engine_errors_without_a_message(body: bytes) -> None:
    message, code, param = map_engine_error(500, body)
    assert (code, param) == ("upstream_error", None)
    assert "500" in message
    assert "traceback" not in message


def test_rendering() -> None:
    body = render_error(Unauthenticated("no"))["error"]
    assert body == {
        "message": "no",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert render_error(RateLimited("x", extra={"limit": 1}))["error"]["limit"] == 1
    assert error_body(402, "x")["error"]["type"] == "insufficient_quota"
