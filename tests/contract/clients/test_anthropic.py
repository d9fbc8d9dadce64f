"""The official Python client of Anthropic."""

from collections.abc import Iterator

import anthropic
import pytest

from metering.model import Usage
from tests.contract.clients.claims import serves
from tests.contract.clients.values import EMBEDDER, cost, only_event
from tests.gateway_fixture import ENDPOINT, ENDPOINT_KEY, MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine

CLIENT = "anthropic"
TALK = [{"role": "user", "content": "one two three"}]


@pytest.fixture
def claude(gateway: RunningGateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.url, api_key=PROJECT_KEY, max_retries=0) as client:
        yield client


@serves(CLIENT, "/v1/messages")
def test_messages(gateway: RunningGateway, engine: MockEngine, claude: anthropic.Anthropic) -> None:
    engine.default = Behaviour(tokens=3, cached_tokens=2)
    raw = claude.messages.with_raw_response.create(model=MODEL, messages=TALK, max_tokens=20)
    answer = raw.parse()
    assert answer.content[0].text == "tok0 tok1 tok2"
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens) == (1, 2)
    usage = Usage(3, 2, 3)
    event = only_event(gateway, "messages", usage)
    assert (event.engine_request_id, event.finish_reason) == (answer.id, "end_turn")
    assert raw.headers["x-farebox-cost-usd"] == cost(usage)
    assert answer._request_id == event.request_id
    seen = engine.seen[0]
    assert "x-api-key" not in seen.headers
    assert (seen.body["model"], len(seen.body["cache_salt"])) == ("mock", 32)


@serves(CLIENT, "/v1/messages, streamed")
def test_streamed_messages(gateway: RunningGateway, engine: MockEngine, claude: anthropic.Anthropic) -> None:
    engine.default = Behaviour(tokens=3, cached_tokens=2)
    with claude.messages.stream(model=MODEL, messages=TALK, max_tokens=20) as stream:
        assert "".join(stream.text_stream) == "tok0 tok1 tok2"
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    usage = Usage(3, 2, 3)
    only_event(gateway, "messages", usage, stream=True)
    events = list(claude.messages.create(model=MODEL, messages=TALK, max_tokens=20, stream=True))
    assert [e.type for e in (events[0], *events[-2:])] == ["message_start", "message_delta", "message_stop"]
    assert events[-2].usage.model_dump()["cost_usd"] == cost(usage)


def test_tools(gateway: RunningGateway, engine: MockEngine, claude: anthropic.Anthropic) -> None:
    engine.default = Behaviour(tokens=2, tool_calls=True)
    tool = {"name": "f", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    answer = claude.messages.create(model=MODEL, messages=TALK, max_tokens=20, tools=[tool])
    assert (answer.stop_reason, answer.content[0].input) == ("tool_use", {"a": 1})
    with claude.messages.stream(model=MODEL, messages=TALK, max_tokens=20, tools=[tool]) as stream:
        assert stream.get_final_message().content[0].input == {"a": 1}
    assert [event.usage.output for event in gateway.journal.wait_events(2)] == [2, 2]


@serves(CLIENT, "/v1/messages/count_tokens")
def test_counting_is_free(gateway: RunningGateway, claude: anthropic.Anthropic) -> None:
    assert claude.messages.count_tokens(model=MODEL, messages=TALK).input_tokens == 3
    assert not gateway.journal.events
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="wrong").messages.count_tokens(model=MODEL, messages=TALK)


def test_an_endpoints_own_url_and_both_headers(gateway: RunningGateway) -> None:
    base = f"{gateway.url}/endpoints/{ENDPOINT}"
    for named in ({"api_key": ENDPOINT_KEY}, {"auth_token": ENDPOINT_KEY}):
        with anthropic.Anthropic(base_url=base, max_retries=0, **named) as client:
            assert client.messages.create(model=ENDPOINT, messages=TALK, max_tokens=9).content


def test_errors_are_anthropics(
    gateway: RunningGateway, engine: MockEngine, claude: anthropic.Anthropic
) -> None:
    def fails(kind: type[anthropic.APIStatusError], word: str, **changes: object) -> anthropic.APIStatusError:
        call = {"model": MODEL, "messages": TALK, "max_tokens": 9} | changes
        with pytest.raises(kind) as caught:
            claude.messages.create(**call)  # type: ignore[call-overload]  # wrong on purpose
        body = caught.value.body
        assert isinstance(body, dict)
        assert (body["type"], body["error"]["type"]) == ("error", word)
        assert body["request_id"] == caught.value.response.headers["request-id"]
        return caught.value

    fails(anthropic.NotFoundError, "not_found_error", model="acme/none")
    fails(anthropic.NotFoundError, "not_found_error", model=EMBEDDER)
    assert "max_tokens" in fails(anthropic.BadRequestError, "invalid_request_error", max_tokens=-1).message
    assert "stream" in fails(anthropic.BadRequestError, "invalid_request_error", stream="x").message
    assert not engine.seen
    engine.default = Behaviour(status=400, error={"type": "error", "error": {"type": "Bad", "message": "no"}})
    assert "no" in fails(anthropic.BadRequestError, "invalid_request_error").message
    engine.default = Behaviour(status=503)
    fails(anthropic.InternalServerError, "overloaded_error")
    engine.default = Behaviour(tokens=4, fail_after=2, fail_how="error_event")
    with pytest.raises(anthropic.APIStatusError):
        list(claude.messages.create(model=MODEL, messages=TALK, max_tokens=9, stream=True))
    assert [event.status for event in gateway.journal.wait_events(3)] == ["error"] * 3
    claude.api_key = "wrong"
    fails(anthropic.AuthenticationError, "authentication_error")
