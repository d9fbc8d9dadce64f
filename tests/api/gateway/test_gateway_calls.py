"""Calls that go well, judged by the official client: answers, usage as asked for, one durable event each."""

import json

import httpx
import openai
import pytest

from metering.model import Usage
from tests.gateway_fixture import (
    ENDPOINT,
    ENDPOINT_KEY,
    MODEL,
    OTHER_KEY,
    PROJECT_KEY,
    RunningGateway,
    make_route,
)
from tests.mock_engine import Behaviour, MockEngine
from wire.openai import PRIVATE_MEMBERS

MESSAGES = [{"role": "user", "content": "one two three"}]


def post(
    gateway: RunningGateway, body: object, path: str = "/v1/chat/completions", **headers: str
) -> httpx.Response:
    headers = {"authorization": f"Bearer {PROJECT_KEY}"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(gateway.url + path, content=content, headers=headers, timeout=20)


def frames(text: str) -> list[dict]:
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in data if line != "[DONE]"]


def test_a_chat_call(gateway: RunningGateway, engine: MockEngine, client: openai.OpenAI) -> None:
    engine.default = Behaviour(tokens=3, cached_tokens=2, reasoning_tokens=1)
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES)
    answer = raw.parse()
    assert answer.choices[0].message.content == "tok0 tok1 tok2"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)
    [event] = gateway.journal.events
    assert raw.headers["x-request-id"] == event.request_id
    assert event.request_id.startswith("req_")
    assert event.usage == Usage(input=3, cached_input=2, output=3, reasoning=1)
    assert (event.status, event.usage_source, event.http_status) == ("completed", "engine", 200)
    assert (event.org_id, event.project_id, event.key_id) == ("org_1", "prj_1", "key_1")
    assert (event.endpoint_id, event.deployment_id, event.model_id) == ("ep_1", "dep_1", MODEL)
    assert (event.operation, event.stream, event.finish_reason) == ("chat.completions", False, "stop")
    assert event.engine_request_id == answer.id
    assert 0 < event.received_ms <= event.sent_ms <= event.first_byte_ms <= event.ended_ms


def test_what_the_engine_gets(gateway: RunningGateway, engine: MockEngine) -> None:
    private = {name: {"a": 1} for name in PRIVATE_MEMBERS} | {"priority": -9, "cache_salt": "x"}
    body = {"model": MODEL, "messages": MESSAGES, "temperature": 0.5, "metadata": {"k": [1, 2.5]}} | private
    assert post(gateway, body, x_request_id="theirs", cookie="a=b", accept_encoding="gzip").status_code == 200
    seen = engine.seen[-1]
    salt = seen.body.pop("cache_salt")
    assert len(salt) == 32
    expected = {"model": "mock", "messages": MESSAGES, "temperature": 0.5, "metadata": {"k": [1, 2.5]}}
    assert seen.body == expected
    headers = {name.lower(): value for name, value in seen.headers.items()}
    assert headers["accept-encoding"] == "identity"
    assert headers["x-request-id"] == gateway.journal.events[0].request_id
    assert not {"authorization", "cookie"} & set(headers)
    post(gateway, body)
    assert engine.seen[-1].body["cache_salt"] == salt  # of the tenant, not of the call


def test_tenants_share_no_prefix_cache(gateway: RunningGateway, engine: MockEngine) -> None:
    theirs = make_route(engine.url, endpoint_id="ep_2", org_id="org_2", project_id="prj_2")
    gateway.directory.routes.append(theirs)
    body = {"model": MODEL, "messages": MESSAGES}
    for key in (PROJECT_KEY, OTHER_KEY, PROJECT_KEY):
        httpx.post(
            gateway.url + "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
        ).raise_for_status()
    first, second, third = (seen.body["cache_salt"] for seen in engine.seen)
    assert first == third != second


def test_an_attached_server_gets_its_own_key(
    gateway: RunningGateway, engine: MockEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.set_route(external=True, continuous_usage=False, upstream_key_env="ACME_KEY")
    response = post(gateway, {"model": MODEL, "messages": MESSAGES})
    assert response.status_code == 502
    assert "ACME_KEY" in response.json()["error"]["message"]
    monkeypatch.setenv("ACME_KEY", "s3cret")
    body = {"model": MODEL, "messages": MESSAGES, "stream": True, "stream_options": {"x": 1}}
    assert post(gateway, body).status_code == 200
    seen = engine.seen[-1]
    assert seen.headers["Authorization"] == "Bearer s3cret"
    assert seen.body["stream_options"] == {"x": 1, "include_usage": True}
    assert "cache_salt" not in seen.body


def test_a_stream_for_one_who_did_not_ask_for_usage(gateway: RunningGateway, engine: MockEngine) -> None:
    engine.default = Behaviour(tokens=3, cached_tokens=1)
    response = post(gateway, {"model": MODEL, "messages": MESSAGES, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")
    assert "usage" not in response.text
    assert len(frames(response.text)) == 4  # the role and three tokens
    options = engine.seen[-1].body["stream_options"]
    assert options == {"include_usage": True, "continuous_usage_stats": True}
    [event] = gateway.journal.events
    assert event.usage == Usage(input=3, cached_input=1, output=3)
    assert (event.stream, event.status, event.usage_source) == (True, "completed", "engine")
    assert response.headers["x-request-id"] == event.request_id


def test_a_stream_for_one_who_asked(gateway: RunningGateway, engine: MockEngine) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": MODEL, "messages": MESSAGES, "stream": True, "stream_options": options}
    *chunks, last = frames(post(gateway, body).text)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert len(chunks) == 5
    assert all(chunk["usage"] is None for chunk in chunks)


@pytest.mark.parametrize("behaviour", [
    Behaviour(newline="\r\n", comments=True, write_size=3),
    Behaviour(write_size=1),
    Behaviour(burst=True, comments=True),
    Behaviour(force_usage=True, usage="normal", continuous=False),
])  # fmt: skip
def test_framing_does_not_matter(
    gateway: RunningGateway, engine: MockEngine, client: openai.OpenAI, behaviour: Behaviour
) -> None:
    engine.script.append(behaviour)
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "tok0 tok1 tok2 tok3 "
    [event] = gateway.journal.wait_events(1)
    assert event.usage == Usage(input=3, output=4)


def test_several_choices_and_prompts(
    gateway: RunningGateway, engine: MockEngine, client: openai.OpenAI
) -> None:
    engine.default = Behaviour(tokens=2)
    list(client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, stream=True))
    list(client.completions.create(model=MODEL, prompt=["a b", "c d"], n=2, stream=True))
    answer = client.completions.create(model=MODEL, prompt=["a b", "c d"])
    assert len(answer.choices) == 2
    used = [(event.usage.input, event.usage.output) for event in gateway.journal.wait_events(3)]
    assert used == [(3, 6), (4, 8), (4, 4)]


def test_running_counts_of_several_choices_are_summed(
    gateway: RunningGateway, engine: MockEngine, client: openai.OpenAI
) -> None:
    """Each chunk counts its own choice only; a caller who leaves before the final count owes them all."""
    engine.default = Behaviour(tokens=1000, chunk_delay=0.005)
    received = [0, 0, 0]
    with client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, stream=True) as stream:
        for chunk in stream:
            received[chunk.choices[0].index] += bool(chunk.choices[0].delta.content)
            if received == [7, 7, 7]:
                break
    [event] = gateway.journal.wait_events(1)
    assert engine.seen[0].ended.wait(5)
    assert (event.status, event.usage_source, event.usage.input) == ("client_disconnect", "engine", 3)
    assert 21 <= event.usage.output <= engine.seen[0].produced


def test_a_comment_is_not_the_first_token(gateway: RunningGateway, engine: MockEngine) -> None:
    engine.default = Behaviour(ping_delay=0.4)
    text = post(gateway, {"model": MODEL, "messages": MESSAGES, "stream": True}).text
    assert text.startswith("data: ")
    [event] = gateway.journal.wait_events(1)
    assert event.first_byte_ms - event.sent_ms >= 390


def test_tool_calls_are_counted(gateway: RunningGateway, engine: MockEngine, client: openai.OpenAI) -> None:
    engine.default = Behaviour(tool_calls=True, finish_reason="tool_calls")
    list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    [event] = gateway.journal.wait_events(1)
    assert (event.usage.output, event.finish_reason) == (4, "tool_calls")


def test_embeddings(gateway: RunningGateway, engine: MockEngine, client: openai.OpenAI) -> None:
    gateway.set_route(task="embedding")
    more = {"n": 5}  # means nothing here, so the engine read the input once
    answer = client.embeddings.create(
        model=MODEL, input=["a b", "c"], encoding_format="float", extra_body=more
    )
    assert len(answer.data) == 2
    [event] = gateway.journal.events
    assert (event.operation, event.usage, event.usage_source) == ("embeddings", Usage(input=3), "engine")
    assert len(engine.seen[-1].body["cache_salt"]) == 32
    with pytest.raises(openai.NotFoundError, match="does embedding"):
        client.chat.completions.create(model=MODEL, messages=MESSAGES)


async def test_the_async_client(gateway: RunningGateway) -> None:
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=PROJECT_KEY) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        chunks = [chunk async for chunk in stream]
        assert len(chunks) == 5
        assert (await client.models.list()).data[0].id == MODEL


def test_models(gateway: RunningGateway, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, ENDPOINT]
    assert client.models.retrieve(MODEL).id == MODEL
    assert client.models.retrieve(ENDPOINT).id == ENDPOINT
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no/such")
    assert caught.value.code == "model_not_found"
    other = openai.OpenAI(base_url=gateway.url + "/v1", api_key=OTHER_KEY)
    assert list(other.models.list()) == []


def test_below_the_endpoints_own_url(gateway: RunningGateway, engine: MockEngine) -> None:
    base = f"{gateway.url}/endpoints/{ENDPOINT}/v1"
    for key in (ENDPOINT_KEY, PROJECT_KEY):
        client = openai.OpenAI(base_url=base, api_key=key, max_retries=0)
        assert [model.id for model in client.models.list()] == [MODEL, ENDPOINT]
        for model in (MODEL, ENDPOINT):
            assert client.chat.completions.create(model=model, messages=MESSAGES).choices
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=MESSAGES)
    path = f"/endpoints/{ENDPOINT}/v1/chat/completions"
    assert post(gateway, {"messages": MESSAGES}, path).status_code == 200  # the URL names the model
    answer = httpx.post(gateway.url + path, json={"messages": MESSAGES}, headers={"api-key": ENDPOINT_KEY})
    assert answer.status_code == 200
    assert post(gateway, {"messages": MESSAGES}, "/endpoints/none/v1/chat/completions").status_code == 404
    assert gateway.journal.events[0].key_id == "key_3"


def test_no_answer_ends_before_its_event_is_durable(
    gateway: RunningGateway, engine: MockEngine, client: openai.OpenAI
) -> None:
    gateway.journal.delay_s = 0.2
    client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert len(gateway.journal.events) == 1
    post(gateway, {"model": MODEL, "messages": MESSAGES, "stream": True})
    assert len(gateway.journal.events) == 2
    gateway.journal.broken_append = True
    response = post(gateway, {"model": MODEL, "messages": MESSAGES})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "metering_unavailable")
    response = post(gateway, {"model": MODEL, "messages": MESSAGES, "stream": True})
    assert "[DONE]" not in response.text
    assert frames(response.text)[-1]["error"]["code"] == "metering_unavailable"
    gateway.journal.broken = True
    assert post(gateway, {"model": MODEL, "messages": MESSAGES}).headers["retry-after"] == "5"


def test_missing_usage_is_estimated_and_marked(gateway: RunningGateway, engine: MockEngine) -> None:
    gateway.set_route(continuous_usage=False)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 40}]}
    for usage in ("missing", "null", "zero"):
        engine.default = Behaviour(tokens=4, usage=usage, continuous=False)
        post(gateway, body)
        post(gateway, body | {"stream": True})
    for event in gateway.journal.wait_events(6):
        assert (event.status, event.usage_source, event.usage.input) == ("completed", "estimated", 10)
        assert event.usage.output == (4 if event.stream else 5)  # 19 bytes of text


def test_warm_calls_ask_the_database_nothing(gateway: RunningGateway, client: openai.OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=MESSAGES)
    before = gateway.directory.loads
    for _ in range(5):
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert gateway.directory.loads == before


def test_progress_of_a_long_stream_is_noted(gateway: RunningGateway, engine: MockEngine) -> None:
    engine.default = Behaviour(tokens=12, chunk_delay=0.2)
    post(gateway, {"model": MODEL, "messages": MESSAGES, "stream": True})
    noted = gateway.journal.progress
    assert 1 <= len(noted) <= 3
    assert all(event.status == "interrupted" for event in noted)
    assert 0 < noted[0].usage.output < 12
    assert noted[0].event_id == gateway.journal.events[0].event_id
