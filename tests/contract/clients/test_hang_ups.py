"""A caller who leaves, an engine that breaks: the same policy on every route."""

import http.client
import json
import threading
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.contract.clients.values import EAR, RERANKER
from tests.gateway_fixture import ENDPOINT, MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine

AUTH = {"authorization": f"Bearer {PROJECT_KEY}", "content-type": "application/json"}
TALK = [{"role": "user", "content": "one two three"}]
STREAMED: dict[str, Any] = {
    "/v1/chat/completions": {"model": MODEL, "messages": TALK},
    "/v1/completions": {"model": MODEL, "prompt": "one two three"},
    "/v1/responses": {"model": MODEL, "input": "one two three"},
    "/v1/messages": {"model": MODEL, "messages": TALK, "max_tokens": 99},
    f"/endpoints/{ENDPOINT}/chat/completions?api-version=2024-05-01-preview": {"messages": TALK},
}
PLAIN = STREAMED | {
    "/v1/rerank": {"model": RERANKER, "query": "one", "documents": ["two three"]},
    "/v1/score": {"model": RERANKER, "text_1": "one", "text_2": "two three"},
}


def begin(gateway: RunningGateway, path: str, body: Any) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    connection.request("POST", path, json.dumps(body), AUTH)
    return connection


@pytest.mark.parametrize("path", STREAMED)
def test_leaving_within_a_stream(gateway: RunningGateway, engine: MockEngine, path: str) -> None:
    engine.default = Behaviour(tokens=200, chunk_delay=0.02)
    connection = begin(gateway, path, STREAMED[path] | {"stream": True})
    response = connection.getresponse()
    while b"tok3" not in response.readline():
        pass
    connection.close()
    response.close()
    [event] = gateway.journal.wait_events(1)
    seen = engine.seen[0]
    assert seen.ended.wait(5) and seen.disconnected
    assert (event.status, event.stream) == ("client_disconnect", True)
    counted = path != "/v1/responses"  # whose usage comes with its last event only
    assert (event.usage.input, event.usage_source) == (
        (3, event.usage_source) if counted else (4, "estimated")
    )
    assert 3 <= event.usage.output <= seen.produced < 200


@pytest.mark.parametrize("path", PLAIN)
def test_leaving_before_a_plain_answer(gateway: RunningGateway, engine: MockEngine, path: str) -> None:
    hold = threading.Event()
    engine.default = Behaviour(hold=hold)
    connection = begin(gateway, path, PLAIN[path])
    engine.wait_seen(1)
    connection.close()
    [event] = gateway.journal.wait_events(1)
    assert engine.seen[0].ended.wait(5) and engine.seen[0].disconnected
    assert (event.status, event.usage_source) == ("client_disconnect", "estimated")
    assert event.usage.input > 0 and event.usage.output == 0


@pytest.mark.parametrize("how", ["cut", "error_event", "clean_end"])
@pytest.mark.parametrize("path", STREAMED)
def test_an_engine_that_breaks_within_a_stream(
    gateway: RunningGateway, engine: MockEngine, path: str, how: Any
) -> None:
    engine.default = Behaviour(tokens=9, fail_after=3, fail_how=how)
    response = httpx.post(gateway.url + path, json=STREAMED[path] | {"stream": True}, headers=AUTH)
    data = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    assert response.status_code == 200
    assert "error" in json.dumps(data[-1])
    for end in ("[DONE]", "message_stop", "response.completed"):
        assert end not in response.text
    [event] = gateway.journal.events
    assert event.status == "error"
    assert len(engine.seen) == 1  # never a second attempt after the first byte


@pytest.mark.parametrize("path", PLAIN)
def test_a_server_that_was_gone_is_asked_once_more(
    gateway: RunningGateway, engine: MockEngine, path: str
) -> None:
    gateway.directory.routes = [replace(route, external=True) for route in gateway.directory.routes]
    gateway.directory.changed("endpoint", "all")
    time.sleep(0.3)
    gateway.directory.routes = [replace(route, external=True) for route in gateway.directory.routes]
    gateway.directory.changed("endpoint", "all")
    time.sleep(0.3)
    engine.script.append(Behaviour(reset=True))
    assert httpx.post(gateway.url + path, json=PLAIN[path], headers=AUTH).status_code == 200
    first, second = gateway.journal.wait_events(2)
    assert (first.status, second.status) == ("error", "completed")
    assert (second.attempt, second.request_id) == (2, first.request_id)


def test_leaving_before_a_transcript(gateway: RunningGateway, engine: MockEngine) -> None:
    hold = threading.Event()
    engine.default = Behaviour(hold=hold)
    form = httpx.Request("POST", "http://x", files={"file": ("a.mp3", b"x" * 16_000)}, data={"model": EAR})
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    headers = AUTH | {"content-type": form.headers["content-type"]}
    connection.request("POST", "/v1/audio/transcriptions", form.read(), headers)
    engine.wait_seen(1)
    connection.close()
    [event] = gateway.journal.wait_events(1)
    assert (event.status, event.usage.audio_ms, event.usage_source) == (
        "client_disconnect",
        1000,
        "estimated",
    )
