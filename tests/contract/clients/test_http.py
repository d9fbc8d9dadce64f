"""Routes that no official client has, and all routes as bytes."""

import json
from typing import Any

import httpx
import pytest

from metering.model import Usage
from tests.contract.clients.claims import serves
from tests.contract.clients.values import EAR, RERANKER, cost, only_event
from tests.gateway_fixture import MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine
from wire.openai import PRIVATE_MEMBERS

CLIENT = "plain HTTP"
AUTH = {"authorization": f"Bearer {PROJECT_KEY}"}


def post(gateway: RunningGateway, path: str, body: Any, **more: Any) -> httpx.Response:
    headers = AUTH | more.pop("headers", {})
    return httpx.post(gateway.url + path, json=body, headers=headers, timeout=20, **more)


@serves(CLIENT, "/v1/rerank")
def test_rerank(gateway: RunningGateway) -> None:
    body = {"model": RERANKER, "query": "one", "documents": ["two three", "four"], "top_n": 1}
    response = post(gateway, "/v1/rerank", body)
    assert [result["index"] for result in response.json()["results"]] == [0]
    only_event(gateway, "rerank", Usage(4))
    assert response.headers["x-farebox-cost-usd"] == cost(Usage(4))


@serves(CLIENT, "/v1/score")
def test_score(gateway: RunningGateway) -> None:
    response = post(gateway, "/v1/score", {"model": RERANKER, "text_1": "one", "text_2": ["two", "three"]})
    assert [result["score"] for result in response.json()["data"]] == [0.5, 0.5]
    only_event(gateway, "score", Usage(3))


def test_missing_counts_are_estimated(gateway: RunningGateway, engine: MockEngine) -> None:
    engine.default = Behaviour(usage="missing", tokens=4)
    post(gateway, "/v1/rerank", {"model": RERANKER, "query": "x" * 8, "documents": ["y" * 12]})
    for path in ("/v1/responses", "/v1/messages"):
        for stream in (False, True):
            text = (
                {"input": "x" * 40}
                if "resp" in path
                else {"messages": [{"role": "user", "content": "x" * 40}]}
            )
            post(gateway, path, {"model": MODEL, "max_tokens": 99, "stream": stream} | text)
    events = gateway.journal.wait_events(5)
    assert {event.usage_source for event in events} == {"estimated"}
    assert [event.usage.input for event in events] == [5, 10, 10, 10, 10]
    assert events[0].usage.output == 0
    assert all(event.usage.output >= 4 for event in events[1:])


@serves(CLIENT, "/tokenize, /v1/tokenize")
def test_tokenizing_is_free_but_needs_a_key(gateway: RunningGateway, engine: MockEngine) -> None:
    for path in (
        "/tokenize",
        "/v1/tokenize",
        "/endpoints/my-mock/v1/tokenize",
        "/endpoints/my-mock/tokenize",
    ):
        response = post(gateway, path, {"model": MODEL, "prompt": "one two"})
        assert response.json()["count"] == 2
        assert httpx.post(gateway.url + path, json={"model": MODEL, "prompt": "x"}).status_code == 401
    assert engine.seen[0].path == "/tokenize"
    assert (
        post(gateway, "/tokenize", {"model": EAR, "prompt": "x"}).json()["error"]["code"] == "model_not_found"
    )
    engine.default = Behaviour(status=400)
    assert post(gateway, "/tokenize", {"model": MODEL}).status_code == 400
    engine.default = Behaviour(reset=True)
    assert post(gateway, "/tokenize", {"model": MODEL}).json()["error"]["code"] == "model_unavailable"
    assert not gateway.journal.events


@pytest.mark.parametrize(("files", "data", "param"), [
    ({}, {"model": EAR, "x": "y"}, "file"),
    ({"file": ("a.wav", b"")}, {"model": EAR}, "file"),
    ({"file": (None, b"abc")}, {"model": EAR}, "file"),
    ({"file": ("a.wav", b"abc")}, {}, "model"),
    ({"file": ("a.wav", b"abc")}, {"model": "x" * 300}, "model"),
    ({"file": ("a.wav", b"abc")}, {"model": EAR, "response_format": "srt"}, "response_format"),
    ({"file": ("a.wav", b"abc")}, {"model": EAR, "response_format": "xml"}, "response_format"),
    ({"file": ("a.wav", b"abc")}, {"model": EAR, "stream": "perhaps"}, "stream"),
    (
        {"file": ("a.wav", b"abc")},
        {"model": EAR, "stream": "true", "response_format": "verbose_json"},
        "response_format",
    ),
])  # fmt: skip
def test_forms_that_are_wrong(
    gateway: RunningGateway, engine: MockEngine, files: Any, data: Any, param: str
) -> None:
    files = files or {"other": (None, b"")}
    url = gateway.url + "/v1/audio/transcriptions"
    response = httpx.post(url, files=files, data=data, headers=AUTH)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not engine.seen


@pytest.mark.parametrize(("content_type", "body"), [
    ("application/json", b"{}"),
    ("multipart/form-data", b"--x\r\n\r\n--x--"),
    ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nabc"),
    ("multipart/form-data; boundary=x", b"--x\r\n\r\nabc\r\n--x--\r\n"),
    ("multipart/form-data; boundary=x", b"--x\r\na: b\r\n\r\nc" * 100 + b"\r\n--x--\r\n"),
    ("multipart/form-data; boundary=" + "x" * 300, b""),
    ("", b"\xff\xfe"),
])  # fmt: skip
def test_bodies_that_are_no_form(gateway: RunningGateway, content_type: str, body: bytes) -> None:
    url = gateway.url + "/v1/audio/transcriptions"
    headers = AUTH | {"content-type": content_type}
    response = httpx.post(url, content=body, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_form")


def test_private_members_do_not_reach_the_engine(gateway: RunningGateway, engine: MockEngine) -> None:
    private: dict[str, Any] = {name: {} for name in PRIVATE_MEMBERS} | {
        "priority": -9,
        "cache_salt": "theirs",
    }
    bodies = {
        "/v1/responses": {"input": "hi", "model": MODEL},
        "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "model": MODEL},
        "/v1/rerank": {"query": "a", "documents": ["b"], "model": RERANKER},
        "/tokenize": {"prompt": "a", "model": MODEL},
    }
    for path, body in bodies.items():
        assert post(gateway, path, body | private).status_code == 200
        seen = engine.seen[-1].body
        assert set(private) & set(seen) <= {"cache_salt"}
        assert seen.get("cache_salt") != "theirs"
        assert ("cache_salt" in seen) == (path != "/tokenize")  # where nothing is cached
    form = {"file": ("a.wav", b"abc")}
    data = {"model": EAR} | {name: json.dumps(value) for name, value in private.items()}
    url = gateway.url + "/v1/audio/transcriptions"
    assert httpx.post(url, files=form, data=data, headers=AUTH).status_code == 200
    assert not set(private) & set(engine.seen[-1].body)
