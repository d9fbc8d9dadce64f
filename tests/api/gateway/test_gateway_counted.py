"""Engines that give no usage: counted with the model's own tokenizer, on every route and in both lanes."""

import asyncio
import json
import logging
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from functions.tokens import TokenCounter
from metering.model import Usage, UsageEvent
from serving.route import Tariff
from tests.gateway_fixture import MODEL, PROJECT_KEY, RunningGateway, make_route
from tests.mock_engine import Behaviour, Json, MockEngine, wait_until
from tests.small_tokenizer import make_tokenizer, rendered, tokens

AUTH = {"authorization": f"Bearer {PROJECT_KEY}"}
EMBEDDER, RERANKER = "acme/embedder", "acme/reranker"
ASKED = "a question, again"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": ASKED}]}
BODIES: dict[str, Json] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": MODEL, "prompt": [ASKED, "one two"]},
    "/v1/responses": {"model": MODEL, "instructions": "again", "input": ASKED},
    "/v1/messages": {**CHAT, "system": [{"type": "text", "text": "again"}], "max_tokens": 99},
    "/v1/embeddings": {"model": EMBEDDER, "input": [ASKED, "one two"]},
    "/v1/rerank": {"model": RERANKER, "query": "a question", "documents": ["one two", "three"]},
    "/v1/score": {"model": RERANKER, "text_1": ["one", "two"], "text_2": ["three", "four"]},
}
STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
SAID = "tok0 tok1 tok2 tok3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return make_tokenizer(folder)


@pytest.fixture
def gateway(tmp_path: Path, engine: MockEngine) -> Any:
    engine.default = Behaviour(tokens=4, usage="missing", continuous=False)
    made = RunningGateway(tmp_path, engine.url)
    usual: Json = {"continuous_usage": False, "external": True}
    tariffs = (Tariff(0, {"input": 150_000, "output": 600_000}),)
    made.directory.routes = [
        make_route(engine.url, tariffs=tariffs, **usual),
        *(
            make_route(
                engine.url, endpoint_id=model, endpoint_name=model[5:], model_id=model, task=task, **usual
            )
            for task, model in (("embedding", EMBEDDER), ("rerank", RERANKER))
        ),
    ]
    with made:
        yield made


def vllm_tokenizer(tokenizer: Any) -> Any:
    """`/tokenize` as vLLM answers it."""

    def answer(body: Json) -> web.Response:
        if "messages" in body:
            turns = [(message["role"], message["content"]) for message in body["messages"]]
            count = tokens(tokenizer, rendered(*turns))
        else:
            count = tokens(tokenizer, body["prompt"], special=body["add_special_tokens"])
        return web.json_response({"count": count, "max_model_len": 8192, "tokens": list(range(count))})

    return answer


def expected_input(tokenizer: Any, path: str, *, by_engine: bool) -> int:
    """By hand, for `BODIES`."""
    single = tokens(tokenizer, ASKED, special=True) + tokens(tokenizer, "one two", special=True)
    pairs = {
        "/v1/rerank": [("a question", "one two"), ("a question", "three")],
        "/v1/score": [("one", "three"), ("two", "four")],
    }
    if path in pairs and by_engine:  # it cannot be asked for pairs
        return sum(tokens(tokenizer, text) for pair in pairs[path] for text in pair)
    if path in pairs:
        return sum(tokens(tokenizer, first, second, special=True) for first, second in pairs[path])
    if path in ("/v1/completions", "/v1/embeddings"):
        return single
    system = [("system", "again")] if path != "/v1/chat/completions" else []
    return tokens(tokenizer, rendered(*system, ("user", ASKED)))


def expected_output(tokenizer: Any, path: str, *, stream: bool) -> int:
    if path not in STREAMED:
        return 0
    spaced = stream and path in ("/v1/chat/completions", "/v1/completions")
    prompts = 2 if path == "/v1/completions" else 1
    return prompts * tokens(tokenizer, SAID + (" " if spaced else ""))


def call(gateway: RunningGateway, path: str, body: Json) -> httpx.Response:
    response = httpx.post(gateway.url + path, json=body, headers=AUTH, timeout=20)
    assert response.status_code == 200, response.text
    return response


def last_event(gateway: RunningGateway, count: int) -> UsageEvent:
    return gateway.journal.wait_events(count)[count - 1]


@pytest.mark.parametrize("by", ["engine", "file"])
@pytest.mark.parametrize("path", BODIES)
def test_counted_exactly(
    gateway: RunningGateway, engine: MockEngine, tokenizer: Any, folder: Path, path: str, by: str
) -> None:
    if by == "engine":
        engine.counts = vllm_tokenizer(tokenizer)
    else:
        gateway.control.tokens = TokenCounter(lambda _: folder / "tokenizer.json")
    number = 0
    for usage in ("missing", "null", "zero"):
        engine.default.usage = usage  # type: ignore[assignment]
        for stream in (False, True) if path in STREAMED else (False,):
            call(gateway, path, BODIES[path] | ({"stream": True} if stream else {}))
            number += 1
            event = last_event(gateway, number)
            assert (event.status, event.usage_source) == ("completed", "counted")
            assert event.usage == Usage(
                expected_input(tokenizer, path, by_engine=by == "engine"),
                0,
                expected_output(tokenizer, path, stream=stream),
            )


def test_the_caller_is_told_what_was_counted(
    gateway: RunningGateway, engine: MockEngine, tokenizer: Any
) -> None:
    engine.counts = vllm_tokenizer(tokenizer)
    plain = call(gateway, "/v1/chat/completions", CHAT)
    event = last_event(gateway, 1)
    assert plain.headers["x-farebox-input-tokens"] == str(event.usage.input)
    assert plain.headers["x-farebox-output-tokens"] == str(event.usage.output)
    for usage in ("missing", "zero"):
        engine.default.usage = usage  # type: ignore[assignment]
        body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
        streamed = call(gateway, "/v1/chat/completions", body)
        chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
        last = chunks[-1]
        event = gateway.journal.events[-1]
        assert last["choices"] == [] and last["id"] == chunks[0]["id"]
        assert last["usage"]["prompt_tokens"] == event.usage.input
        assert last["usage"]["completion_tokens"] == event.usage.output
        pico = 150_000 * event.usage.input + 600_000 * event.usage.output
        assert Decimal(str(last["usage"]["cost_usd"])) * 10**12 == pico


def test_tool_calls_and_thoughts_are_output(
    gateway: RunningGateway, engine: MockEngine, tokenizer: Any
) -> None:
    engine.counts = vllm_tokenizer(tokenizer)
    engine.default.tool_calls = True
    call(gateway, "/v1/chat/completions", CHAT)
    name_and_arguments = tokens(tokenizer, "f") + tokens(tokenizer, SAID)
    assert last_event(gateway, 1).usage.output == name_and_arguments
    call(gateway, "/v1/chat/completions", CHAT | {"stream": True})
    assert last_event(gateway, 2).usage.output == tokens(tokenizer, SAID + " ")
    thought = {
        "role": "assistant",
        "reasoning_content": "one two",
        "reasoning": "one two",
        "content": "three",
    }
    answer = {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": thought}]}
    engine.script.append(Behaviour(raw_body=json.dumps(answer).encode()))
    call(gateway, "/v1/chat/completions", CHAT)
    event = last_event(gateway, 3)
    assert event.usage_source == "counted"
    assert event.usage.output == tokens(tokenizer, "one two") + tokens(tokenizer, "three")


def test_leaving_is_counted_by_what_was_produced(
    gateway: RunningGateway, engine: MockEngine, tokenizer: Any
) -> None:
    engine.counts = vllm_tokenizer(tokenizer)
    engine.default = Behaviour(tokens=500, chunk_delay=0.01, continuous=False)
    body = CHAT | {"stream": True}
    with httpx.stream("POST", gateway.url + "/v1/chat/completions", json=body, headers=AUTH) as response:
        lines = response.iter_lines()
        for _ in range(12):
            next(lines)
    event = last_event(gateway, 1)
    assert (event.status, event.usage_source) == ("client_disconnect", "counted")
    assert event.usage.input == expected_input(tokenizer, "/v1/chat/completions", by_engine=True)
    produced = {tokens(tokenizer, "".join(f"tok{i} " for i in range(n))): n for n in range(1, 200)}
    assert 5 <= produced[event.usage.output] <= engine.seen[0].produced
    assert engine.seen[0].ended.wait(5) and engine.seen[0].disconnected
    wait_until(lambda: gateway.gateway is not None and gateway.gateway.in_flight == 0)


def test_nothing_is_kept_or_asked_where_the_engine_counts(
    gateway: RunningGateway, engine: MockEngine, tokenizer: Any
) -> None:
    engine.counts = vllm_tokenizer(tokenizer)
    engine.default.usage = "normal"
    number = 0
    for path, body in BODIES.items():
        for stream in (False, True) if path in STREAMED else (False,):
            call(gateway, path, body | ({"stream": True} if stream else {}))
            number += 1
            assert last_event(gateway, number).usage_source == "engine"
    assert engine.asked == []


async def _hang(_: Json) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


LIES = {
    "hangs": _hang,
    "refuses": lambda _: web.Response(status=500),
    "negative": lambda _: web.json_response({"count": -5}),
    "huge": lambda _: web.json_response({"count": 10**12}),
    "beyond any number": lambda _: web.Response(text='{"count": 1' + "0" * 400 + "}"),
    "a fraction": lambda _: web.json_response({"count": 2.5}),
    "no count": lambda _: web.json_response({"tokens": []}),
    "no JSON": lambda _: web.Response(text="<html>"),
    "too long": lambda _: web.Response(body=b'{"tokens": [' + b"1, " * 2_000_000 + b'1], "count": 3}'),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_engine_that_cannot_be_believed(gateway: RunningGateway, engine: MockEngine, lie: str) -> None:
    engine.counts = LIES[lie]
    began = time.monotonic()
    call(gateway, "/v1/chat/completions", CHAT)
    assert time.monotonic() - began < 4
    event = last_event(gateway, 1)
    assert (event.usage_source, event.usage.input) == ("estimated", (len(ASKED) + 3) // 4)
    asked, began = len(engine.asked), time.monotonic()
    call(gateway, "/v1/chat/completions", CHAT | {"stream": True})
    event = last_event(gateway, 2)
    assert (event.usage_source, event.usage.output) == ("estimated", 4)
    assert len(engine.asked) == asked, "it is left alone for a while"


class _Hanging(TokenCounter):
    async def count(self, data: bytes) -> bytes:
        await asyncio.sleep(30)
        return data


def test_a_control_process_that_hangs(gateway: RunningGateway) -> None:
    gateway.control.tokens = _Hanging(lambda _: None)
    for at_least, at_most in ((1.5, 5), (0, 1.4)):
        began = time.monotonic()
        call(gateway, "/v1/chat/completions", CHAT)
        assert at_least <= time.monotonic() - began <= at_most
        assert gateway.journal.events[-1].usage_source == "estimated"


def test_a_file_after_an_engine_that_hangs(
    gateway: RunningGateway, engine: MockEngine, tokenizer: Any, folder: Path
) -> None:
    engine.counts = _hang
    gateway.control.tokens = TokenCounter(lambda _: folder / "tokenizer.json")
    call(gateway, "/v1/chat/completions", CHAT)
    event = last_event(gateway, 1)
    assert (event.usage_source, event.usage.output) == ("counted", tokens(tokenizer, SAID))


def test_more_inputs_than_an_engine_is_asked_for(
    gateway: RunningGateway, engine: MockEngine, tokenizer: Any, folder: Path
) -> None:
    engine.counts = vllm_tokenizer(tokenizer)
    texts = [f"one {n}" for n in range(200)]
    call(gateway, "/v1/embeddings", {"model": EMBEDDER, "input": texts})
    assert last_event(gateway, 1).usage_source == "estimated"
    assert engine.asked == []
    gateway.control.tokens = TokenCounter(lambda _: folder / "tokenizer.json")
    gateway.gateway.counting._paused.clear()  # type: ignore[union-attr]
    call(gateway, "/v1/embeddings", {"model": EMBEDDER, "input": texts})
    event = last_event(gateway, 2)
    assert event.usage == Usage(sum(tokens(tokenizer, text, special=True) for text in texts))
    assert event.usage_source == "counted"


def test_pictures_cannot_be_counted(gateway: RunningGateway, engine: MockEngine, tokenizer: Any) -> None:
    engine.counts = vllm_tokenizer(tokenizer)
    parts = [{"type": "text", "text": ASKED}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    call(gateway, "/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": parts}]})
    event = last_event(gateway, 1)
    assert (event.usage_source, event.usage.output) == ("estimated", tokens(tokenizer, SAID))


def test_no_text_on_disk_or_in_logs(
    gateway: RunningGateway, engine: MockEngine, tmp_path: Path, folder: Path, tokenizer: Any,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    secret = "hippopotamus"
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    body = CHAT | {"messages": [{"role": "user", "content": secret}]}
    answer = {"id": "x", "object": "chat.completion", "choices": [{"message": {"content": secret}}]}
    counting = gateway.gateway.counting  # type: ignore[union-attr]
    for counts in (vllm_tokenizer(tokenizer), LIES["no JSON"], LIES["refuses"]):
        for file in (folder / "tokenizer.json", broken):
            engine.counts = counts
            gateway.control.tokens = TokenCounter(lambda _, file=file: file)
            engine.script.append(Behaviour(raw_body=json.dumps(answer).encode()))
            call(gateway, "/v1/chat/completions", body)
            counting._paused.clear()
    gateway.journal.wait_events(6)
    assert {event.usage_source for event in gateway.journal.events} == {"counted", "estimated"}
    on_disk = [
        path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()
    ]
    assert on_disk == []
    said = capfd.readouterr()
    assert secret not in caplog.text + said.out + said.err
    assert all(secret not in str(event) for event in gateway.journal.events)
