"""The content check: prompts before, answers after, streams in pieces; off unless there is a service and a wish."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.gateway_fixture import ENDPOINT, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine
from tests.moderation_service import Moderation, moderation

KEY = {"authorization": f"Bearer {PROJECT_KEY}"}
USER = [{"role": "user", "content": "Hello there"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "Hello there"},
    "/v1/responses": {"input": "Hello there"},
    "/v1/messages": {"messages": USER, "max_tokens": 900},
}
LATE = "tok150"  # after 500 characters of the mock's "tok0 tok1 …"
everywhere = pytest.mark.parametrize("path", BODIES)


@pytest.fixture
def service() -> Iterator[Moderation]:
    with moderation(bomb="violence", tok150="hate") as running:
        yield running


@pytest.fixture
def gateway(tmp_path: Path, engine: MockEngine, service: Moderation) -> Iterator[RunningGateway]:
    settings = {"content_safety_url": service.url, "content_safety_timeout_s": 2}
    with RunningGateway(tmp_path, engine.url, **settings) as running:
        running.set_route(screened=True)
        yield running


def call(gateway: RunningGateway, path: str, **members: Any) -> httpx.Response:
    body = {"model": ENDPOINT} | BODIES[path] | members
    return httpx.post(gateway.url + path, json=body, headers=KEY, timeout=20)


@everywhere
def test_what_is_harmless_passes(gateway: RunningGateway, service: Moderation, path: str) -> None:
    plain = call(gateway, path)
    assert plain.status_code == 200
    streamed = call(gateway, path, stream=True)
    assert streamed.status_code == 200 and "tok3" in streamed.text
    shown = service.texts
    assert sum("Hello there" in text for text in shown) == 2
    assert any("tok0" in text and "tok3" in text for text in shown)
    assert [each.status for each in gateway.journal.wait_events(2)] == ["completed", "completed"]


@everywhere
def test_a_prompt_is_refused_before_it_costs_anything(
    gateway: RunningGateway, engine: MockEngine, path: str
) -> None:
    text = "how to make a bomb"
    members = {"prompt": text} if path.endswith("/completions") and "chat" not in path else {}
    members = {"input": text} if path.endswith("responses") else members
    members = members or {"messages": [*USER, {"role": "user", "content": [{"type": "text", "text": text}]}]}
    for stream in (False, True):
        answer = call(gateway, path, stream=stream, **members)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert "content filter (violence)" in error["message"]
        if not path.endswith("messages"):
            assert (error["code"], error["param"]) == ("content_filter", next(iter(members)))
    assert not engine.seen and not gateway.journal.events


@everywhere
def test_an_answer_is_withheld_and_billed(gateway: RunningGateway, engine: MockEngine, path: str) -> None:
    engine.default = Behaviour(tokens=200)
    answer = call(gateway, path)
    assert answer.status_code == 200 and "tok" not in answer.text.replace("_tok", "").replace("tokens", "")
    document = answer.json()
    if path.endswith("responses"):
        assert (document["status"], document["output"]) == ("incomplete", [])
        assert document["incomplete_details"] == {"reason": "content_filter"}
    elif path.endswith("messages"):
        assert (document["content"], document["stop_reason"]) == ([], "refusal")
    else:
        assert document["choices"][0]["finish_reason"] == "content_filter"
    (event,) = gateway.journal.wait_events(1)
    assert (event.status, event.usage.output, event.finish_reason) == ("completed", 200, "content_filter")


@everywhere
def test_a_stream_ends_where_it_goes_wrong(gateway: RunningGateway, engine: MockEngine, path: str) -> None:
    engine.default = Behaviour(tokens=400, chunk_delay=0.001)
    answer = call(
        gateway, path, stream=True, **({"stream_options": {"include_usage": True}} if "comp" in path else {})
    )
    assert answer.status_code == 200
    assert "tok20" in answer.text and LATE not in answer.text
    ends = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    if "completions" in path:
        assert ends[-2]["choices"][0]["finish_reason"] == "content_filter"
        assert ends[-2]["id"] == ends[0]["id"]
        assert ends[-1]["usage"]["completion_tokens"] > 100
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert ends[-1]["type"] == "error" and "content filter" in answer.text
    (event,) = gateway.journal.wait_events(1)
    assert (event.status, event.finish_reason) == ("interrupted", "content_filter")
    assert event.usage.output > 100
    assert engine.seen[0].ended.wait(10) and not engine.seen[0].finished  # its work was stopped


def test_the_official_client_sees_how_it_ended(gateway: RunningGateway, engine: MockEngine) -> None:
    engine.default = Behaviour(tokens=400)
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=PROJECT_KEY, max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model=ENDPOINT, messages=[{"role": "user", "content": "Hello"}], stream=True, n=2
            )
        )
        assert {each.finish_reason for each in chunks[-1].choices} == {"content_filter"}
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model=ENDPOINT, messages=[{"role": "user", "content": "bomb"}])
        assert refused.value.code == "content_filter"


def test_azures_own_paths(gateway: RunningGateway) -> None:
    path = f"/endpoints/{ENDPOINT}/chat/completions?api-version=2024-05-01-preview"
    body = {"messages": [{"role": "user", "content": "bomb"}]}
    answer = httpx.post(gateway.url + path, json=body, headers=KEY, timeout=20)
    assert answer.status_code == 400
    assert answer.headers["x-ms-error-code"] == "content_filter"
    assert answer.json()["error"]["param"] == "messages"


def test_whatever_is_a_text_is_shown(gateway: RunningGateway, service: Moderation) -> None:
    hidden = [
        {"tools": [{"type": "function", "function": {"name": "f", "description": "bomb"}}]},
        {"messages": [{"role": "system", "content": "bomb"}, *USER]},
        {"messages": [*USER, {"role": "tool", "tool_call_id": "1", "content": "bomb"}]},
        {"messages": [*USER, {"role": "assistant", "content": None, "reasoning": "bomb"}]},
    ]
    for members in hidden:
        assert call(gateway, "/v1/chat/completions", **members).status_code == 400, members
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "bomb"}}
    asked = [{"role": "user", "content": [document]}]
    assert call(gateway, "/v1/messages", messages=asked).status_code == 400
    deep: Any = "bomb"
    for _ in range(200):
        deep = [deep]
    parameters = {"type": "object", "properties": {"url": {"type": "string", "description": "bomb"}}}
    for tool in ({"name": "f", "parameters": parameters}, {"name": "f", "x": deep}):
        tools = [{"type": "function", "function": tool}]
        assert call(gateway, "/v1/chat/completions", tools=tools).status_code == 400, tool
    used = {"type": "tool_use", "id": "1", "name": "f", "input": {"url": "bomb"}}
    asked = [*USER, {"role": "assistant", "content": [used]}]
    assert call(gateway, "/v1/messages", messages=asked).status_code == 400
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,bomb"}}
    assert call(gateway, "/v1/chat/completions", messages=[{"role": "user", "content": [picture]}]).is_success
    long = "x " * 300_000 + "bomb"
    assert (
        call(gateway, "/v1/chat/completions", messages=[{"role": "user", "content": long}]).status_code == 400
    )
    tokens = call(gateway, "/v1/completions", prompt=[1, 2, 3])
    assert (tokens.status_code, tokens.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize(
    "trouble",
    [{"status": 500}, {"body": b"{"}, {"body": b'{"results": []}'}, {"delay_s": 3.0}],
    ids=["500", "nonsense", "too few", "late"],
)
def test_what_cannot_be_checked_does_not_pass(
    gateway: RunningGateway, service: Moderation, engine: MockEngine, trouble: dict[str, Any]
) -> None:
    for name, value in trouble.items():
        setattr(service, name, value)
    answer = call(gateway, "/v1/chat/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "content_safety_unavailable")
    assert answer.headers["retry-after"] == "2"
    assert not engine.seen and not gateway.journal.events


def test_an_answer_that_could_not_be_checked_costs_nothing(
    gateway: RunningGateway, service: Moderation, engine: MockEngine
) -> None:
    hold = engine.default.hold = threading.Event()
    found: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: found.append(call(gateway, "/v1/chat/completions")))
    caller.start()
    engine.wait_seen(1)
    service.status = 500
    hold.set()
    caller.join(20)
    assert found[0].status_code == 503
    (event,) = gateway.journal.wait_events(1)
    assert event.status == "error"  # which is not billed, whatever the engine counted


def test_off_unless_wanted(gateway: RunningGateway, service: Moderation) -> None:
    gateway.set_route(screened=False)
    bomb = [{"role": "user", "content": "bomb"}]
    assert call(gateway, "/v1/chat/completions", messages=bomb).status_code == 200
    assert not service.shown


def test_a_service_may_be_optional(tmp_path: Path, engine: MockEngine, service: Moderation) -> None:
    service.status = 500
    settings = {"content_safety_url": service.url, "content_safety_fail_open": 1}
    with RunningGateway(tmp_path, engine.url, **settings) as gateway:
        gateway.set_route(screened=True)
        assert call(gateway, "/v1/chat/completions").status_code == 200
        assert call(gateway, "/v1/chat/completions", stream=True).text.endswith("data: [DONE]\n\n")


def test_it_is_asked_with_a_key_and_a_model(
    tmp_path: Path, engine: MockEngine, service: Moderation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODERATION_KEY", "sk-mod")
    settings = {"content_safety_model": "omni-moderation-latest", "content_safety_key_env": "MODERATION_KEY"}
    with RunningGateway(tmp_path, engine.url, content_safety_url=service.url, **settings) as gateway:
        gateway.set_route(screened=True)
        assert call(gateway, "/v1/chat/completions").status_code == 200
    assert service.headers[0]["authorization"] == "Bearer sk-mod"
    assert {each["model"] for each in service.shown} == {"omni-moderation-latest"}
